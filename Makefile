# The habits of this project. Every target makes .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A test run has an end, whatever hangs.
TEST_LIMIT ?= 45m
CRATE_LIMIT ?= 15m
# More than two cores' worth: what takes tests on a broker their time is waiting.
TEST_PROCESSES ?= 3
SOAK_MINUTES ?= 10

CRATE := native/Cargo.toml $(wildcard native/src/*.rs)
# cargo on the crate; where there is none, what is left out.
cargo = @if command -v cargo >/dev/null; then \
  echo "cargo $(1)"; cd native && \
  PYO3_PYTHON=$(abspath $(BIN)/python) timeout --kill-after=30s $(CRATE_LIMIT) cargo $(1); \
  else echo "Left out for want of cargo: cargo $(1)"; fi

.PHONY: help demo test check format bench load soak broker reference wheel docs docs-serve clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

# Everything, or workers alone where only the crate has changed.
$(READY): pyproject.toml $(CRATE)
	@rm -f workers/_native*.so
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable $(if $(filter pyproject.toml,$?),'.[dev]','.' --no-deps)
	@$(BIN)/python -c 'import workers._native' 2>/dev/null || { \
	  cargo check --quiet --all-features --manifest-path native/Cargo.toml; \
	  echo "Workers run in plain Python: workers._native was not built, for want of cargo (1.88 or newer) or for the" \
	    "errors above. Where cargo has come since: touch pyproject.toml"; }
	@touch $@

demo: $(READY)  ## a broker, two workers, a synthetic market, and frames on the screen
	@$(BIN)/workers demo

test: $(READY)  ## the whole suite, on a real broker; it ends with what it left out for want of which program
	$(call cargo,test --quiet)
	timeout --kill-after=30s $(TEST_LIMIT) $(BIN)/python -m pytest -n $(TEST_PROCESSES)

check: $(READY)  ## format, lint, types, which room may import which, and tidiness
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(call cargo,fmt --check)
	$(call cargo,clippy --quiet --all-targets --all-features -- -D warnings)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -n 0 tests/test_tidy.py

format: $(READY)  ## put the code into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(call cargo,fmt)

bench: $(READY)  ## measure, side by side with what others would use
	$(BIN)/python -m benchmarks $(BENCH)

load: $(READY)  ## overload, a database that hangs, workers that are gone: tables and drawings in load-report/
	$(BIN)/python -m benchmarks.load $(LOAD)

soak: $(READY)  ## chaos and hostile records for SOAK_MINUTES each, and every property, with new seeds
	SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python -m pytest -m soak --timeout=0
	HYPOTHESIS_PROFILE="new seeds" $(BIN)/python -m pytest --timeout=0 --ignore=tests/unit/native tests/unit
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest --timeout=0 tests/unit/native

broker: $(READY)  ## an Apache Kafka in the foreground, until Ctrl-C
	@$(BIN)/python -m workers.apps.broker

reference: $(READY)  ## write what the code knows (settings, commands, metrics, ...) into the pages of docs/
	$(BIN)/python docs/generate_reference.py

wheel: $(READY)  ## a wheel with the native lane, for this machine's kind and Python 3.11 or newer, into dist/
	rm -rf build dist/tick_workers-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@$(BIN)/python -m zipfile --list dist/tick_workers-*.whl | grep 'workers/_native.*\.so' >/dev/null || \
	  { rm dist/tick_workers-*.whl; echo "No wheel: without cargo, 1.88 or newer, it has no native lane." >&2; exit 1; }

docs: $(READY)  ## build the documentation into site/, strictly; nothing in it asks another host
	$(BIN)/python docs/build_site.py

docs-serve: docs  ## and show it at http://127.0.0.1:8000/
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

clean:  ## remove what the targets made
	rm -rf $(VENV) build dist site native/target native/Cargo.lock workers/_native*.so .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
