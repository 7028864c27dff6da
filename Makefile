# make demo    draw digits with a model of this repository, in seconds
# make train   quick start: create a virtual environment, train on the digits (a few minutes on two CPU cores)
# make test    create the environment if needed, run the tests
# make test-long   the tests that start, kill and wait for programs for tens of seconds
# make test-other-processor   the numerical tests, with the instructions of an older processor
# make lint    run ruff
# make report  docs/report/index.html and the table of README.md: the models of the zoo compared
# make bench   ratios to the common alternatives, in minutes (ARGS=--full for all)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

NUMERICAL := $(addprefix tests/test_,$(addsuffix .py,process losses ddpm ema sampling networks metrics features \
	inception classifier likelihood vdm_likelihood unconditional_pipeline class_conditional_pipeline shared_pipelines))

DEMO := --model model_cards/zoo/class-conditional-mnist --sampler dpmsolver++ --num_inference_steps 10 \
	--guidance_scale 2 --num_samples 140 --output outputs/demo.png

.PHONY: demo train test test-long test-other-processor lint report bench

demo: $(VENV)/.ready
	$(BIN)/python eval/generate.py $(DEMO) $(ARGS)

train: $(VENV)/.ready
	$(BIN)/accelerate launch training/train_unconditional.py $(ARGS)

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(ARGS)

test-long: $(VENV)/.ready
	$(BIN)/python -m pytest -m long $(ARGS)

test-other-processor: $(VENV)/.ready
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(NUMERICAL) $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .

report: $(VENV)/.ready
	$(BIN)/python eval/compare.py --models model_cards/zoo/* --draw 16 --output_dir build/report $(ARGS)
	mkdir -p docs/report
	cp build/report/report.html docs/report/index.html
	$(BIN)/python benchmarks/zoo_page.py

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/bench.py $(ARGS)

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
