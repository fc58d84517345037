# Each target sets up what it needs in .venv; Python 3.11 or newer is all that must be there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# What pip installs as torch, options included; this is the version that we test with.
TORCH ?= torch==2.13.0

.PHONY: demo test check docs help clean

demo: $(VENV)/.train  ## the main job on texts found on this machine
	$(BIN)/nanonet demo

test: $(VENV)/.dev check  ## everything that must pass
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev  ## formatting, lint, types, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/help_page.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site

docs: $(VENV)/.dev  ## write docs/help.md and build the pages into site/
	$(BIN)/python scripts/help_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

clean:  ## remove what the targets made
	rm -rf $(VENV) site demo-out

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "NanoNet needs Python 3.11 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet -e '.[train,offline]'
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(BIN)/pip install --quiet -e '.[train,offline,serve,summarization,docs,dev]'
	touch $@
