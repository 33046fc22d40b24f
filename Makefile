# Two commands: `make demo` and `make test`. Each sets up its own virtual environment in .venv when it is not there.
# The stamp files make the set-up run once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo test lint slow format clean

demo: .venv/installed
	$(BIN)/cadiff demo --out demo --resume

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) -m "not slow"

slow: .venv/installed-dev
	$(BIN)/pytest -q -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

# --no-compile: byte-compiling every file of torch and transformers takes longer than all that is ever imported of them.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing cadiff and what it needs into .venv (once, a minute or more) ..."
	$(PIP_INSTALL) -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing cadiff and the tools of its tests into .venv (once, a minute or more) ..."
	$(PIP_INSTALL) -e ".[dev]"
	touch .venv/installed $@

clean:
	rm -rf .venv demo build dist .pytest_cache .ruff_cache .import_linter_cache
