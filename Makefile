# `make race` and `make test` set everything up in .venv and run; nothing else is needed but Python 3.11+ and make.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: race test stubs lint bench clean

race: .venv/ready
	$(PY) -m schuss race digits --preset quick

test: .venv/ready lint
	$(PY) -m pytest -n auto

stubs: .venv/ready
	$(PY) tools/stubs.py
	$(PY) tools/readme.py

lint: .venv/ready
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright

bench: .venv/ready
	$(PY) -m pip install --quiet -c constraints.txt -e ".[peers]"
	$(PY) -m schuss bench

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} is too old: 3.11 or newer is needed. Try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
