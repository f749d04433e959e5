#!/usr/bin/env bash
# All that can be checked and measured on one GPU in at most eight minutes, without a network.
#
#   ci/gpu.sh WHEELS_FOLDER [OUT]         (default OUT: runs/gpu)
#
# It needs: an NVIDIA GPU with 40 GiB or more for the 1B and 2B models, Linux, Python 3.12 or 3.13 with torch 2.11 for
# CUDA 13, this checkout, and the folder that ci/gpu-wheels.sh has filled.  It takes 10 GB of disk.
# Order: the plain pip installation, then Transformer Engine beside it.  Each has its doctor, tests/gpu and
# benchmarks/gpu.py; what does not fit the time is left out and named.
#   PYTHON=/path/to/python        the Python that has torch (default: python3)
#   GPU_SECONDS=480               time for all of it
#   GPU_INSTALLATIONS="plain te"  which of the two are measured
#   GPU_RECIPE=progressive-8b     whose first two stages the benchmark trains
# Exit codes: 0; 1 a test or a benchmark failed; 2 something that it needs is missing, and the message names it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheels="${1:?usage: ci/gpu.sh WHEELS_FOLDER [OUT]}"
out="${2:-runs/gpu}"
python="${PYTHON:-python3}"
deadline=$((SECONDS + ${GPU_SECONDS:-480}))
venv="${out}/venv"

missing() { # WHAT FIX
  printf 'gpu: %s\n  what to do: %s\n' "$1" "$2" >&2
  exit 2
}
[[ -d "${wheels}/plain" ]] || missing "${wheels} holds no wheels" "fill it where there is a network: ci/gpu-wheels.sh FOLDER"
"${python}" -c 'import torch' 2>/dev/null || missing "${python} has no torch" "name one that has: PYTHON=/path/to/python"
if [[ "${GPU_ON_HOST:-}" != 1 ]]; then # 1: a rehearsal without a GPU, as the tests do it
  "${python}" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    missing "torch finds no GPU here" "run it on a machine with one; megatron-growth doctor says more"
fi
wheels="$(cd "${wheels}" && pwd)"
mkdir -p "${out}"
out="$(cd "${out}" && pwd)"

left() { # seconds that are left, at least 1
  local seconds=$((deadline - SECONDS))
  echo $((seconds > 1 ? seconds : 1))
}
selected=(-m gpu -n 8) # the same on the host is tested everywhere
if [[ "${GPU_ON_HOST:-}" == 1 ]]; then selected=(-n 0); fi
failed=0
step() { # NAME COMMAND...: run it within the time that is left, its output into OUT/NAME.txt
  local name="$1"
  shift
  echo "== ${name} ($(left) s left)"
  if ! timeout --kill-after=5 "$(left)" "$@" >"${out}/${name}.txt" 2>&1; then
    failed=1
    echo "   failed: ${out}/${name}.txt"
  fi
  tail -n "${GPU_TAIL:-12}" "${out}/${name}.txt"
}
measure() { # NAME SECONDS: if it is wanted, doctor, tests and benchmark of what is installed now
  local seconds="$2"
  [[ " ${GPU_INSTALLATIONS:-plain te} " == *" $1 "* ]] || return 0
  step "doctor-$1" "${venv}/bin/megatron-growth" doctor
  step "tests-$1" "${venv}/bin/python" -m pytest tests/gpu -q -p no:cacheprovider "${selected[@]}"
  [[ "$(left)" -ge "${seconds}" ]] || seconds="$(left)"
  step "benchmark-$1" "${venv}/bin/python" benchmarks/gpu.py --recipe "${GPU_RECIPE:-progressive-8b}" \
    --seconds "${seconds}" --iterations "${GPU_ITERATIONS:-20}"
}

# A new environment that sees the torch of the machine, and what the wheels add.
"${python}" -m venv --clear --system-site-packages "${venv}"
packages="$("${python}" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
site="$("${venv}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo "import site; site.addsitedir('${packages}')" >"${site}/torch-of-the-machine.pth"
step install "${venv}/bin/python" -m pip install --quiet --no-index --no-deps --find-links "${wheels}/plain" "${wheels}"/plain/*.whl
measure plain 150

if compgen -G "${wheels}/te/*" >/dev/null; then
  rm -rf "${out}/te-wheels"
  mkdir "${out}/te-wheels"
  cp "${wheels}"/te/*.whl "${out}/te-wheels"
  for first in "${wheels}"/te/*.part-00; do
    [[ -e "${first}" ]] || continue
    whole="$(basename "${first%.part-00}")"
    cat "${wheels}/te/${whole}".part-* >"${out}/te-wheels/${whole}"
  done
  step install-te "${venv}/bin/python" -m pip install --quiet --no-index --no-deps "${out}"/te-wheels/*.whl
  nvidia="$("${venv}/bin/python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1] / "nvidia")')"
  export LD_LIBRARY_PATH="${nvidia}/cudnn/lib:${nvidia}/cu13/lib:${nvidia}/nccl/lib:${nvidia}/nvshmem/lib:${LD_LIBRARY_PATH:-}"
  export CUDNN_HOME="${nvidia}/cudnn" NVRTC_HOME="${nvidia}/cu13" CURAND_HOME="${nvidia}/cu13"
  measure te 150
else
  echo "gpu: ${wheels}/te is empty; Transformer Engine is not measured"
fi
echo "results: ${out}"
exit "${failed}"
