# make demo and make test each need nothing but Python, a C++ compiler and make.
# A GNU make older than 4 would do as well.

PYTHON ?= python3
CONFIG ?= configs/dfkd_vitdet.py
VENV ?= .venv
# One process a core; the tests themselves run on one thread.
PYTEST_ARGS ?= -n auto --dist loadfile

run := $(VENV)/bin/python

# Figures are written to files; no display is needed.
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format clean

help:
	@echo 'make demo [CONFIG=configs/...]  set up, make the digits, distil with CONFIG, report (default $(CONFIG))'
	@echo 'make test [PYTEST_ARGS=...]     set up, run the tests'
	@echo 'make setup [PYTHON=python3.11]  build the environment in $(VENV), or do nothing if it stands'
	@echo 'make lint                       ruff, check and format'
	@echo 'make format                     let ruff mend what it can'
	@echo 'make clean                      remove build products and caches; data, runs and environment stay'

setup:
	@$(PYTHON) tools/setup_env.py --venv $(VENV)

demo: setup
	@$(run) tools/dataset_converters/digits_detection.py
	@$(run) tools/dataset_converters/digits_classification.py
	@$(run) tools/train.py $(CONFIG) --overwrite
	@$(run) tools/report.py $(CONFIG)

test: setup
	@$(run) -m pytest $(PYTEST_ARGS)

lint: setup
	@$(run) -m ruff check .
	@$(run) -m ruff format --check .

format: setup
	@$(run) -m ruff check --fix .
	@$(run) -m ruff format .

clean:
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	@find mmdfkd tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +
