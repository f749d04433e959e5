#!/usr/bin/env bash
# Fill a folder with everything that ci/gpu.sh installs on a machine without a network.
#
#   ci/gpu-wheels.sh FOLDER [BASE]        (default: .venv)
#   HAS=FILE                              names of packages that the GPU machine has, as `pip list --format=freeze`
#                                         prints them there: they are left out
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
# What this package and its tests on a GPU need, in the versions of BASE, but torch and what belongs to it.
"${base}/bin/python" - pyproject.toml "${HAS:-/dev/null}" pytest pytest-xdist pytest-timeout hypothesis \
  >"${folder}/requirements.txt" <<'PYTHON'
import pathlib, re, sys, tomllib
from importlib import metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

project, has, *tests = sys.argv[1:]
wanted = tomllib.loads(pathlib.Path(project).read_text())["project"]["dependencies"] + tests
there = {canonicalize_name(re.split("[=@ ]", line)[0]) for line in pathlib.Path(has).read_text().splitlines() if line}
seen = set()
while wanted:
    requirement = Requirement(wanted.pop())
    name = canonicalize_name(requirement.name)
    mine = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if not mine or name in seen or re.match("torch$|triton$|nvidia-|cuda-", name):
        continue
    seen.add(name)
    found = metadata.distribution(name)
    wanted += found.requires or []
    if name not in there:
        print(f"{name}=={found.version}")
PYTHON
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
