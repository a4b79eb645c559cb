# Works from a clean clone with nothing but python3 and make: every target sets up .venv first if it has to.
SHELL := /bin/bash -o pipefail
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-browser docs lint format bench lab dashboard lock refresh clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

# Two waiting torch threads on a busy machine slow each other down many times over; this makes them wait quietly.
export OMP_WAIT_POLICY := passive

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(STAMP) ## make .venv with the locked packages

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

demo: $(STAMP) ## prune a network trained on digits and write reports/; ARGS="--data cifar10 --language tr"
	$(BIN)/cleanai demo $(ARGS)

test: lint docs ## lint, types, documentation, tests, doctests and notebooks; what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env notebooks/

test-browser: $(STAMP) ## the notebooks in JupyterLab in an installed Chromium or Chrome; screenshots in reports/browser
	BROWSER_REQUIRED=1 BROWSER_SCREENSHOTS=reports/browser $(BIN)/python -m pytest tests/test_browser.py

docs: $(STAMP) ## the documentation site in docs/_build/html; a warning or a broken link fails
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d docs/_build/doctrees . docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

lint: $(STAMP) ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/ty check

format: $(STAMP) ## rewrite the files in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## how long analysis and slicing take
	$(BIN)/python benchmarks/analysis.py

lab: $(STAMP) ## open JupyterLab on the first notebook; ARGS="--no-browser --port 8888"
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb $(ARGS)

dashboard: $(STAMP) ## the comparison of criteria as a page with controls (Voilà); ARGS="--no-browser --port 8866"
	$(BIN)/voila notebooks/02_importance_comparison.ipynb $(ARGS)

refresh: $(STAMP) ## run the notebooks and both demos anew and store what they show (the second demo needs CIFAR-10)
	$(BIN)/python notebooks/refresh.py
	$(BIN)/python docs/refresh.py --measure

# Needs no stamp: the lock is what the stamp depends on.
lock: ## resolve requirements.lock anew
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --generate-hashes --no-emit-index-url --no-annotate \
		--no-header pyproject.toml -o requirements.lock

clean: ## remove .venv and caches
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache .hypothesis
