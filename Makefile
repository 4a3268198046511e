# Two commands for a fresh Debian machine with Python 3.11 or newer (venv and headers) and a C++ compiler:
#   make demo   install into .venv, write a study, run the main job on it, print where the report is
#   make test   the same environment, then lint, types and tests
PYTHON ?= python3
VENV ?= .venv
DEMO ?= build/demo
BIN = $(VENV)/bin
JOBS ?= 2

.PHONY: demo test lint types clean

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/orthokernels phantom --seed 2000000 --out $(DEMO)/study
	$(BIN)/orthokernels run $(DEMO)/study --out $(DEMO)/result

# Training forks its data loaders, and OpenVINO (2026.4), once loaded, can end a process at a fork: they do not meet.
test: $(VENV)/installed lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --ignore=tests/training
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) tests/training

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy orthokernels bench edge export

# Installed anew when what is built or required changes, or a package is added; other Python files are picked up as
# they are.
PACKAGES = $(shell find orthokernels bench edge export -name __init__.py)
$(VENV)/installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*/*) $(PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build
