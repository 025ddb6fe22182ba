# Every target installs its requirements into .venv.
PYTHON ?= python3
VENV   := .venv
# Tests start hundreds of processes: compile their imports once, not in each process.
export PYTHONDONTWRITEBYTECODE =
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help up test test-slow test-all interop-bevygap check docs format bench soak mutants wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml uv.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv sync --quiet --frozen --all-extras --inexact --active
	touch $@

up: $(VENV)/.ready ## the whole system on this machine; Ctrl-C stops it
	$(BIN)/tipoff up $(ARGS)

test: $(VENV)/.ready ## the fast tests (a real nats-server; neither Docker nor a browser)
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not slow and not browser" $(ARGS)

test-all: test test-slow ## all tests, including the slow ones

# Most slow tests only wait, so they run in parallel; tests that load or measure the machine run one at a time. So do
# browsers: each container that a Docker test starts changes this machine's network, and Chromium then drops connections.
test-slow: $(VENV)/.ready ## the slow tests, and those that need a browser or a Docker engine
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not alone and not browser" --timeout 240 $(ARGS)
	$(BIN)/python -m pytest -m "alone or browser" --timeout 240 $(ARGS)

# Needs Rust. The first build takes 5 to 25 minutes and 1.1 GB: INTEROP_TARGET=/elsewhere keeps it between checkouts.
INTEROP_TARGET ?= $(CURDIR)/build/interop-bevygap
interop-bevygap: $(VENV)/.ready ## a Bevy game with bevygap's own plugins, built from crates.io, plays through tipoff
	cd tests/interop/bevygap && CARGO_TARGET_DIR=$(INTEROP_TARGET) cargo build --locked
	INTEROP_BEVYGAP=$(INTEROP_TARGET)/debug $(BIN)/python -m pytest --timeout 240 tests/interop/bevygap $(ARGS)

check: $(VENV)/.ready ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

docs: $(VENV)/.ready ## build the documentation into build/site and check its links
	$(BIN)/python docs/make_site.py

format: $(VENV)/.ready ## format the code and fix lint with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready ## measure this machine, one JSON line per figure
	$(BIN)/python -m bench $(ARGS)

# MINUTES=30 SEED=7 repeats a run; ARGS="--profile trusted", see `python -m tests.soak --help`.
soak: $(VENV)/.ready ## churn players through the whole stack while faults are injected: MINUTES=5
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) $(ARGS)

# The tool lies beside .venv: nothing else imports it.
.mutants/.ready: tests/mutants/requirements.txt tests/mutants/changes.py $(VENV)/.ready
	$(BIN)/uv pip install --quiet --python $(VENV) --no-deps --target .mutants/tools -r tests/mutants/requirements.txt
	PYTHONPATH=.mutants/tools $(BIN)/python -m pytest -q -p no:cacheprovider tests/mutants
	touch $@

# MODULE may name several modules or folders, with commas between them. AGAIN=1 tries what survived in the last run.
comma := ,
mutants: .mutants/.ready ## change one line at a time, see whether the fast tests notice: MODULE=path SAMPLE=50 SEED=7
	PYTHONPATH=.mutants/tools nice -n 5 $(BIN)/python -m tests.mutants $(subst $(comma), ,$(MODULE)) $(if $(SAMPLE),--sample $(SAMPLE)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(AGAIN),--again) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

wheel: $(VENV)/.ready ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## remove everything that the targets made
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .mutants
