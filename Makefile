# make run CONFIG=configs/x.yaml   01 … 06 in order, to the report. Also: SET="train.epochs=3",
#             FOLDS=0 (a one-fold baseline), OUT=submission.csv, ARGS=--overwrite for every script
# make install   .venv with the versions of tests/requirements.lock; data/raw and data/weights
# make demo   the whole pipeline on scikit-learn's digits: a submission in minutes, on any machine
# make test   the tests, two at a time
# make cover  the same, and how much of src they reach; takes about half as long again
# make lint   ruff
# make lock   write down the versions that are installed, once tests pass with newer ones

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
LOCK := tests/requirements.lock

.PHONY: run demo test cover lint lock install clean-demo

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt $(LOCK)
	@mkdir -p data/raw data/weights
	$(PYTHON) -m venv $(VENV)
	@echo "the next takes minutes and is silent"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -c $(LOCK)
	@touch $@
	@echo "installed. Next: source $(VENV)/bin/activate, then make demo, or your own competition:"
	@echo "  python 01_prepare_folds.py --inspect data/raw/my_competition.zip"

$(VENV)/.text: $(VENV)/.installed requirements-text.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-text.txt -c $(LOCK)
	touch $@

# 01 … 06; stops where one refuses, and goes on there when it is run again
run: OPTIONS = --config $(CONFIG) $(if $(SET),--set $(SET)) $(ARGS)
run: SOME = $(if $(FOLDS),--folds $(FOLDS))
run: install
	@test -n "$(CONFIG)" || { echo "make run needs CONFIG=configs/<yours>.yaml"; exit 2; }
	$(RUN) 01_prepare_folds.py $(OPTIONS)
	$(RUN) 02_train_stage1.py $(OPTIONS) $(SOME)
	$(RUN) 03_train_stage2.py $(OPTIONS) $(SOME)
	$(RUN) 04_posthoc_calibrate.py $(OPTIONS) $(SOME)
	$(RUN) 05_predict.py $(OPTIONS) $(SOME)
	$(RUN) 06_ensemble.py $(OPTIONS) $(SOME) $(if $(OUT),--out $(OUT))

demo: CONFIG := configs/digits.yaml
demo: OUT := submission.csv
demo: run

test: $(VENV)/.text
	$(RUN) -m pytest -n 2 --dist worksteal

cover: $(VENV)/.text
	$(RUN) -m pytest -n 2 --dist worksteal --cov=src --cov-report=term:skip-covered

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lock: $(VENV)/.text
	grep '^#' $(LOCK) > $(LOCK).new
	$(VENV)/bin/pip freeze --all --exclude pip >> $(LOCK).new
	mv $(LOCK).new $(LOCK)
