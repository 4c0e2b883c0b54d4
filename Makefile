# `make demo` and `make test` do all the set-up on a machine with python3 (3.11 or newer) and pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

demo: .venv/.installed
	$(BIN)/overstory demo

test: .venv/.installed
	$(BIN)/python -m pytest

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
