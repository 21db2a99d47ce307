PYTHON ?= python3
BIN := .venv/bin
DEVICE ?= cuda

.PHONY: demo test test-cluster test-gpu lint install clean

demo: install
	$(BIN)/raygen tune vae

test: lint
	$(BIN)/pytest -m "not cluster"

test-cluster: install
	$(BIN)/pytest -m cluster

test-gpu: install
	$(BIN)/python -m tests.gpu --device $(DEVICE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
