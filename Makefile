# make demo   prune a real pretrained model, measure it, and say what to do next
# make test   lint, types and every test
# make lint   only lint and types
# make fmt    format the code

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-for-development

.PHONY: demo test lint fmt venv clean

demo: $(STAMP)
	$(BIN)/python tools/demo.py --out demo-out

test: $(STAMP)
	$(BIN)/python tools/check.py

lint: $(STAMP)
	$(BIN)/python tools/check.py lint types

fmt: $(STAMP)
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing optin-fx and its development packages into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf demo-out build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
