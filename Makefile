# make quickstart   train, test and draw on a small data set that it makes itself
# make test         lint, types and all tests, with the compiled operators and with torchvision's
# make docs         build the site of docs/ into build/site
# make install      only install, with the compiled operators if there is a C++ compiler
# make ext          build the compiled operators again, after a change to csrc or another PyTorch
# make cuda-check   compile and link the CUDA operators, without a GPU; installs a CUDA compiler
# make sanitize     run the operators' tests under AddressSanitizer and UndefinedBehaviorSanitizer
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

.PHONY: install ext cuda-check sanitize quickstart test lint types unit fallback docs clean

install: $(MARK)-install

quickstart: $(MARK)-install
	$(BIN)/python tools/quickstart.py

test: lint types unit fallback

lint: $(MARK)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MARK)-test
	$(BIN)/mypy

# Two processes of one thread each, which share the test files. Those stand in the order of their names, so that the
# long ones, of commands and the engine, do not come last.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

unit: $(MARK)-test
	$(PYTEST)

# What uses operators, once more without the compiled ones. Of the published models these differ in deformable convolution.
OPERATOR_TESTS := tests/layers $(addprefix tests/modeling/test_, build.py loss.py postprocess.py published_models.py) \
	$(addprefix tests/engine/test_, end_to_end.py tta.py all_models.py)

fallback: $(MARK)-test
	ATSS_OPS=torchvision $(PYTEST) -m "not cuda" -k "dcnv2 or not test_published_model_trains_and_tests" $(OPERATOR_TESTS)

docs: $(MARK)-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

ext: $(MARK)-package
	$(BIN)/python setup.py build_ext --inplace
	@touch $(MARK)-install

cuda-check: $(MARK)-install
	variables="$$(PYTHON=$(BIN)/python csrc/cuda_toolkit.sh)" && eval "$$variables" && \
	ATSS_CUDA=1 $(BIN)/python setup.py build_ext --build-lib build/cuda --build-temp build/cuda-objects
	$(BIN)/python csrc/check_cuda_library.py build/cuda

sanitize: $(MARK)-test
	PYTHON=$(BIN)/python csrc/sanitize.sh

$(BIN)/python:
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else 'needs Python 3.10 or newer, got %d.%d: set PYTHON' % v[:2])"
	$(PYTHON) -m venv $(VENV) || { rm -rf .venv; echo "install python3-venv, or set PYTHON to a Python that has it"; exit 1; }

# PyTorch comes first: the operators are compiled against it, by `make ext`, which compiles only what has changed.
$(MARK)-package: pyproject.toml csrc/build-requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --requirement csrc/build-requirements.txt
	ATSS_EXTENSION=0 ATSS_CUDA= $(BIN)/python -m pip install --no-build-isolation --editable .
	@touch $@

$(MARK)-install: $(MARK)-package setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/* csrc/cuda/*)
	$(BIN)/python setup.py build_ext --inplace
	@touch $@

$(MARK)-test: $(MARK)-install
	ATSS_EXTENSION=0 ATSS_CUDA= $(BIN)/python -m pip install --no-build-isolation --editable ".[test]"
	@touch $@

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis atss_core/_C*.so $(MARK)-*
