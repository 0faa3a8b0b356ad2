# make demo   prune a real pretrained model, measure it, and say what to do next
# make test   lint, types and every test
# make lint   only lint and types
# make fmt    format the code

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-for-development
PYTEST_ARGS ?=

# One thread for each test process: the tests run in parallel, and small tensors gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: demo test lint fmt venv clean

demo: $(STAMP)
	$(BIN)/python -m tools.demo --out demo-out

test: $(STAMP)
	$(BIN)/python -m tools.check

lint: $(STAMP)
	$(BIN)/python -m tools.check lint types

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
