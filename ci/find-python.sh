#!/usr/bin/env bash
# Print the path of a Python that Megatron-Core 0.19 can use (3.12 or 3.13, with venv), or say what is missing.
#
# megatron-core's wheel has `megatron.training` for Python >= 3.12 only: on an older Python, pip silently installs a
# release without it.  So `python3` is not enough where it is older; other places are looked at in turn.
#
#   PYTHON=/path/to/python ci/find-python.sh     take this one, or fail

set -euo pipefail

suitable() { # PYTHON: is it 3.12 or 3.13, and can it make virtual environments?
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

real_path() { # PYTHON: the interpreter itself, behind version-manager shims
    "$1" -c 'import sys; print(sys.executable)'
}

candidates() { # one path a line, the best first; 3.12 is what the project is tested with
    local version name
    for version in 3.12 3.13; do
        name="python${version}"
        type -ap "${name}" || true
        ls -d "${PYENV_ROOT:-${HOME}/.pyenv}/versions/${version}".*/bin/"${name}" 2>/dev/null || true
        if command -v uv >/dev/null; then
            uv python find --no-project "${version}" 2>/dev/null || true
        fi
    done
    type -ap python3 || true
}

if [[ -n "${PYTHON:-}" ]]; then
    if ! suitable "${PYTHON}"; then
        echo "PYTHON=${PYTHON} is not a Python 3.12 or 3.13 with the venv module" >&2
        exit 2
    fi
    real_path "${PYTHON}"
    exit 0
fi

while read -r candidate; do
    if suitable "${candidate}"; then
        real_path "${candidate}"
        exit 0
    fi
done < <(candidates)

cat >&2 <<'TEXT'
No suitable Python found: megatron-growth needs Python 3.12 or 3.13, with the venv module.
  looked at: python3.12, python3.13 and python3 on PATH, pyenv's versions, uv's versions
  what to do: install one (for example `uv python install 3.12`, `pyenv install 3.12`, or your
              system's python3.12 and python3.12-venv packages), or name one: make env PYTHON=/path/to/python3.12
TEXT
exit 2
