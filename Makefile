# make train   quick start: create a virtual environment, train on the digits (a few minutes on two CPU cores)
# make test    create the environment if needed, run the tests
# make lint    run ruff
# make bench   run all benchmarks against the common alternatives

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test lint bench

train: $(VENV)/.ready
	$(BIN)/accelerate launch training/train_unconditional.py $(ARGS)

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .

bench: $(VENV)/.ready
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
