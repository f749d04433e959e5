#!/usr/bin/env bash
# Run benchmarks one after the other; each prints its own tables, as in docs/benchmarks.md.
#
#   ci/bench.sh BIN [NAME...]       (default: every script in benchmarks/)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
bin="$1"
shift

if [[ $# -gt 0 ]]; then
    scripts=("${@/#/benchmarks/}")
    scripts=("${scripts[@]/%/.py}")
else
    mapfile -t scripts < <(grep -l '__main__' benchmarks/*.py)
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
failed=0
for script in "${scripts[@]}"; do
    echo "== ${script}"
    "${bin}/python" "${script}" || failed=1
done
exit "${failed}"
