# What people and CI type. Every target makes its own environment in .venv first; the second time that costs nothing.
#
#   make demo FILES=~/Pictures    files and folders of your own; a path with spaces: FILES="'My Pictures'"
#   make test ARGS='-k drainer'   further words for pytest
#   make bench ARGS=--json        further words for bridge bench
#   make chaos SECONDS=600 SEED=7 ARGS='--broker rabbitmq'    the seed repeats a run; without one it is drawn and printed
#   make chaos SECONDS=600         its seed also draws broker, standby, pgbouncer, pg_cron, small disk, bundles
#   PYTHON=python3.13 make test   the interpreter that .venv is made with

FILES ?=
ARGS ?=
JOBS ?= 3
SECONDS ?= 60
SEED ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
# The last line of a target's own program stays the last line.
MAKEFLAGS += --no-print-directory
.PHONY: help demo up test bench chaos check check-style check-types check-layers check-sql check-repository clean env-demo env-dev

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: env-demo  ## run the whole stack on the sample files, or on FILES=...; ends by itself
	@$(BIN)/python -m bridge demo $(FILES)

up: env-demo  ## the same stack, left running until Ctrl-C
	@$(BIN)/python -m bridge up $(ARGS)

test: env-dev  ## the whole test suite against real servers
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=20 $(ARGS)

check: check-style check-types check-layers check-sql check-repository  ## every linter, type and layer check; changes nothing

bench: env-dev  ## measure against plain Celery on this machine
	@$(BIN)/python -m bridge bench $(ARGS)

chaos: env-dev  ## faults by chance under load for SECONDS=60, from SEED; every promise is checked afterwards
	@PYTHONPATH=tests $(BIN)/python -m laboratory --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean:  ## remove .venv, caches and build results; data of the local servers stays
	rm -rf .venv .matrix build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

check-style: env-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: env-dev
	$(BIN)/mypy bridge tasks scripts

check-layers: env-dev
	$(BIN)/lint-imports

check-sql: env-dev
	$(BIN)/python scripts/check_sql.py

# What no linter knows: sizes, versions, and plpgsql_check over every function.
check-repository: env-dev
	$(BIN)/python -m pytest -q tests/test_repository.py

env-demo:
	@scripts/environment demo

env-dev:
	@scripts/environment dev
