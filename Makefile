# Everything installs into .venv; nothing else is needed than Python 3.11 or newer, make and a C compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-real test test-fast docs lint bench gpu-check install clean

demo: install
	$(BIN)/python -m demo $(if $(TASK_DATA),--task-data $(TASK_DATA))

# Google's Gemma 3 270M from the package index, under the Gemma terms: docs/guides/real-model.md
demo-real: install
	$(BIN)/python -m demo.real $(if $(TASK_DATA),--task-data $(TASK_DATA))

PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

test: install lint docs
	$(PYTEST) --durations=25

# without what takes more than two seconds, lint and docs: under four minutes on two cores
test-fast: install
	$(PYTEST) -m "not slow"

# no network: the theme takes no fonts or scripts from elsewhere
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.run

# With the Python that has CUDA's PyTorch: .venv holds a CPU build.
gpu-check:
	PYTHONPATH=.:kernels:train HF_HUB_OFFLINE=1 $(PYTHON) -m benchmarks.gpu.gpu_check $(ARGUMENTS)

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, found " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# for Triton's published schema alone: what it asks for beside it clashes with ONNX's libraries
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps tritonclient
	touch $@

clean:
	rm -rf build .venv
