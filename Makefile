# make demo   six small language models learn from each other; ends with tables and a report (minutes, no GPU)
# make deploy-demo   three organisations and a coordinator on this machine, processes killed on the way (5 minutes)
# make test   the tests
# make lint   ruff and pyright
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-short deploy-demo test lint clean

# make demo ARGS="--seed 1" passes options on to `peertune run`
demo: $(VENV)/installed
	$(BIN)/peertune run demo $(ARGS)

demo-short: $(VENV)/installed
	$(BIN)/peertune run demo --set rounds=1 --set task.test=48 --set budget.warm_start_steps=20 $(ARGS)

deploy-demo: $(VENV)/installed-flare
	$(BIN)/python scripts/deploy_demo.py

# a worker a core, a thread a worker: two threads on a busy core are slower than one
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# The marker file comes last: an interrupted installation is simply done again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "peertune needs Python 3.11 or newer; set PYTHON=/path/to/it")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-flare: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[flare]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,flare,metrics]'
	touch $@

clean:
	rm -rf $(VENV)
