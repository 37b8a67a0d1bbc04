# Each verb sets up what it needs: a virtual environment in .venv, made once and used again.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: help demo test test-fast gpu-emulated soak bench bench-compare hosts check docs clean

help:
	@echo "make demo   guide a small text-to-image model; one picture, outputs/demo/demo.png"
	@echo "make test   the test suite"
	@echo "make test-fast  the part of it that takes a few minutes"
	@echo "make soak   random calls, damaged files, kills and memory over SOAK=200 examples, an hour or so"
	@echo "make gpu-emulated  the compiled kernels on the software GPU, all of it; a table in benchmarks/results"
	@echo "make bench  measure this machine against the peers, in minutes; results and report in outputs/bench"
	@echo "make bench-compare  measure again, in outputs/bench, and fail if a ratio to a peer fell, twice, beyond the noise"
	@echo "make hosts  diffusers' own fast tests beside themselves under guided and fuse; a table in benchmarks/results"
	@echo "make check  ruff, mypy and import-linter"
	@echo "make docs   the documentation, in outputs/site; a warning is an error"
	@echo "make clean  remove the environment and outputs"

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test,check]"
	touch $@

# A thread that waits spins by default, which starves other work on a small machine.
export GOMP_SPINCOUNT ?= 0

demo: $(VENV)/.ready
	$(BIN)/python -m examples.emoji.demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The kernels as compiled, on the software GPU: tests/gpu/README.md. Takes about an hour on two cores.
EMULATED := FASTCFG_SOFTWARE_GPU=90 $(BIN)/python -m pytest -n $(WORKERS)
gpu-emulated: $(VENV)/.ready
	mkdir -p outputs
	$(EMULATED) tests/gpu/emulated --junitxml outputs/gpu-emulated.xml
	$(EMULATED) tests/conformance/test_rules.py tests/kernels/test_layouts.py tests/kernels/test_group_layouts.py \
	  -k "triton or group_layouts" --junitxml outputs/gpu-conformance.xml
	PYTHONPATH=tests $(BIN)/python -m gpu.table benchmarks/results \
	  --tests outputs/gpu-emulated.xml outputs/gpu-conformance.xml

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not export and not hosts"

soak: export SOAK ?= 200
soak: $(VENV)/.ready
	$(BIN)/python -m pytest tests/soak

bench: $(VENV)/.ready
	$(BIN)/fastcfg bench

bench-compare: $(VENV)/.ready
	$(BIN)/fastcfg bench
	$(BIN)/fastcfg bench --compare benchmarks/results outputs/bench --repeat

# A checkout of diffusers, whose fast tests give tiny pipelines and their inputs.
DIFFUSERS ?= outputs/diffusers
hosts: $(VENV)/.ready
	test -d $(DIFFUSERS) || git clone --quiet --depth 1 https://github.com/huggingface/diffusers $(DIFFUSERS)
	$(BIN)/python -m pip install --quiet parameterized requests_mock
	$(BIN)/python -m benchmarks.hosts $(DIFFUSERS)

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) outputs build *.egg-info

.PHONY: docs/rules.md
docs/rules.md: $(VENV)/.ready
	{ printf '# Rules\n\nMade by `fastcfg rules --markdown`.\n\n'; $(BIN)/fastcfg rules --markdown; } > $@.tmp && mv $@.tmp $@

.PHONY: docs/pipelines.md
docs/pipelines.md: $(VENV)/.ready
	$(BIN)/python -m benchmarks.hosts.table > $@.tmp && mv $@.tmp $@
