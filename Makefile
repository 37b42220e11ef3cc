# `make` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY := $(VENV)/.ready

.PHONY: help run test lint bench dag report verify push clean slurm-profile
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	touch $@

run: $(READY) ## run the workflow on config/config.yaml: data to verdict
	snakemake --cores all

test: $(READY) ## run the test suite
	python -m pytest

lint: $(READY) ## check format, style, types and rules
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check Snakefile workflow/rules
	snakemake --lint

dag: $(READY) ## draw the rule graph
	snakemake --rulegraph mermaid-js

report: $(READY) ## write report.html from finished results
	snakemake --report report.html

verify: $(READY) ## follow every score back to the rows of the data, and compute every number again
	python workflow/scripts/verify.py
	python workflow/scripts/recompute.py

push: $(READY) ## send a run to the hub, privately: make push RUN=quickstart REPO=me/name (token in HF_TOKEN)
	python workflow/scripts/push_to_hub.py --run $(RUN) --repo $(REPO) --seed $(or $(SEED),0)

slurm-profile: ## copy the Slurm profile to where `snakemake --profile slurm` finds it (an older copy is kept)
	install -D --backup=numbered --mode=644 profiles/slurm/profile.v9+.yaml \
	  "$${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake/slurm/profile.v9+.yaml"

clean: ## remove results, logs and caches (not the environment)
	rm -rf results logs benchmarks report.html .snakemake
