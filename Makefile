# make run        set up and run the main job on the bundled sample
# make test       set up and run the quick tests (offline, minutes)
# make test-slow  the slow tests alone: kill loops, servers, browsers, built wheels
# make test-all   both
# make check      lint, format and types
# make clean      remove the environment

# The first of these that is there; or make PYTHON=...
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Where no CUDA device is, torch's own index has builds without CUDA's gigabytes; set TORCH_INDEX to
# it ("https://download.pytorch.org/whl/cpu") to save them.
TORCH_INDEX ?=
TORCH_ARGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)
# Two processes with a test file at a time: each more would import the libraries once more, and threads
# of theirs would wait for each other. Compiled modules are kept, for the processes that tests start.
PYTEST := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -q -n logical --maxprocesses 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-slow test-all check clean

# torch first and by itself, as constraints.txt has it: nothing installed later may replace it.
$(VENV)/.installed: pyproject.toml constraints.txt requirements-sample.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e '.[cpu,sample,test,dev]'
	$(PIP) -c constraints.txt --no-deps -r requirements-sample.txt
	touch $@

run: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python run_vqa.py --dataset okvqa --controls none,oracle,wrong-image

test: $(VENV)/.installed
	$(PYTEST)

test-slow: $(VENV)/.installed
	$(PYTEST) -m slow

test-all: $(VENV)/.installed
	$(PYTEST) -m "slow or not slow"

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ravqa

clean:
	rm -rf $(VENV)
