# What a developer does every day. `make` alone lists it. Everything runs in .venv, which the first target makes.

.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help serve check test test-fast bench faults breakages clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-10s %s\n' "$$name" "$$text"; done

$(BIN)/ruff: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt -r requirements-dev.txt
	@touch $@

serve: $(BIN)/ruff  ## start the service on 127.0.0.1:8000; Ctrl-C ends it
	$(BIN)/gunicorn wsgi:app

check: $(BIN)/ruff  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: $(BIN)/ruff  ## the whole suite, as the README has it
	$(BIN)/pytest

test-fast: $(BIN)/ruff  ## the tests that need no servers or hardly any time, under a minute
	$(BIN)/pytest --no-cov -q -m "not slow"

bench: $(BIN)/ruff  ## requests a second against webdis and gthread (needs wrk and webdis; about five minutes)
	$(BIN)/python -m tests.performance.worker

faults: $(BIN)/ruff  ## a tenth of the fault campaign; `python -m tests.faults` is all of it
	$(BIN)/python -m tests.faults --scale 0.1

breakages: $(BIN)/ruff  ## break the code on purpose; each named test must fail
	$(BIN)/python -m tests.breakages

clean:  ## remove what tests and builds leave behind; never data/
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* benchmark*.json
