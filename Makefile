# Every target makes .venv by itself when it is missing or older than pyproject.toml.
# A CPU build of torch (smaller): make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3))


VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The newest tritonclient whose bundled perf_analyzer runs on Debian 12's glibc; kept apart from the client proper.
PERF_ANALYZER := tritonclient==2.51.0

.PHONY: demo fleet-demo test test-unit check bench bench-all soak setup format clean

demo: setup
	$(BIN)/tessera-build demo
	$(BIN)/python -m bench.demo

fleet-demo: setup
	$(BIN)/tessera-build demo
	$(BIN)/python -m bench.fleet_demo

# Half of the tests with a server wait for processes to start and end: two at a time take half as long.
# A file is one process's, the longest files first: tests/triton/conftest.py says which.
test: test-unit
	$(BIN)/python -m pytest tests/triton tests/gpu --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The bundles that many tests need are built first; then a process for each core, with one thread.
# In the order of their names: adapters, bench and builder are the longest.
test-unit: setup
	$(BIN)/python -m tests.samples.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup
	$(BIN)/tessera-build demo
	$(BIN)/python -m bench quick

bench-all: setup
	$(BIN)/tessera-build demo
	$(BIN)/python -m bench all

# Mixed traffic with faults: make soak MINUTES=60
soak: setup
	$(BIN)/tessera-build demo
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),2)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Tessera needs Python 3.11 or 3.12; none was found. Install one, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { echo "Tessera needs Python 3.11 or 3.12; $(PYTHON) is another. Try: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet "pip>=25.1"
	$(BIN)/pip install --quiet --group dev --editable ".[client,grpc,build,ray,serve]"
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/perf_analyzer "$(PERF_ANALYZER)"
	@touch $@

clean:
	rm -rf $(VENV) bundles out
