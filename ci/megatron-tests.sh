#!/usr/bin/env bash
# Run Megatron's own unit tests over the host backend, and say what fails that is not known to.
#
#   ci/megatron-tests.sh FOLDER [RANKS...]        (default: 1 2 8)
#
# FOLDER is a checkout of Megatron-LM; its own megatron package is tested.  Not part of CI: every file is a start of its
# own.  Beside a new release of Megatron, what is in the last list is what broke.
#
#   MEGATRON_TESTS   files or folders of FOLDER to run (default: every test file under tests/unit_tests)
#   MEGATRON_SECONDS time limit of one file (default: 600)
#   BIN              of the virtual environment (default: .venv/bin)
#   OUT              where results and logs go (default: a temporary folder)

set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ $# -lt 1 || ! -d "$1/tests/unit_tests" ]]; then
    sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
folder="$(cd "$1" && pwd)"
shift
ranks=("$@")
[[ ${#ranks[@]} -gt 0 ]] || ranks=(1 2 8)
bin="$(cd "${BIN:-${here}/../.venv/bin}" && pwd)"
out="${OUT:-$(mktemp -d)}"
mkdir -p "${out}"
out="$(cd "${out}" && pwd)"
cd "${folder}"
# shellcheck disable=SC2086  # several names, separated by blanks
mapfile -t files < <(find ${MEGATRON_TESTS:-tests/unit_tests} -name 'test_*.py' ! -name test_utilities.py | sort)

# Megatron compiles its data helpers with the first python3 of the path.
export PATH="${bin}:${PATH}"
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" TOKENIZERS_PARALLELISM=false
export PYTHONPATH="${folder}:${here}:${here}/..${PYTHONPATH:+:${PYTHONPATH}}"
for count in "${ranks[@]}"; do
    for file in "${files[@]}"; do
        name="${file//\//.}"
        echo "== ${count} x ${file}"
        export MEGATRON_RESULTS="${out}/${count}-${name%.py}"
        mkdir -p "${MEGATRON_RESULTS}"
        # A file that hangs or is killed has no results of its last test: the summary says so.
        timeout --kill-after=20 "${MEGATRON_SECONDS:-600}" "${bin}/python" -m torch.distributed.run \
            --nproc-per-node "${count}" --master-port "$((20000 + RANDOM % 20000))" -m pytest -p megatron_tests \
            -p no:cacheprovider -p no:xdist -o addopts= -q "${file}" >"${MEGATRON_RESULTS}/log.txt" 2>&1 || true
    done
done
exec "${bin}/python" "${here}/megatron_tests.py" "${out}" "${here}/megatron-tests-known.txt"
