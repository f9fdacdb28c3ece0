PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 \
	--cov=sigdeg --cov-report=term:skip-covered

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## Draw digits, distil a small teacher and write an HTML report, in a few minutes
	rm -rf runs/demo runs/demo-digits
	$(BIN)/sigdeg sample mnist -n 64 --steps 5 --out runs/demo-digits
	$(BIN)/sigdeg run mixture1d --preset quick --out runs/demo
	@echo "Look at $(CURDIR)/runs/demo-digits/samples.png: 64 digits, 5 network calls each"
	@echo "Open $(CURDIR)/runs/demo/report.html"

test: lint ## Lint, then run the tests that take seconds
	$(PYTEST)

test-all: lint ## Lint, then run every test, the slow ones too
	$(PYTEST) -m ""

bench: $(READY) ## Measure speed and write results/benchmarks.json
	$(BIN)/python -m benchmarks

lint: $(READY) ## Check formatting, style, types and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(READY) ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment, caches and build leftovers; runs/ stays
	rm -rf .venv build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@echo "Installing into .venv (once; a minute or more)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	@touch $@
