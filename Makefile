# What a developer does every day. `make` alone lists it. Everything runs in .venv, which the first target makes.

.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help serve demo check test test-fast bench faults breakages lock wheels clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-10s %s\n' "$$name" "$$text"; done

$(BIN)/ruff: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt -r requirements-dev.txt
	@touch $@

serve: $(BIN)/ruff  ## start the service on 127.0.0.1:8000; Ctrl-C ends it
	$(BIN)/gunicorn wsgi:app

demo: $(BIN)/ruff  ## beside `make serve`: a page that counts its visits, on http://127.0.0.1:8080
	$(BIN)/python -m http.server 8080 --bind 127.0.0.1 --directory docs/demo

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

lock: $(BIN)/ruff  ## write requirements.lock anew, after a pin in requirements.txt has changed
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --constraint requirements.txt --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --quiet --output-file requirements.lock
	@sed -i '1i # The service alone, with all that its packages need and the hashes of their files; `make lock` writes it.' requirements.lock

wheels: $(BIN)/ruff  ## see that everything installs without a compiler: Python 3.11 to 3.14, x86-64 and aarch64
	@for python in 3.11 3.12 3.13 3.14; do for machine in x86_64 aarch64; do \
	  $(BIN)/pip download --quiet --dest build/wheels --only-binary=:all: --implementation cp --python-version $$python \
	    --platform manylinux_2_28_$$machine --platform manylinux_2_17_$$machine --platform manylinux2014_$$machine \
	    --requirement requirements.txt || exit 1; echo "Python $$python on $$machine: wheels alone"; done; done

clean:  ## remove what tests and builds leave behind; never data/
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* benchmark*.json
