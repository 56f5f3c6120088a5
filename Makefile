# Two commands: `make demo` and `make test`. Both make .venv and install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
DEMO ?= demo

.PHONY: demo test slow lint clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[gguf]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

# The real pair, two tasks: where the capitals come from, and a control.
demo: $(VENV)/.core
	$(BIN)/python experiments/demo.py --out $(DEMO)

# Fast tests with doctests, lint and types, in two processes: what CI runs.
test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# Every draw and mode of the contracts, and the real 135M pair: long.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) $(DEMO) build .pytest_cache .ruff_cache
