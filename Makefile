# Two commands for a reader: `make lab` opens the course, `make test` checks all of it.
# Needs Python 3.11 or newer, and nothing else. Another interpreter: make lab PYTHON=python3.12

PYTHON ?= python3
JOBS ?= auto
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)
NBVAL := -p tests.notebooks.nbval_hooks --nbval --nbval-current-env --nbval-cell-timeout=120 \
	--nbval-sanitize-with tests/notebooks/sanitize.cfg --dist loadfile
# CUTLASS headers and pycute, without the packages that this wheel asks for: nothing here needs them.
CUTLASS = $(BIN)/python -m pip install --no-deps -c constraints.txt nvidia-cutlass

.PHONY: help lab test units notebooks ledger browser-test lint kernels pictures clean

help:
	@echo "make lab           set up .venv and open the course in JupyterLab"
	@echo "make test          set up, then the whole CPU test-suite (units, notebooks, ledger)"
	@echo "make kernels       compile every kernel that this machine's compilers can"
	@echo "make browser-test  drive the widgets in a headless Chromium"
	@echo "make lint          ruff and mypy"
	@echo "make clean         remove .venv and caches; exercises and progress stay"

lab: .venv/.course
	@$(BIN)/python -m kda_lab.cli lab

test: units notebooks ledger

units: .venv/.dev
	$(PYTEST) -m "not browser" --dist worksteal tests

notebooks: .venv/.dev
	$(PYTEST) $(NBVAL) notebooks

ledger: .venv/.course
	$(BIN)/python -m kda_lab.cli ledger check

browser-test: .venv/.dev
	$(BIN)/python -m pytest -m browser tests

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

kernels: .venv/.course
	$(CUTLASS)
	$(BIN)/python -m kda_lab.cli build

pictures: .venv/.course
	$(BIN)/python -c "from kda_lab import palette, widgets; palette.use(); \
		widgets.StateEvolution(token=7).figure().savefig('notebooks/pictures/state.png', dpi=120)"

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written when an install has ended well, so an interrupted one starts over.
.venv/.course: .venv/.made pyproject.toml constraints.txt
	@echo "Installing the course into .venv: about 1.5 GB, a minute or two."
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.course
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(CUTLASS)
	@touch $@

.venv/.made:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) --version 2>&1) is too old, the course needs 3.11 or newer. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; echo "make: $(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@
