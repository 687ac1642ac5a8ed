# Needs Python >= 3.11 and make. README.md has the plain commands, for Windows too.
PYTHON ?= python3
PY := .venv/bin/python

# `make demo SCALE=smoke` walks the same way in small: a tenth of the data, a few updates
SCALE ?= full
DEMO := demo/$(SCALE)
PRETRAIN_smoke := --max_steps 10 --eval_steps 10 --save_steps 10
STAGES_smoke := --options '{"max_steps": 6, "eval_steps": 6, "save_steps": 6, "warmup_steps": 2}'

# tests run in so many processes, of one thread each
WORKERS ?= 2

.PHONY: demo test quick lint clean

demo: .venv/installed
	$(PY) training/make_call_corpus.py --output_dir $(DEMO)/calls --scale $(SCALE)
	$(PY) -m accelerate.commands.launch --cpu training/pretrain.py configs/pretrain/demo.yaml --output_dir $(DEMO)/nest \
		--train_data $(DEMO)/calls/train.jsonl --eval_data validation=$(DEMO)/calls/validation.jsonl $(PRETRAIN_$(SCALE))
	$(PY) training/run_stages.py configs/demo.yaml --output_dir $(DEMO) $(STAGES_$(SCALE))

test: .venv/installed
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile

quick: .venv/installed
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

lint: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.venv/installed: setup.py
	@$(PYTHON) -c "import sys; sys.exit('Python >= 3.11 is needed, this is ' + sys.version.split()[0] + '; set PYTHON=' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
