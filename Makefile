# make run       set up and run the main job on the bundled sample
# make test      set up and run the test suite (offline, minutes)
# make test-all  the same with the slow tests
# make check     lint, format and types

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Where no CUDA device is, torch's own index has builds without CUDA's gigabytes; set TORCH_INDEX to
# it ("https://download.pytorch.org/whl/cpu") to save them.
TORCH_INDEX ?=
TORCH_ARGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)
# A test file at a time for each processor; one thread each, for threads of two would wait for each other.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-all check clean

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

test-all: $(VENV)/.installed
	$(PYTEST) -m "slow or not slow"

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ravqa

clean:
	rm -rf $(VENV)
