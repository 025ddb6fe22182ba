# Every target installs what it needs into .venv by itself.
PYTHON ?= python3
VENV   := .venv
# Hundreds of processes are started: what they import is compiled once, not by each of them.
export PYTHONDONTWRITEBYTECODE =
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help up test test-slow test-all check format bench wheel clean

help: ## what there is
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

test-all: test test-slow ## everything, also what is slow

# Most of what is slow waits; what loads the machine, or measures it, has it to itself.
test-slow: $(VENV)/.ready ## what is slow, or needs a browser or a Docker engine
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "(slow or browser) and not alone" --timeout 240 $(ARGS)
	$(BIN)/python -m pytest -m alone --timeout 240 $(ARGS)

check: $(VENV)/.ready ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

format: $(VENV)/.ready ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready ## figures of this machine, one JSON line each
	$(BIN)/python -m bench $(ARGS)

wheel: $(VENV)/.ready ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## remove what the targets made
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
