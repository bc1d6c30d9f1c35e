# `make` alone lists the targets. Each one sets up its own environment in .venv, once, and again when pyproject.toml
# or constraints.txt change. Needs make and python3 (3.10 or newer, with venv).
# Override: make test PYTHON=python3.12 VENV=.venv312 ARGS="-m slow"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Processes that share the tests, a thread each; 0: none beside pytest's own, which a debugger needs.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) (PyTorch is a large download; this happens once)"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP) ## draw pictures with the built-in model
	rm -rf demo/pictures
	$(BIN)/stylenat generate --seeds 0-63 --truncation 0.7 --grid --output demo/pictures
	@echo
	@echo "The grid: $$(ls demo/pictures/grid.png)"
	@echo "The built-in model draws churches at 32 px; it was trained here, on drawings. For faces convert the"
	@echo "authors' file, as the README says."

test: $(STAMP) ## run the tests, without those marked slow or gpu
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(STAMP) ## check the code's rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, the demo and the caches
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
