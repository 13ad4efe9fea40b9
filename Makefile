# Each target sets up what it needs on a machine that has only python3 (3.11 or newer, with venv).
# Nothing is installed outside .venv, except by `make test` and `make chaos` as root: Debian packages (see tests/install_system_packages.sh).

SHELL    := /bin/sh
PYTHON   ?= python3
VENV     := .venv
PY       := $(VENV)/bin/python
PROJECTS := shared edge_agent central console
PIP      := $(PY) -m pip --disable-pip-version-check --no-input --quiet --quiet
UV       ?= uv
ARGS     ?=
BENCH    ?=
CUTS     ?=
N        ?= 20
SEED     ?=
ONLY     ?=
WORKERS  ?= 2
export PYTHONPATH := $(CURDIR)/deploy

# A stamp counts only for this folder and a working interpreter: a copied or moved checkout,
# or a Python that was removed, starts again.
$(shell [ -x $(PY) ] && [ "$$(cat $(VENV)/root 2>/dev/null)" = "$(CURDIR)" ] || rm -f $(VENV)/*.stamp)

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench lint lock venv clean

help:
	@echo "make demo [ARGS=...]     the whole system on this machine; ARGS=--help lists the options"
	@echo "make test [WORKERS=2]    linters, types, SQL, tests: what continuous integration runs"
	@echo "make chaos [N=20] [SEED=n] [ONLY=class,...]  N schedules of faults on real processes"
	@echo "make chaos CUTS=1000 [SEED=n]  power cuts of the device's buffer, simulated"
	@echo "make bench [BENCH=name]  one benchmark; without a name, lists them"
	@echo "make lint                only the static checks of make test"
	@echo "make lock                renew requirements/*.txt (needs uv)"
	@echo "make venv                only set up .venv, with everything that make test needs"
	@echo "make clean               remove .venv and caches"

demo: $(VENV)/demo.stamp
	@exec $(PY) -m scout_demo $(ARGS)

test: $(VENV)/test.stamp
	@sh tests/install_system_packages.sh
	@$(MAKE) --no-print-directory lint
	@exec $(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

chaos: $(VENV)/test.stamp
ifeq ($(CUTS),)
	@sh tests/install_system_packages.sh
	@exec $(PY) -m tests.system.chaos --schedules $(N) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) $(ARGS)
else
	@SCOUT_POWER_CUTS=$(CUTS) SCOUT_POWER_SEED=$(SEED) $(PY) -m pytest -s tests/edge_agent/test_power_cut.py $(ARGS)
endif

bench: $(VENV)/test.stamp
	@if [ -z "$(BENCH)" ]; then \
	  echo "benchmarks: make bench BENCH=<name>, with <name> one of"; \
	  for file in tests/bench/[a-z]*.py; do [ ! -e "$$file" ] || echo "  $$(basename "$$file" .py)"; done; \
	elif [ ! -f "tests/bench/$(BENCH).py" ]; then \
	  echo "make bench: no benchmark '$(BENCH)'; make bench lists them" >&2; exit 2; \
	else \
	  exec $(PY) -m tests.bench.$(BENCH) $(ARGS); \
	fi

lint: $(VENV)/test.stamp
	@echo "== ruff"        && $(PY) -m ruff check . && $(PY) -m ruff format --check .
	@echo "== mypy"        && $(PY) -m mypy
	@echo "== lint-imports" && $(VENV)/bin/lint-imports
	@echo "== sql"         && $(PY) -m tests.lint.sql_lint

venv: $(VENV)/test.stamp

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# `test` contains `demo`, so one environment serves both and a demo after a test installs nothing.
$(VENV)/demo.stamp: requirements/demo.txt $(PROJECTS:%=%/pyproject.toml)
	@if [ -e $(VENV)/test.stamp ] && [ $(VENV)/test.stamp -nt requirements/demo.txt ]; then \
	  touch $@; \
	else \
	  $(MAKE) --no-print-directory SET=demo install && touch $@; \
	fi

$(VENV)/test.stamp: requirements/test.txt $(PROJECTS:%=%/pyproject.toml)
	@$(MAKE) --no-print-directory SET=test install && touch $@ $(VENV)/demo.stamp

.PHONY: install
install: interpreter
	@[ -x $(PY) ] || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); } || { \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@rm -f $(VENV)/*.stamp
	@echo "setting up $(VENV) from requirements/$(SET).txt (once; a minute or two)"
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/$(SET).txt
	@$(PIP) install --no-deps --no-build-isolation --no-index $(PROJECTS:%=--editable ./%)
	@printf %s "$(CURDIR)" > $(VENV)/root

.PHONY: interpreter
interpreter:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "make: no $(PYTHON) found; install Python 3.11 or newer, or say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); Scout needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }

# `test` first: the others take its versions, so that every set agrees.
# No index address, no comment with a path: the files must be the same wherever they are made.
LOCK := $(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header --system-certs
lock:
	@command -v $(UV) >/dev/null || { echo "make lock: needs uv (pip install uv, or UV=/path/to/uv)" >&2; exit 2; }
	$(LOCK) requirements/test.in -o requirements/test.txt
	for set in edge hub console demo lint; do \
	  $(LOCK) -c requirements/test.txt requirements/$$set.in -o requirements/$$set.txt || exit; \
	done
