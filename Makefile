# Needs Python 3.11 or newer, git and make. Everything else goes into .venv at the root.
#
#   make demo     one minute: does a model that was taught to say “forgot” still hold the answer?
#   make test     lint, types, import direction, tests
#   make fmt      format and fix
#   make bench    how to run the benchmarks
#   make clean    remove .venv and caches

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UNFINISHED := $(VENV)/.unfinished
PACKAGES := interp probes interventions studies

# Two BLAS threads on two busy cores can be far slower than one: parallelism comes from processes.
test demo: export OMP_NUM_THREADS := 1
test demo: export MKL_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := test
.PHONY: demo test fmt bench clean

demo: $(READY)
	@$(BIN)/interp demo

test: $(READY)
	@echo "== ruff check";  $(BIN)/ruff check --quiet --output-format concise .
	@echo "== ruff format"; $(BIN)/ruff format --check --quiet .
	@echo "== mypy";        $(BIN)/mypy
	@echo "== imports";     $(BIN)/lint-imports --no-logo
	@echo "== pytest";      $(BIN)/python -m pytest -q -n 2 $(PYTEST_ARGS)

fmt: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)
	@echo "Benchmarks take minutes and want a quiet machine:"
	@echo "  $(BIN)/python -m benchmarks --help"
	@echo "  $(BIN)/python -m benchmarks"

clean:
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(PACKAGES) tests -type d -name __pycache__ -prune -exec rm -rf {} +

# .unfinished is there while files are being put in place, so an installation that was killed is begun
# again from nothing instead of being taken for a finished one. One that pip gave up (no network, say)
# was rolled back by pip, and is continued.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "interp needs Python 3.11 or newer, but there is no '$(PYTHON)': name one with make PYTHON=..." >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "interp needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" -c \
	    'import platform; print(platform.python_version())'): name another with make PYTHON=..." >&2; \
	  exit 1; }
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "== making $(VENV) (once, a few minutes)"; \
	  "$(PYTHON)" -m venv --clear $(VENV); \
	else \
	  echo "== updating $(VENV)"; \
	fi
	@touch $(UNFINISHED)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[all,dev]" || { \
	  rm -f $(UNFINISHED); exit 1; }
	@rm -f $(UNFINISHED)
	@touch $@
