# Everything is set up on first use: python 3.11 or newer and make are all that is needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: all demo test lint format bench results clean
all: lint test

# torch first: its exact build is pinned, and nothing else may pull in another one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/hpnet demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/gallery.py

results: $(READY)
	$(BIN)/python benchmarks/results.py write

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
