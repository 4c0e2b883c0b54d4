# `make demo` and `make test` do all the set-up on a machine with python3 (3.11 or newer) and pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check clean

# Tests start hundreds of processes, which share what one of them compiled.
export PYTHONDONTWRITEBYTECODE =

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# With lm-evaluation-harness, which takes longer to set up than `make test` should.
.venv/.installed-eval: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,eval]'
	touch $@

# The link is emulated so slow that one pass of this small model takes as many draft steps as a large one's over PCIe.
# Packed, all of it would fit into the budget, and nothing would stream.
demo: .venv/.installed
	$(BIN)/overstory compare --device-memory 256MB --pack off --emulate-link 0.1GB/s

# What guards every change: all but what takes more than ten seconds, and one in ten damaged inputs.
test: .venv/.installed
	$(BIN)/python -m pytest -n 2 -m "not slow"

# Everything: also the whole fuzz, the soaks and every point at which a process can be killed.
test-all: .venv/.installed-eval
	$(BIN)/python -m pytest -n 2 --fuzz 1

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
