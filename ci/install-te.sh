#!/usr/bin/env bash
# Install Transformer Engine beside a virtual environment, for the tests on its real layers (tests/te); no GPU needed.
#
#   ci/install-te.sh [BASE] [TARGET]      (default: .venv .venv-te)
#
# Megatron takes other paths as soon as Transformer Engine can be imported, so it does not go into BASE: TARGET is an
# environment that sees all of BASE, and Transformer Engine too.  TARGET/environment says what a process needs to load it.
# On a machine with a GPU that is to train, install it into the environment itself: pip install '.[gpu]' (docs/gpu.md).
#
# Transformer Engine has no wheel of its torch part: it is compiled once (about ten minutes of one core), and pip keeps
# the result in its cache.  Safe to run again: does nothing when all is there.
# Exit codes: 0 installed; 1 it failed; 2 something that it needs is missing, and the message names it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base="${1:-.venv}"
target="${2:-.venv-te}"
version=2.12.0 # the newest that loads with torch 2.11: 2.13 needs cuBLASLt 13.2, torch brings 13.1
torch=2.11
# What the torch part imports, and what builds it.
tools=(ninja pybind11 wheel 'setuptools<82' packaging)
runtime=(einops onnxscript onnx)

cannot() { # WHAT FIX
  printf 'install-te: Transformer Engine cannot be installed: %s\n  what to do: %s\n' "$1" "$2" >&2
  exit 2
}

compiler() { # the folder of a CUDA toolkit with its headers, or nothing
  local folder nvcc
  nvcc="$(readlink -f "$(command -v nvcc || echo /nowhere)")"
  local folders=("${CUDA_PATH:-}" "${nvcc%/bin/nvcc}" /usr/local/cuda)
  [[ -z "${CUDA_HOME:-}" ]] || folders=("${CUDA_HOME}") # who names one means it
  for folder in "${folders[@]}"; do
    if [[ -x "${folder}/bin/nvcc" && -r "${folder}/include/crt/host_defines.h" ]]; then
      echo "${folder}"
      return
    fi
  done
}

stamp="${target}/installed"
requirements="$(cat "${base}/requirements.sha256" 2>/dev/null || true)"
wanted="$(sha256sum "${BASH_SOURCE[0]}" | cut -d ' ' -f 1) ${requirements} ${base}"
if [[ "$(cat "${stamp}" 2>/dev/null)" == "${wanted}" ]]; then
  exit 0
fi

[[ -x "${base}/bin/python" ]] || cannot "there is no environment ${base}" "make env, or name one: ci/install-te.sh BASE"
base="$(cd "${base}" && pwd)"
found="$("${base}/bin/python" -c 'import torch; print(torch.__version__.split("+")[0], torch.version.cuda)' 2>/dev/null)" ||
  cannot "${base} has no torch" "make env"
read -r found_torch found_cuda <<<"${found}"
[[ "${found_torch}" == "${torch}".* ]] ||
  cannot "version ${version} goes with torch ${torch}, and ${base} has ${found_torch}" "pip install torch==${torch}.0"
[[ "${found_cuda}" == 13.* ]] ||
  cannot "torch ${found_torch} was built for CUDA ${found_cuda}, not 13" "install torch ${torch}.0 as PyPI has it"
cuda="$(compiler)"
[[ -n "${cuda}" ]] ||
  cannot "there is no CUDA compiler (nvcc)" "install the CUDA toolkit 13, or say where it is: CUDA_HOME=/path/to/cuda"
release="$("${cuda}/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')"
[[ "${release}" == 13 ]] ||
  cannot "${cuda} is CUDA ${release}, and torch ${found_torch} was built for ${found_cuda}" "CUDA_HOME=/path/to/cuda-13"
command -v "${CXX:-g++}" >/dev/null || cannot "there is no C++ compiler (g++)" "apt-get install g++"

# Two at once must not install into one folder; the second finds the stamp of the first.
mkdir -p "${target}"
target="$(cd "${target}" && pwd)"
exec 9>"${target}/install.lock"
flock 9
if [[ "$(cat "${stamp}" 2>/dev/null)" == "${wanted}" ]]; then
  exit 0
fi

python="${target}/bin/python"
if [[ ! -x "${python}" ]]; then
  "${base}/bin/python" -m venv --without-pip "${target}"
fi
site="$("${python}" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
packages="$("${base}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# addsitedir, not the path alone: an editable installation in BASE is a .pth file of its own.
echo "import site; site.addsitedir('${packages}')" >"${site}/base-environment.pth"
nvidia="${packages}/nvidia"

install() {
  "${base}/bin/python" -m pip --python "${python}" install --quiet --constraint ci/constraints.txt "$@"
}

echo "installing Transformer Engine ${version} into ${target} (about ten minutes the first time)"
install "${tools[@]}" "${runtime[@]}"
install --no-deps "transformer-engine==${version}" "transformer-engine-cu13==${version}"
# The headers and libraries are those that torch brings, not the toolkit's: both parts must agree with torch.
CUDA_HOME="${cuda}" NVTE_FRAMEWORK=pytorch CUDNN_PATH="${nvidia}/cudnn" PATH="${target}/bin:${PATH}" \
  CPATH="${nvidia}/cu13/include:${nvidia}/cudnn/include:${nvidia}/nccl/include${CPATH:+:${CPATH}}" \
  install --no-deps --no-build-isolation "transformer-engine-torch==${version}"

# What a process needs to load Transformer Engine's libraries, one NAME=VALUE a line.
cat >"${target}/environment" <<TEXT
LD_LIBRARY_PATH=${nvidia}/cudnn/lib:${nvidia}/cu13/lib:${nvidia}/nccl/lib:${nvidia}/nvshmem/lib
CUDNN_HOME=${nvidia}/cudnn
NVRTC_HOME=${nvidia}/cu13
CURAND_HOME=${nvidia}/cu13
TEXT
mapfile -t variables <"${target}/environment"
program='import torch; torch.cuda.is_available = lambda: True; import transformer_engine.pytorch'
env "${variables[@]}" "${python}" -c "${program}" ||
  cannot "what was installed cannot be loaded" "rm -r ${target} and try again"
echo "${wanted}" >"${stamp}"
echo "ready: ${target}/bin/python"
