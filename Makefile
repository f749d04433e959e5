# Every target sets up what it needs first; a second call finds it done.
#
#   make PYTHON=/path/to/python3.12 env      choose the Python that .venv is made from

VENV := .venv
VENV_TE := .venv-te
BIN := $(VENV)/bin
RUN ?= runs/demo
TESTS ?= tests
PYTEST_ARGS ?=
BENCH ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help env env-te assets demo test lint format bench torture clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env:  ## create .venv with the project and its tools
	@bash ci/setup-env.sh $(VENV)

env-te: env  ## create .venv-te beside it, with Transformer Engine, for tests/te (needs a CUDA compiler, no GPU)
	@bash ci/install-te.sh $(VENV) $(VENV_TE)

assets: env  ## fetch the real model that some tests use (93 MB, once), into .venv/assets
	@bash ci/fetch-assets.sh $(VENV)

demo: env  ## pre-train a nano family in four stages beside a scratch baseline, and write the report
	@$(BIN)/megatron-growth demo --run $(RUN)

test: env  ## run the whole test suite (PYTEST_ARGS="-k name" narrows it)
	@bash ci/test.sh $(BIN) $(TESTS) $(PYTEST_ARGS)

lint: env  ## ruff, mypy, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_imports.py

format: env  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env  ## measure speed and memory; BENCH="plugin_overhead grow" chooses (figures: docs/benchmarks.md)
	@bash ci/bench.sh $(BIN) $(BENCH)

torture: env  ## kill a training run 30 times at random moments and compare it with an undisturbed one
	$(BIN)/python -m tests.megatron.kill_torture --kills 30

clean:  ## remove caches (not .venv, not runs)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
