# make quickstart   train, test and draw on a small data set that it makes itself
# make test         lint, types and all tests
# make install      only install
# An active virtual environment is used; otherwise .venv is made. PYTHON chooses the interpreter it is made with.

PYTHON ?= python3
ifdef VIRTUAL_ENV
  VENV := $(VIRTUAL_ENV)
else ifdef CONDA_PREFIX
  VENV := $(CONDA_PREFIX)
else
  VENV := .venv
endif
BIN := $(VENV)/bin
MARK := $(VENV)/.atss

.PHONY: install quickstart test lint types unit clean

install: $(MARK)-install

quickstart: $(MARK)-install
	$(BIN)/python tools/quickstart.py

test: lint types unit

lint: $(MARK)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MARK)-test
	$(BIN)/mypy

unit: $(MARK)-test
	$(BIN)/python -m pytest

$(BIN)/python:
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else 'needs Python 3.10 or newer, got %d.%d: set PYTHON' % v[:2])"
	$(PYTHON) -m venv $(VENV) || { rm -rf .venv; echo "install python3-venv, or set PYTHON to a Python that has it"; exit 1; }

$(MARK)-install: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	@touch $@

$(MARK)-test: $(MARK)-install
	$(BIN)/python -m pip install --editable ".[test]"
	@touch $@

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
