#!/usr/bin/env bash
# Run every benchmark, one after the other; each prints its own table.
#
#   ci/bench.sh BIN [NAME...]       (default: all of benchmarks/bench_*.py)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="$1"
shift

if [[ $# -gt 0 ]]; then
    scripts=("${@/#/benchmarks/bench_}")
    scripts=("${scripts[@]/%/.py}")
else
    scripts=(benchmarks/bench_*.py)
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
for script in "${scripts[@]}"; do
    echo "== ${script}"
    "${bin}/python" "${script}"
done
