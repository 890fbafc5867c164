# The environment is made once and again whenever the lock or the packaging changes.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: sweep test test-faults test-docker lint lock clean

sweep: $(READY)
	$(BIN)/python sweeps/full_grid.py --config sweeps/demo.yaml

test: $(READY)
	$(BIN)/python -m pytest tests --ignore tests/faults --numprocesses 2 --dist loadfile

test-faults: $(READY)
	$(BIN)/python -m pytest tests/faults

# Builds the image, and brings up the stack of docker-compose.yml: minutes, and 15 GB.
test-docker: $(READY)
	$(BIN)/python -m pytest tests/deploy -m docker

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 sweep"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# OpenCV's build with windows needs libraries that a server has not.
COMPILE := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	--python-version 3.11 pyproject.toml
lock:
	$(COMPILE) --extra dev --output-file requirements.lock
	$(COMPILE) --extra server --constraints requirements.lock --output-file requirements-server.lock \
		--overrides <(echo 'opencv-python ; sys_platform == "none"')

clean:
	rm -rf $(VENV) build *.egg-info
