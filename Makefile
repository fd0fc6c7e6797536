# make demo   the whole pipeline on scikit-learn's digits: a submission in minutes, on any machine
# make test   the tests, two at a time, and how much of src they reach
# make lint   ruff

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CONFIG := configs/digits.yaml

.PHONY: demo test lint install clean-demo

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.text: $(VENV)/.installed requirements-text.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-text.txt
	touch $@

demo: install
	$(RUN) 01_prepare_folds.py --config $(CONFIG)
	$(RUN) 02_train_stage1.py --config $(CONFIG)
	$(RUN) 03_train_stage2.py --config $(CONFIG)
	$(RUN) 04_posthoc_calibrate.py --config $(CONFIG)
	$(RUN) 05_predict.py --config $(CONFIG)
	$(RUN) 06_ensemble.py --config $(CONFIG) --out submission.csv

test: $(VENV)/.text
	$(RUN) -m pytest -n 2 --cov=src --cov-report=term:skip-covered

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
