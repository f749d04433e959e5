#!/usr/bin/env bash
# Run benchmarks one after the other; each prints its own tables, as in docs/benchmarks.md.
#
#   ci/bench.sh BIN [NAME...]       (default: everything that measures speed or memory)
#
# operators and reuse compare losses; they train for half an hour to two hours and need a folder, so they are not run here.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
bin="$1"
shift

if [[ $# -gt 0 ]]; then
    scripts=("${@/#/benchmarks/}")
    scripts=("${scripts[@]/%/.py}")
else
    mapfile -t scripts < <(ls benchmarks/{demo,freeze,grow,grow_on_load,grow_plan,layer_spec,plugin_overhead,prepare}.py)
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
failed=0
for script in "${scripts[@]}"; do
    echo "== ${script}"
    "${bin}/python" "${script}" || failed=1
done
exit "${failed}"
