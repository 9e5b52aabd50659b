# Every target sets up what it needs, from a fresh clone with nothing but Python 3.11+ on the PATH.

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint format setup oracles matrix lowest clean distclean

VENV ?= .venv
PYTHON ?=
ARGS ?=
MATRIX ?= python3.11 python3.12 python3.13 python3.14

PY := $(VENV)/bin/python
MEMBERS := core registry sdk $(patsubst %/,%,$(dir $(wildcard plugins/*/pyproject.toml))) tests/conformance
MANIFESTS := pyproject.toml $(addsuffix /pyproject.toml,$(MEMBERS))
PIP := $(PY) -m pip --disable-pip-version-check --no-input install --quiet
UV := $(PY) -m uv pip install --quiet --python $(PY)

# To use polyattn, and to work on it. Inside the environment, so that they vanish with it.
TO_RUN := $(VENV)/.polyattn-run
TO_TEST := $(VENV)/.polyattn-test

help:  ## list the targets
	@echo 'make TARGET [PYTHON=python3.12] [ARGS="…"]'
	@sed -n 's/^\([a-z]*\):.*##/\1	/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(TO_RUN)  ## compare mechanisms on handwritten digits, write a page
	@mkdir -p build
	$(VENV)/bin/polyattn compare digits --html build/compare-digits.html $(ARGS)

test: lint  ## lint, then every test; ARGS="-k flash" goes to pytest
	$(PY) -m pytest $(ARGS)

bench: $(TO_RUN)  ## run the benchmarks; ARGS goes to benchmarks/run.py
	$(PY) benchmarks/run.py $(ARGS)

lint: $(TO_TEST)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(TO_TEST)  ## rewrite the code as lint wants it, as far as that is mechanical
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

setup: $(TO_TEST)  ## only set up .venv

oracles: $(TO_TEST)  ## add PyTorch and others, with which the tests marked `oracle` compare
	@# By pip: it takes the build that this machine is set up for, uv the one with CUDA.
	$(PIP) -r tests/oracles.txt

matrix:  ## the tests with each Python of MATRIX that is there
	@for python in $(MATRIX); do \
	    if "$$python" -c '' >/dev/null 2>&1; then \
	        name=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	        echo "Python $$name"; \
	        $(MAKE) VENV=build/venv-$$name PYTHON="$$python" setup && \
	            build/venv-$$name/bin/python -m pytest $(ARGS) || exit 1; \
	    else echo "$$python is not there"; fi; \
	done

lowest: VENV := build/venv-lowest
lowest:  ## the tests with the oldest versions that the requirements admit
	@$(MAKE) VENV=$(VENV) setup
	$(VENV)/bin/python -m uv pip install --python $(VENV)/bin/python --upgrade --resolution lowest-direct \
	    $(addprefix -e ./,$(filter-out sdk,$(MEMBERS))) -e './sdk[compare]' -e '.[test]'
	$(VENV)/bin/python -m pytest $(ARGS)

clean:  ## remove what building and testing left
	rm -rf build dist htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name '.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf $(VENV)

$(PY):
	@found=; for python in $(if $(PYTHON),'$(PYTHON)',python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo 'No Python 3.11 or later$(if $(PYTHON), at $(PYTHON), on the PATH). Say where: make PYTHON=/path/to/python3.12 …' >&2; \
	    exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    echo "$$found cannot make environments: on Debian and Ubuntu, install the package python3-venv." >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(VENV)

# EXTRAS: those of the workspace to install; all distributions are editable.
define install
	@$(PY) -m uv --version >/dev/null 2>&1 || $(PIP) uv || true; \
	echo 'Installing polyattn[$(EXTRAS)] into $(VENV)'; \
	if ! $(UV) --compile-bytecode --editable '.[$(EXTRAS)]'; then \
	    echo 'That did not work with uv: trying pip, which takes longer'; \
	    $(PIP) '.[$(EXTRAS)]' && $(PIP) --no-deps $(addprefix --editable ./,$(MEMBERS)); \
	fi
endef

$(TO_RUN): EXTRAS := all
$(TO_RUN): $(MANIFESTS) | $(PY)
	$(install)
	@touch $@

$(TO_TEST): EXTRAS := all,test,dev
$(TO_TEST): $(MANIFESTS) | $(PY)
	$(install)
	@touch $@ $(TO_RUN)
