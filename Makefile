# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/smollm2-135m-instruct
STAMP := $(VENV)/.installed
# CPU torch, installed first: a bare `torch` would pull gigabytes of CUDA. On a machine with a
# GPU: make setup TORCH="torch"
TORCH ?= torch==2.13.0
# Tests run in several processes: one for each CPU, four at most. `make test TESTS_AT_ONCE=0`: one.
TESTS_AT_ONCE ?= logical

.PHONY: help setup demo test prove check lint types arch docs protos sanitize bench soak dist wheels \
	test-arm64 test-openvino test-ray clean

help:  ## Show this help
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $@

setup: $(STAMP)  ## Install into .venv and fetch the model
	$(BIN)/splitpoint model fetch smollm2-135m-instruct --out $(MODEL)

demo: $(STAMP)  ## Fetch, build, serve, run; print the text and where the time went
	$(BIN)/splitpoint demo

test: setup  ## Run the tests
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --maxprocesses 4

prove: setup  ## Run the whole grid of split-equals-whole: 20 prompts, 64 tokens, 7 splits
	SPLITPOINT_WHOLE_GRID=1 $(BIN)/python -m pytest tests/end_to_end/test_split_equals_whole.py

check: lint types arch docs test protos sanitize  ## Everything that has to be clean
	git diff --exit-code -- protos

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

arch: $(STAMP)
	$(BIN)/lint-imports

docs: $(STAMP)  ## Build the documentation as a site in out/site; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

protos: $(STAMP)  ## Regenerate the gRPC stubs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python protos/regenerate.py

sanitize: $(STAMP)  ## Run both kernels under ASan, UBSan and TSan: their tests and a fuzz corpus
	$(BIN)/python tests/sanitize/sanitize.py

bench: setup  ## Run the benchmarks; see benchmarks/METHODOLOGY.md
	$(BIN)/python benchmarks/edge/decode.py

soak: $(STAMP)  ## Honest and hostile clients for ten minutes; memory, threads, tokens, times
	$(BIN)/python -m benchmarks.server.soak

dist: $(STAMP)  ## Build the source archive and this machine's wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

WHEEL_BIN := work/wheels/venv/bin
work/wheels/venv/.installed: deploy/wheels/requirements.txt
	$(PYTHON) -m venv work/wheels/venv
	$(WHEEL_BIN)/pip install --quiet --disable-pip-version-check -r $<
	touch $@

wheels: work/wheels/venv/.installed  ## Build wheels for x86-64 and Arm, Linux and macOS, into dist/; no compiler needed
	rm -rf dist
	$(WHEEL_BIN)/python deploy/wheels/build_wheels.py --out dist

test-arm64: $(STAMP)  ## Run the edge's, codec's and wire's tests on an emulated 64-bit Arm system (needs root)
	$(BIN)/python -m tests.arm64.emulated

test-openvino: setup  ## Run a front on OpenVINO in a virtual environment of its own, beside the CPU's kernels
	$(BIN)/python -m tests.openvino.other_environment

RAY_BIN := work/ray/venv/bin
work/ray/venv/.installed: pyproject.toml
	$(PYTHON) -m venv work/ray/venv
	$(RAY_BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(RAY_BIN)/pip install --quiet --disable-pip-version-check -e ".[all,ray,dev]"
	touch $@

test-ray: work/ray/venv/.installed  ## Run the cluster's tests with Ray, in an environment of its own
	$(RAY_BIN)/python -m pytest tests/cloud/cluster tests/end_to_end/test_cluster.py

clean:  ## Remove what was built (the virtual environment and models stay)
	rm -rf work out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
