#!/usr/bin/env bash
# Run the test suite; pytest's own summary is the last thing printed and its exit code is ours.
#
#   ci/test.sh BIN TESTS [PYTEST ARGUMENTS]
#
# Two workers: most tests are single-threaded, and two groups of four small training processes fit 12 GiB.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="$1"
tests="$2"
shift 2

# Training processes are many; one thread each is faster than all of them fighting for the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TOKENIZERS_PARALLELISM=false
# Hundreds of Pythons start, and each would compile the package anew where compiled files are not kept.
unset PYTHONDONTWRITEBYTECODE
# Slurm's packages, where that asks nobody; without them the tests on a real Slurm say why they are skipped.
if [[ "$(id -u)" -eq 0 && " ${tests} " == *" tests"@( |/slurm)* ]]; then
    ci/install-slurm.sh || echo "the tests on a real Slurm will be skipped"
fi
# Transformer Engine, where there is what it takes (compiled once, kept by pip); without it tests/te says so and skips.
if [[ " ${tests} " == *" tests"@( |/te)* && "${bin}" == */bin ]]; then
    ci/install-te.sh "${bin%/bin}" .venv-te || echo "the tests on Transformer Engine will be skipped"
fi
# The real model that some tests use (93 MB, once); without it they say so and skip.
if [[ " ${tests} " == *" tests"@( |/megatron)* && "${bin}" == */bin ]]; then
    ci/fetch-assets.sh "${bin%/bin}" || echo "the tests on a real model will be skipped"
fi
# A file's tests share fixtures that train small models, so a file stays on one worker; tests/conftest.py says in which
# order they come.
exec "${bin}/pytest" "${tests}" --numprocesses "${TEST_WORKERS:-2}" --dist loadfile "$@"
