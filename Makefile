# The commands of this repository. `make run` and `make test` do all the set-up on a machine that has Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
export PORT
# Else each of the hundreds of processes that the tests start would compile all of our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check audit bench soak lock clean

run: $(VENV)/.run
	@exec $(BIN)/repliq up

# What kills processes and servers comes after all else. tests/order.py tells how many processes run the tests, and which gets what.
# A machine that runs dozens of servers at once may starve one: what failed there is run again with the machine to itself, and has
# failed if it fails again.
# `make check test` has been through tests/rules before it comes to the tests.
REST := $(if $(filter check,$(MAKECMDGOALS)),--ignore=tests/rules)
AGAIN := -x --last-failed --last-failed-no-failures none
test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not faults" $(REST) || $(BIN)/python -m pytest $(AGAIN) -m "not faults"
	@$(BIN)/python -m pytest -n auto --dist loadfile -m faults || $(BIN)/python -m pytest $(AGAIN) -m faults

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python deploy/sbom.py
	@$(BIN)/python -m pytest tests/rules

# Known weaknesses of what is locked. It asks a service outside, and is no part of `check`, which needs no network.
audit: $(VENV)/.dev
	@$(BIN)/python deploy/weaknesses.py

bench: $(VENV)/.dev
	@$(BIN)/python -m bench

soak: $(VENV)/.dev
	@$(BIN)/python -m pytest -m soak --soak --timeout=3000

# Locks again, with hashes and without naming any package host.
lock: $(VENV)/.dev
	@$(BIN)/pip install -q uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --generate-hashes pyproject.toml --extra otel -o requirements.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --generate-hashes pyproject.toml --extra otel --group dev -o requirements-dev.txt

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Repliq needs Python 3.11 or newer; this is %s. Set PYTHON=python3.12, for example: make run PYTHON=python3.12" % sys.version.split()[0])'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "This Python has no venv module. On Debian or Ubuntu: apt-get install python3-venv; then again: make $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.python requirements.txt pyproject.toml
	@echo "Installing the packages of requirements.txt (once) …"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	@echo "Installing the packages of requirements-dev.txt (once) …"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

clean:
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
