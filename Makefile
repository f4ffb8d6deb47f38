# The two commands are `make quickstart` and `make test`; `make` alone lists all.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -m "not gpu and not long"

# A stamp carries the digest of what was asked for: a second `make` does nothing, a changed pin installs again.
stamp = $(VENV)/.installed-$(1)-$(shell cat requirements/$(1).txt requirements/install pyproject.toml | sha256sum | cut -c1-16)
CPU := $(call stamp,cpu)
DEV := $(call stamp,dev)
GPU := $(call stamp,gpu)
# `make gpu` leaves its stamp; afterwards the CPU's requirements are not installed over it.
RUNTIME := $(if $(wildcard $(GPU)),$(GPU),$(CPU))

.PHONY: help quickstart test test-unit test-rest lint format serve deploy gpu bench soak clean

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

quickstart: $(RUNTIME) ## Train a small model and show that it learned; SET='seed=1 total_steps=5' changes settings
	@$(BIN)/python -m deployments.quickstart $(foreach pair,$(SET),--set '$(pair)')

serve: $(RUNTIME) ## Prefect with a worker, and the UIs of Prefect and MLflow on loopback, until Ctrl-C
	@$(BIN)/python -m deployments.serve

deploy: $(RUNTIME) ## Everything in prefect.yaml, to the server of PREFECT_API_URL or of `make serve`
	@$(BIN)/python -m deployments.deploy

test: test-unit test-rest ## The tests that need no GPU, but for the long ones of `make soak`

test-unit: $(RUNTIME) $(DEV) ## The unit tests alone
	$(PYTEST) -n 2 tests/unit

# Flows in processes of their own: each has its own Prefect server, and its client of events has not served other tests
# before. A line is what one process tests; the longest come first, so that neither core waits for the other at the end.
test-rest: test-unit
	$(PYTEST) -n 2 tests/start
	$(PYTEST) -n 2 --dist loadfile tests/engines
	printf '%s\n' tests/faults/test_kills.py "tests/faults --ignore=tests/faults/test_kills.py" tests/flows/test_*.py \
	  | xargs -P 2 -L 1 $(PYTEST)

lint: $(RUNTIME) $(DEV) ## Style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(RUNTIME) $(DEV) ## Apply style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu: $(GPU) ## Install for a machine with NVIDIA GPUs

bench: $(RUNTIME) ## What orchestration costs per step
	$(BIN)/python -m benchmarks.orchestration

soak: $(RUNTIME) $(DEV) ## The long tests of faults, and kill -9 at random, 50 times, on a tiny model
	$(BIN)/python -m pytest -q -m long tests
	$(BIN)/python -m tests.faults.soak

clean: ## Remove the virtual environment, caches and logs; runs and their records stay in .drgrpo
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .drgrpo/cache .drgrpo/logs
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	  || { echo "$(PYTHON) is not Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CPU) $(DEV) $(GPU): $(VENV)/.installed-%: | $(BIN)/python
	@set=$(firstword $(subst -, ,$*)); requirements/install $(VENV) $$set; rm -f $(VENV)/.installed-$$set-*; touch $@

# The tools come on top of what they check.
$(DEV): | $(RUNTIME)
