# Every target that needs the environment makes it first: on a fresh machine `make quickstart` or
# `make test` is all it takes.
#
#   PYTHON   interpreter of the environment (3.11 or newer)
#   VENV     where the environment lies
#   WORKERS  test processes (auto: one per core, at most 8)

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test lint check format bench docs notebooks clean

help:
	@echo "make quickstart   train, evaluate and plot on this machine (six to ten minutes on two cores)"
	@echo "make test         run the tests"
	@echo "make lint         formatting, lint, the import rule and types"
	@echo "make check        lint and tests, as .ci/run runs them in a fresh environment"
	@echo "make format       format the code and fix what lint can fix"
	@echo "make bench        measure speed beside the alternatives (an hour; hart bench --quick: two minutes)"
	@echo "make docs         build the documentation site into site/, without a network"
	@echo "make notebooks    execute the notebooks anew, in place"
	@echo "make venv         only create $(VENV) and install into it"
	@echo "make clean        remove $(VENV) and all caches"

venv: $(READY)

# The stamp is written last, so an installation that was cut short is taken up again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hart needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[bnb,deepspeed,docs,export,figures,notebooks,serve,dev]'
	touch $(READY)

quickstart: $(READY)
	$(BIN)/hart quickstart

# One thread per process: the models are tiny and the processes share the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

check: lint test

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/hart bench

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

notebooks: $(READY)
	$(BIN)/python docs/site/notebooks.py

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache build dist src/*.egg-info
	find src tests benches -name __pycache__ -type d -prune -exec rm -rf {} +
