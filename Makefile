# make chat | ui | test | parity | browser | golden | clean. Needs Python 3.11 or newer, git and make; the rest is set up here.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python python3.14; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# The MLX builds share files: exactly one is installed, and macOS needs none named.
EXTRA := $(shell if [ "$$(uname -s)" = Darwin ]; then :; \
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then echo cuda13; \
  else echo cpu; fi)
comma := ,
BASE := $(VENV)/.stamp-base
UI := $(VENV)/.stamp-ui
DEV := $(VENV)/.stamp-dev
PARITY := $(VENV)/.stamp-parity
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: chat ui test parity browser golden clean openblas chromium

chat: $(BASE) openblas
	@$(BIN)/dg-mlx chat --model nano

ui: $(UI) openblas
	@$(BIN)/dg-mlx ui --model nano

test: $(DEV) openblas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q

parity: $(PARITY) openblas
	$(BIN)/python -m pytest -q -m parity

browser: $(DEV) openblas chromium
	$(BIN)/python -m pytest -q -m browser

golden: $(PARITY) openblas
	$(BIN)/python tests/golden/make.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "dg-mlx needs Python 3.11 or newer; install it and run make again, or name it: make PYTHON=/path/to/python3." >&2; \
	  exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than 3.11, which dg-mlx needs; name a newer one: make PYTHON=/path/to/python3." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv; install it (Debian: apt-get install python3-venv) and run make again." >&2; \
	  exit 1; }
	@echo "setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml | $(BIN)/python
	@echo "installing dg-mlx$(if $(EXTRA), with MLX for $(EXTRA)): this takes a few minutes"
	@$(PIP) -e ".$(if $(EXTRA),[$(EXTRA)])"
	@touch $@

$(UI): $(BASE)
	@echo "installing what the page needs"
	@$(PIP) -e ".[ui$(if $(EXTRA),$(comma)$(EXTRA))]"
	@touch $@

$(DEV): $(BASE)
	@echo "installing what the tests need"
	@$(PIP) -e ".[dev$(if $(EXTRA),$(comma)$(EXTRA))]"
	@touch $@

$(PARITY): $(DEV)
	@echo "installing torch: this takes a few minutes"
	@$(PIP) -e ".[parity$(comma)dev$(if $(EXTRA),$(comma)$(EXTRA))]"
	@$(PIP) --no-deps mlx-vlm==0.7.10
	@touch $@

# MLX's CPU build is many times faster with OpenBLAS than with the BLAS in its wheel.
openblas:
	@if [ "$(EXTRA)" != cpu ] || $(BIN)/python -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null; then :; \
	elif command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && { echo "installing libopenblas0-pthread"; \
	  { apt-get install -y -qq libopenblas0-pthread || { apt-get update -qq && apt-get install -y -qq libopenblas0-pthread; }; } >/dev/null 2>&1; }; then :; \
	else echo "OpenBLAS is missing, so answers are slow; install it (Debian: sudo apt-get install libopenblas0-pthread)." >&2; fi

# The browser tests drive the system's own Chromium; noise needs a font for every script.
chromium:
	@if command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 \
	  || command -v google-chrome >/dev/null 2>&1; then :; \
	elif command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && { echo "installing chromium"; \
	  { apt-get install -y -qq chromium fonts-noto-cjk || { apt-get update -qq && apt-get install -y -qq chromium fonts-noto-cjk; }; } >/dev/null 2>&1; }; then :; \
	else echo "Chromium is missing; install it (Debian: sudo apt-get install chromium)." >&2; exit 1; fi
