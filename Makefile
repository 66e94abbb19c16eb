# Two commands are enough on a fresh machine: `make demo` and `make test`. Both create .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= auto
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := true

.PHONY: help install demo test test-slow lint format docs docs-serve notebooks dist clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## create .venv with hfgpt in it

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hfgpt needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	@echo "installing hfgpt and what it needs into $(VENV): a minute or two"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	@echo "installing hfgpt, what it needs and the checks into $(VENV): a minute or two"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## raw text to a GPT-3 that writes and classifies, in out/demo
	$(BIN)/python recipes/demo.py

test: $(VENV)/.installed-dev  ## the tests, in minutes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow'

test-slow: $(VENV)/.installed-dev  ## every test, those that take minutes too
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## ruff, mypy, and which folder may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev  ## the documentation, in out/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed-dev  ## the documentation at http://127.0.0.1:8000, built anew at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: $(VENV)/.installed-dev  ## execute the notebooks and keep their outputs
	$(BIN)/python notebooks/execute.py

dist: $(VENV)/.installed-dev  ## the wheel and the source archive, in dist/
	$(BIN)/python -m build

clean:  ## remove .venv, what was built and everything the demo made
	rm -rf $(VENV) build dist out
