# make run        set up what a run needs, and run the main job on the bundled sample
# make demo       set up what the demo needs, and show it in the browser; make demo DEMO="animals --port 8000"
#                 shows a collection of your own, and gives other options
# make test       set up everything, and run the quick tests (offline, minutes)
# make test-slow  only the slow tests: kill loops, servers, browsers, built wheels
# make test-all   both
# make check      lint, format and types
# make mutate     change what differs from main at random, and list what the tests miss;
#                 make mutate MUTATE="--sample 100 ravqa/metrics" says what
# make docs       build the documentation as a site, into site/
# make hooks      have git check what is committed (.pre-commit-config.yaml)
# make clean      remove the environment

# The first of these that is one of Python 3.11 to 3.13; or make run PYTHON=...
PYTHONS := python3.11 python3.12 python3.13 python3
IN_RANGE := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
PYTHON ?= $(shell for p in $(PYTHONS); do $$p $(IN_RANGE) && echo $$p && break; done)
NO_PYTHON = ravqa needs Python 3.11 to 3.13, which $(or $(PYTHON),none of $(PYTHONS)) is not: \
	install one, or name it with PYTHON=
VENV := .venv
BIN := $(VENV)/bin
# Without a CUDA device, set TORCH_INDEX to torch's own index ("https://download.pytorch.org/whl/cpu"):
# its builds lack the gigabytes of CUDA libraries.
TORCH_INDEX ?=
TORCH_ARGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)
# Two processes, each with one test file at a time: more would import the libraries again, and their
# threads would compete. Compiled modules are kept for the processes that tests start.
PYTEST := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -q -n logical --maxprocesses 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

CSRC := ravqa/indexes/compressed/csrc

.PHONY: run demo test test-slow test-all check mutate docs hooks clean

# What a run needs. torch first and alone, in the version of constraints.txt: nothing installed later
# may replace it.
$(VENV)/.run: pyproject.toml constraints.txt requirements-sample.txt
	$(if $(shell $(or $(PYTHON),false) $(IN_RANGE) && echo yes),,$(error $(NO_PYTHON)))
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e '.[cpu,sample]'
	$(PIP) -c constraints.txt --no-deps -r requirements-sample.txt
	touch $@

$(VENV)/.demo: $(VENV)/.run
	$(PIP) -c constraints.txt -e '.[cpu,sample,demo]'
	touch $@

# And what tests, checks and the documentation need.
$(VENV)/.installed: $(VENV)/.run
	$(PIP) -c constraints.txt -e '.[cpu,sample,test,dev]'
	touch $@

# Compiled by the installation, and again when they change; nothing fails where there is no compiler.
$(CSRC)/kernels.so: hatch_build.py $(wildcard $(CSRC)/*.[ch]) | $(VENV)/.run
	-$(BIN)/python hatch_build.py

run: $(VENV)/.run $(CSRC)/kernels.so
	HF_HUB_OFFLINE=1 $(BIN)/python run_vqa.py --dataset okvqa --controls none,oracle,wrong-image --on-error skip

DEMO ?=
demo: $(VENV)/.demo $(CSRC)/kernels.so
	HF_HUB_OFFLINE=1 $(BIN)/ravqa demo $(DEMO)

test: $(VENV)/.installed $(CSRC)/kernels.so
	$(PYTEST)

test-slow: $(VENV)/.installed $(CSRC)/kernels.so
	$(PYTEST) -m slow

test-all: $(VENV)/.installed $(CSRC)/kernels.so
	$(PYTEST) -m "slow or not slow" --hypothesis-profile=thorough

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ravqa

MUTATE ?=
mutate: $(VENV)/.installed
	$(BIN)/python tests/mutate.py $(MUTATE)

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

hooks: $(VENV)/.installed
	$(BIN)/pre-commit install --install-hooks

clean:
	rm -rf $(VENV)
