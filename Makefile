# `make demo` and `make test` set up all that they need in $(VENV), on a machine with Python 3.11 and make.
#
# TORCH is what pip installs torch from. The default is PyPI's build, which on Linux is made for CUDA.
#   a smaller one without CUDA:  make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#   another CUDA:                make demo TORCH="torch --index-url https://download.pytorch.org/whl/cu130"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DEVICE ?= cpu
JOBS ?= auto
CHECKPOINT ?= tests/data/ct-w4a16-g128-asym
PROMPT ?= The memory of a computer

BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHOSEN := $(VENV)/.torch

.PHONY: help setup FORCE demo test check coverage xla schemas docs clean

help:
	@echo "make demo      load a 4-bit checkpoint that ships with the repository, and generate"
	@echo "make test      run the tests on all cores (QLOAD_CHECKPOINTS names a folder of further checkpoints)"
	@echo "make check     lint and type-check"
	@echo "make coverage  run the tests, and list the lines that they do not reach"
	@echo "make xla       set up .venv-xla with torch_xla, and run the tests of its backend there"
	@echo "make schemas   write the JSON Schemas of configs into schemas/"
	@echo "make docs      measure and write the made parts of the docs"
	@echo "make clean     remove $(VENV) and $(XLA_VENV)"

setup: $(READY)

# pip takes a torch that is there for any build of its version: another choice needs another environment.
$(CHOSEN): FORCE
	@if [ ! -f $@ ]; then mkdir -p $(VENV); echo "$(TORCH)" > $@; \
	elif [ "$$(cat $@)" != "$(TORCH)" ] && [ "$(origin TORCH)" != file ]; then \
		echo "$(VENV) was made with TORCH=\"$$(cat $@)\": run make clean, or choose another VENV" >&2; exit 1; fi

$(READY): pyproject.toml constraints.txt | $(CHOSEN)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $(READY)

demo: $(READY)
	$(BIN)/qload validate $(CHECKPOINT)
	$(BIN)/qload run $(CHECKPOINT) --device $(DEVICE) --prompt "$(PROMPT)" --max-new-tokens 60

# Each worker computes on one core: with more threads than cores torch takes many times as long. Files go in their own
# order: those that start many processes have few tests, and would be left for one worker at the end. Those processes
# would each compile what is imported, if none were allowed to keep it.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

coverage: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

# torch_xla goes with one version of torch, older than qload's own: pip would refuse the two together.
XLA_VENV ?= .venv-xla
XLA_NEEDS := click gguf msgspec numpy pluggy pydantic pytest rich safetensors transformers

$(XLA_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(XLA_VENV)
	$(XLA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.9.0 torch_xla==2.9.0
	$(XLA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(XLA_NEEDS)
	$(XLA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

xla: $(XLA_VENV)/.ready
	PJRT_DEVICE=CPU CPU_NUM_DEVICES=4 $(XLA_VENV)/bin/python -m pytest tests/xla

schemas: $(READY)
	$(BIN)/qload schema --all schemas

docs: $(READY)
	$(BIN)/python docs/make.py

clean:
	rm -rf $(VENV) $(XLA_VENV)
