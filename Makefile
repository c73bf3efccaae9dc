# Every target sets up what it needs: python3 (3.11 or newer, with venv), make and git are enough.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
RUN ?= runs/tiny
ARGS ?=

comma := ,
sources := setup.cfg pyproject.toml $(wildcard constraints/*.txt)
installed := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
latest := .venv-latest
interop := .venv-interop
harness := .venv-eval
tpu := .venv-tpu
code := nlx experiments tests notebooks docs/reference.py
pip := -m pip install --quiet --disable-pip-version-check
extra_pins := $(foreach extra,interop eval,\
  $(if $(findstring $(extra),$(EXTRAS)),--constraint constraints/$(extra).txt))

.DEFAULT_GOAL := help
.PHONY: help setup train test test-latest test-interop test-eval test-tpu check lint format notebooks docs bench results clean

help: ## List these targets.
	@echo 'make TARGET [VARIABLE=...]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  PYTHON=python3.12   the Python that makes the environment'
	@echo '  VENV=.venv          where the environment lives'
	@echo '  EXTRAS=dev,cuda13   what is installed in it: dev, cuda13, tpu, gcs, eval, interop, notebooks'
	@echo '  RUN=runs/tiny       where make train writes; the same RUN again resumes it'
	@echo '  ARGS="..."          further flags for train, any of the tests, bench or results'

setup: $(installed) ## Create the environment; instant when nothing has changed.
	@echo 'nlx is ready in $(VENV).'

train: $(installed) ## Train a small HOPE on real text.
	$(VENV)/bin/python -m experiments.train \
	  --config=experiments/configs/lm.py:hope-tiny --workdir=$(RUN) $(ARGS)

test: $(installed) ## Run the whole suite, doctests included, in parallel.
	$(VENV)/bin/python -m pytest $(ARGS)

test-latest: $(latest)/.installed ## Run the suite with the newest Python here and the newest JAX.
	$(latest)/bin/python -m pytest $(ARGS)

test-interop: ## Compare with torch and transformers, in an environment of their own.
	$(MAKE) --no-print-directory setup VENV=$(interop) EXTRAS=dev,interop
	$(interop)/bin/python -m pytest -m interop tests/interop $(ARGS)

test-eval: ## Run tasks of lm-evaluation-harness, in an environment of their own.
	$(MAKE) --no-print-directory setup VENV=$(harness) EXTRAS=dev,eval
	$(harness)/bin/python -m pytest tests/evaluation/test_harness.py tests/experiments/test_evaluate.py $(ARGS)

test-tpu: ## Compile for TPU slices, without a TPU, in an environment of their own.
	$(MAKE) --no-print-directory setup VENV=$(tpu) EXTRAS=dev,tpu
	$(tpu)/bin/python -m pytest -m tpu_compiler tests/parallel/test_plan.py tests/experiments/test_plan.py $(ARGS)

check: lint test ## Format, lint, types, tests and doctests: what has to pass.

lint: $(installed) ## Check formatting, style, types and shell scripts; change nothing.
	$(VENV)/bin/ruff format --check $(code)
	$(VENV)/bin/ruff check $(code)
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck .ci/run $(wildcard tpu/*.sh)

format: $(installed) ## Format the code and fix what can be fixed.
	$(VENV)/bin/ruff check --fix-only --quiet $(code)
	$(VENV)/bin/ruff format $(code)

notebooks: $(installed) ## Make the .ipynb of each notebook from its source, without outputs.
	$(VENV)/bin/jupytext --quiet --update --to ipynb $(wildcard notebooks/*.py)

docs: $(installed) ## Build the API reference from docstrings, in build/reference.
	$(VENV)/bin/python -m docs.reference

bench: $(installed) ## Measure speed and memory.
	$(VENV)/bin/python -m experiments.bench $(ARGS)

results: $(installed) ## Rebuild the tables and figures of the results.
	$(VENV)/bin/python -m experiments.study --name=all
	$(VENV)/bin/python -m experiments.results $(ARGS)

clean: ## Remove environments, caches and build files; runs/ stays.
	rm -rf $(VENV) $(latest) $(interop) $(harness) $(tpu) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f .coverage .coverage.*
	find $(wildcard $(code)) -name __pycache__ -prune -exec rm -rf {} +

# $(call require_python,PYTHON): says what to do if PYTHON cannot make the environment.
define require_python
	@$(1) -c '' 2>/dev/null || { \
	  echo 'nlx needs Python 3.11 or newer, and `$(1)` does not run:' \
	    'install it, or name another: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "nlx needs Python 3.11 or newer, and \`$(1)\` is $$($(1) -V 2>&1):" \
	    'install a newer one, or name it: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(1) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '`$(1)` has no venv module: install it (Debian, Ubuntu: apt install python3-venv)' \
	    'and run make again.' >&2; exit 1; }
endef

# $(call make_venv,PYTHON,VENV): keeps an environment that runs, makes one that does not.
define make_venv
	@$(2)/bin/python -m pip --version >/dev/null 2>&1 || $(1) -m venv --clear $(2)
endef

# The pins of this Python, if there are any; else what pip finds.
$(installed): $(sources)
	$(call require_python,$(PYTHON))
	@echo 'Setting up $(VENV) with nlx[$(EXTRAS)]: about a minute, once.'
	$(call make_venv,$(PYTHON),$(VENV))
	@pins=constraints/$$($(VENV)/bin/python -c \
	  'import sys; print("py%d%d.txt" % sys.version_info[:2])'); \
	if [ -f "$$pins" ]; then set -- --constraint "$$pins"; \
	else set --; echo "There is no $$pins: installing the newest releases."; fi; \
	$(VENV)/bin/python $(pip) --editable '.[$(EXTRAS)]' "$$@" $(extra_pins)
	@touch $@

# The newest Python that really runs (a shim on PATH may not), and no pins.
find_latest = for v in 3.13 3.12; do \
	for p in python$$v "$$HOME"/.pyenv/versions/$$v*/bin/python$$v "$$(uv python find $$v 2>/dev/null)"; do \
	  if "$$p" -c 'import ensurepip, venv' >/dev/null 2>&1; then echo "$$p"; exit; fi; \
	done; done

$(latest)/.installed: setup.cfg pyproject.toml
	@python=$$($(find_latest)); \
	if [ -z "$$python" ]; then \
	  echo 'make test-latest needs a working Python 3.13 or 3.12, and found none on PATH, in' \
	    '~/.pyenv/versions or with uv: install one (for example: uv python install 3.13).' >&2; \
	  exit 1; \
	fi; \
	echo "Setting up $(latest) with $$("$$python" -V) and the newest releases."; \
	"$$python" -m venv --clear $(latest)
	@$(latest)/bin/python $(pip) --upgrade --editable '.[dev]'
	@touch $@
