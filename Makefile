# make demo   set-up, a phantom data set, and the whole line on it: ends with the path of a report
# make test   set-up and every test
# make check  ruff and the type checker, as pre-commit runs them
PYTHON ?= python3
# Another torch build: make TORCH="torch==2.6.0" or TORCH=/path/to/wheel.whl
TORCH ?= torch==2.13.0
DEMO_MINUTES ?= 5
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.demo
	rm -rf demo
	$(BIN)/scansmith phantom demo/phantom --patients 80 --slices 12
	$(BIN)/scansmith run demo/phantom/scans demo/run --minutes $(DEMO_MINUTES)
	@echo "Open demo/run/report.html"
	@echo "$(CURDIR)/demo/run/report.html"

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build *.egg-info src/*.egg-info

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("scansmith needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	PIP_CONSTRAINT=$(CURDIR)/$(VENV)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	PIP_CONSTRAINT=$(CURDIR)/$(VENV)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,dev]"
	touch $@ $(VENV)/.demo
