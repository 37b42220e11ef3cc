# `make` lists the targets.
SHELL := /bin/bash
# the first that is there and of a version that the lock is for; `make PYTHON=... run` takes another
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$each -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
	&& command -v $$each && break; done)
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY := $(VENV)/.ready

.PHONY: help run test lint bench dag slow report verify push faults coverage mutation audit clean slurm-profile docs
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): requirements.txt
	@test -n "$(PYTHON)" || { echo "elkflow needs Python 3.11 to 3.14 with venv: apt install python3 python3-venv," \
	  "brew install python@3.13, or name one: make PYTHON=/path/to/python3 run" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON) ($$($(PYTHON) --version))"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	touch $@

run: $(READY) ## run the workflow on config/config.yaml: data to verdict
	snakemake --cores all

test: $(READY) ## run the test suite
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile  # tiny models: a process for each core, of one thread

slow: $(READY) ## run the tests that take minutes: a real Slurm, an environment for every rule, a cache between workflows
	ELKFLOW_TEST_SLOW=1 OMP_NUM_THREADS=1 python -m pytest tests/slurm tests/portability tests/conda

lint: $(READY) ## check format, style, types and rules
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check Snakefile workflow/rules
	snakemake --lint

bench: $(READY) ## measure extraction, probes, data and PPO on this machine: results/bench/*.json, and a table
	PYTHONPATH=workflow/scripts python bench/hiddens_speed.py
	PYTHONPATH=workflow/scripts python bench/probes_speed.py
	PYTHONPATH=workflow/scripts python bench/data_speed.py
	PYTHONPATH=workflow/scripts python bench/ppo_speed.py
	PYTHONPATH=workflow/scripts python bench/ppo_curves.py
	PYTHONPATH=workflow/scripts python bench/ppo_quality.py
	PYTHONPATH=workflow/scripts python bench/speed_table.py

dag: $(READY) ## draw the rule graph
	snakemake --rulegraph mermaid-js

report: $(READY) ## write report.html from finished results
	snakemake --report report.html

verify: $(READY) ## follow every score back to the rows of the data, and compute every number again
	python workflow/scripts/verify.py
	python workflow/scripts/recompute.py

push: $(READY) ## send a run to the hub, privately: make push RUN=quickstart REPO=me/name (token in HF_TOKEN)
	python workflow/scripts/push_model.py --run $(RUN) --repo $(REPO) --seed $(or $(SEED),0)

slurm-profile: ## copy the Slurm profile to where `snakemake --profile slurm` finds it (an older copy is kept)
	install -D --backup=numbered --mode=644 profiles/slurm/profile.v9+.yaml \
	  "$${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake/slurm/profile.v9+.yaml"

faults: $(READY) ## kill, starve and damage whole tiny workflows 300 times (hours); FAULTS=1: one chain of some 35
	ELKFLOW_FAULTS=$(or $(FAULTS),300) OMP_NUM_THREADS=1 python -m pytest --capture=no tests/faults/test_workflow.py

coverage: $(READY) ## lines of the library that the fast tests run; fails below 90 %
	OMP_NUM_THREADS=1 python -m pytest tests/unit --cov --cov-report=term --cov-fail-under=90

mutation: $(READY) ## mutation testing of the mathematics (an hour); MODULES="ppo.objective": of that module; SURVIVORS=1: of what survived last time
	uv run --no-project --python $(VENV)/bin/python --with cosmic-ray==8.7.0 \
		python tests/mutation/run.py $(MODULES) $(if $(SURVIVORS),--survivors)

docs: $(READY) ## build the site from docs/ into site/; fails on a link or anchor that leads nowhere
	uv run --no-project --isolated --python $(VENV)/bin/python --with-requirements docs/requirements.txt mkdocs build

audit: $(READY) ## compare the lock with published security advisories; fails where a package cannot be looked up
	uv tool run pip-audit --strict --requirement requirements.txt --no-deps --disable-pip

clean: ## remove results, logs and caches (not the environment)
	rm -rf results logs benchmarks report.html .snakemake
