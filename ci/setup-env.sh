#!/usr/bin/env bash
# Create .venv with the project and its development tools; does nothing when that was done for these requirements.
#
#   ci/setup-env.sh [VENV]          (default: .venv)
#   PYTHON=/path/to/python ci/setup-env.sh

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${1:-.venv}"
stamp="${venv}/requirements.sha256"
wanted="$(cat pyproject.toml setup.py ci/constraints.txt | sha256sum | cut -d ' ' -f 1)"

if [[ -x "${venv}/bin/python" && "$(cat "${stamp}" 2>/dev/null)" == "${wanted}" ]]; then
    exit 0
fi

# Two `make` at once must not install into one environment; the second finds the stamp of the first.
mkdir -p "${venv}"
if command -v flock >/dev/null; then
    exec 9>"${venv}/setup.lock"
    flock 9
    if [[ "$(cat "${stamp}" 2>/dev/null)" == "${wanted}" ]]; then
        exit 0
    fi
fi

if ! "${venv}/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
    python="$(ci/find-python.sh)"
    echo "creating ${venv} with ${python} ($("${python}" --version))"
    "${python}" -m venv "${venv}"
fi

echo "installing the project and its tools into ${venv} (some minutes the first time; about 5 GB)"
"${venv}/bin/python" -m pip install --quiet --constraint ci/constraints.txt --editable '.[dev]'
"${venv}/bin/python" -m pip check
echo "${wanted}" >"${stamp}"
echo "ready: ${venv}/bin/megatron-growth --help"
