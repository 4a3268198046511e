# Commands for a fresh Debian machine with Python 3.11 or newer (venv and headers) and a C++ compiler:
#   make demo   install into .venv, write a study, run the main job on it, print where the report is
#   make test   the same environment, then lint, types and tests
# and with dcmtk besides:
#   make edge-demo   the appliance on loopback, a phantom pushed to it, what came out and where to look (KEEP=1 to go on)
PYTHON ?= python3
VENV ?= .venv
DEMO ?= build/demo
EDGE_DEMO ?= build/edge-demo
EDGE_BUNDLE ?= build/edge-bundle
SBOM ?= build/sbom.json
BIN = $(VENV)/bin
WEIGHTS = orthokernels/models/demo
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20

.PHONY: demo edge-demo sbom test lint types clean

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/orthokernels phantom --seed 2000000 --out $(DEMO)/study
	$(BIN)/orthokernels run $(DEMO)/study --out $(DEMO)/result

edge-demo: $(VENV)/installed $(EDGE_BUNDLE)/manifest.json
	$(BIN)/orthokernels edge demo --bundle $(EDGE_BUNDLE) --out $(EDGE_DEMO) $(if $(KEEP),--keep)

# The knee's part of the demo weights, in fp32, is enough to show the loop; made once.
$(EDGE_BUNDLE)/manifest.json: | $(VENV)/installed
	rm -rf $(EDGE_BUNDLE) $(EDGE_BUNDLE)-weights
	mkdir -p $(EDGE_BUNDLE)-weights
	cp $(filter-out %/README.md $(foreach joint,ankle shoulder,$(wildcard $(WEIGHTS)/*$(joint)*)),$(wildcard $(WEIGHTS)/*)) $(EDGE_BUNDLE)-weights
	$(BIN)/orthokernels export bundle --weights $(EDGE_BUNDLE)-weights --forms fp32 --studies 1 --out $(EDGE_BUNDLE)

# What an installed appliance is made of, as CycloneDX JSON, from an environment that holds nothing else.
sbom: $(VENV)/installed
	rm -rf $(SBOM).env
	$(PYTHON) -m venv $(SBOM).env
	$(SBOM).env/bin/pip install --quiet --constraint constraints.txt '.[edge]'
	$(SBOM).env/bin/pip uninstall --quiet --yes pip setuptools
	$(BIN)/python edge/packaging/sbom.py $(SBOM).env/bin/python $(SBOM)
	rm -rf $(SBOM).env

# Training forks its data loaders, and OpenVINO (2026.4), once loaded, can end a process at a fork: they do not meet.
test: $(VENV)/installed lint types
	$(PYTEST) --ignore=tests/training
	$(PYTEST) tests/training

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy orthokernels bench edge export

# Installed anew when what is built or required changes, or a package is added; other Python files are picked up as
# they are. What builds it is in the environment, not in one of its own that is new each time: so only what changed is
# compiled again.
BUILDERS = 'cmake>=3.18' 'ninja>=1.11' 'pybind11>=2.13' 'scikit-build-core>=0.10'
PACKAGES = $(shell find orthokernels bench edge export -name __init__.py)
$(VENV)/installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*/*) $(PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(BUILDERS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build
