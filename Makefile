# Needs Python >= 3.11 and make. README.md has the plain commands, for Windows too.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test quick lint clean

demo: .venv/installed
	$(PY) training/make_demo_data.py --output_dir demo/data --hours 1.5 --overwrite
	$(PY) -m accelerate.commands.launch --cpu training/pretrain.py configs/pretrain/demo.yaml

test: .venv/installed
	$(PY) -m pytest -q

quick: .venv/installed
	$(PY) -m pytest -q -m "not slow"

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
