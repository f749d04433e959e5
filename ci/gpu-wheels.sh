#!/usr/bin/env bash
# Fill a folder with everything that ci/gpu.sh installs on a machine without a network.
#
#   ci/gpu-wheels.sh FOLDER [BASE]        (default: .venv)
#
# Run it where there is a network, with the Python version of the GPU machine; BASE is an environment with torch.
# torch and what it brings are left out: the GPU machine has them.  Transformer Engine is added where `make env-te` has
# built it, its 260 MB wheel in pieces that small transfers take; ci/gpu.sh puts them together.
# Exit codes: 0; 2 something that it needs is missing, and the message names it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder="${1:?usage: ci/gpu-wheels.sh FOLDER [BASE]}"
base="${2:-.venv}"
piece=50M
version="$(sed -n 's/^version=\([0-9.]*\).*/\1/p' ci/install-te.sh)"

if [[ ! -x "${base}/bin/python" ]]; then
  echo "gpu-wheels: there is no environment ${base}: make env" >&2
  exit 2
fi
mkdir -p "${folder}/plain" "${folder}/te"
pip=("${base}/bin/python" -m pip)
# Everything that is installed, but torch and what belongs to it.
"${pip[@]}" list --format=freeze --exclude-editable |
  grep -viE '^(torch|triton|nvidia-|cuda-|pip|setuptools|transformer-engine|transformer_engine)' >"${folder}/requirements.txt"
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "${folder}/plain" --requirement "${folder}/requirements.txt"
"${pip[@]}" wheel --quiet --no-deps --no-build-isolation --wheel-dir "${folder}/plain" .

if "${pip[@]}" cache list 2>/dev/null | grep -qi "transformer.engine.torch-${version}"; then
  "${pip[@]}" download --quiet --no-deps --dest "${folder}/te" "transformer-engine==${version}" \
    "transformer-engine-cu13==${version}"
  # --no-build-isolation finds the wheel that `make env-te` has left in pip's cache.
  "${pip[@]}" wheel --quiet --no-deps --no-build-isolation --wheel-dir "${folder}/te" "transformer-engine-torch==${version}"
  "${pip[@]}" wheel --quiet --wheel-dir "${folder}/te" --constraint ci/constraints.txt --no-deps einops onnx onnxscript onnx-ir ml-dtypes
  for wheel in "${folder}"/te/*.whl; do
    if [[ "$(stat -c %s "${wheel}")" -gt $((60 * 1024 * 1024)) ]]; then
      split --bytes="${piece}" --numeric-suffixes "${wheel}" "${wheel}.part-"
      rm "${wheel}"
    fi
  done
else
  echo "gpu-wheels: Transformer Engine is not built here (make env-te); the folder is for the plain installation only"
fi
du -sh "${folder}"
