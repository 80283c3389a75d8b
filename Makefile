# make demo    real weights before and after INT4 x FP8
# make test    everything that needs no GPU
# make gpu     everything that does: checks, sanitizer, benchmark (on a machine with an H100 or H200)
# Each sets up .venv and builds first; a second run re-uses both.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BUILD  := build/dev
# A compile job takes up to 5 GB.
JOBS   := $(shell $(PYTHON) -c "import os; ram = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9; print(max(1, min(len(os.sched_getaffinity(0)), int(ram / 5))))")

.PHONY: demo test gpu gpu-package setup build wheel fmt lint bench sass docs clean
.DEFAULT_GOAL := build

demo: build
	$(BIN)/python examples/minilm.py

test: build lint
	$(BIN)/python -m pytest

# Without internet, on a library built beforehand: see `make gpu-package`.
gpu:
	$(PYTHON) tools/gpu_run.py

# An importable copy of the package with its library, to carry to a machine with a GPU.
gpu-package: build
	rm -rf build/gpu && mkdir -p build/gpu
	cp -r python/wlib build/gpu/wlib
	cp $(BUILD)/_C.so build/gpu/wlib/
	git describe --always --dirty --abbrev=12 > build/gpu/wlib/COMMIT

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml tools/setup_env.py tools/constraints.txt
	$(PYTHON) tools/setup_env.py $(VENV)
	@touch $@

build: setup
	@$(BIN)/python tools/build.py $(BUILD) --jobs $(JOBS)

wheel: setup
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(BIN)/python -m pip wheel . --no-deps --no-build-isolation --wheel-dir dist

bench: build
	$(BIN)/python -m wlib bench int4fp8

fmt: setup
	$(BIN)/ruff check --fix-only --quiet . ; $(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' | xargs $(BIN)/clang-format -i

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

# What the machine code of every kernel holds, against the committed budget.
sass: build
	$(BIN)/python tools/machine_code.py $(BUILD)/_C.so

docs: build
	PYTHONPATH=$(BUILD) $(BIN)/python tools/support_matrix.py
	$(BIN)/python tools/api_reference.py
	$(BIN)/python tools/picture.py
	PYTHONPATH=$(BUILD) $(BIN)/python tools/bench_figures.py

clean:
	rm -rf build dist
