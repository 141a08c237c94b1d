.DEFAULT_GOAL := help
.PHONY: help quickstart test lint types full

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

quickstart: ## install, name things in photos, train and score osm_nano
	bash scripts/quickstart.sh

test: ## install, lint, check types, run all tests
	bash scripts/test.sh

lint: ## ruff and shellcheck (needs the environment of `make test`)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: ## mypy
	.venv/bin/python -m mypy osm

full: ## the long series that CI leaves out
	bash scripts/full_check.sh
