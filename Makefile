# Two commands matter: `make quickstart` and `make test`. Everything is installed into $(VENV) and nowhere else.
# PYTHON=/path/to/python picks the interpreter (3.11 or newer), ARGS="..." goes to pytest or to the quickstart run.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,\
	$(shell $(name) -c '$(RECENT)' >/dev/null 2>&1 && echo $(name))))
ARGS ?=

.PHONY: help quickstart test check format docs clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed ## install, then distil a small student on the shipped data; an interrupted run goes on
	@$(BIN)/moekd distill quickstart --resume auto $(ARGS)

test: $(VENV)/.installed-dev ## run the test-suite
	@$(BIN)/pytest $(ARGS)

check: $(VENV)/.installed-dev ## formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p moekd

format: $(VENV)/.installed-dev ## format the code and repair what lint can repair
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-dev ## build the documentation into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

clean: ## remove the environment and everything that was built; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(RECENT)' || { \
		echo "moekd needs Python 3.11 or newer; found: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)." >&2; \
		echo "Install one, then name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Could not create $(VENV); on Debian and Ubuntu the module is in the package python3-venv." >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing moekd (the first time this fetches PyTorch, which takes minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing moekd with its development tools (the first time this fetches PyTorch, which takes minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,docs,vision-language,datasets,films,onnx,serve]'
	@touch $@ $(VENV)/.installed
