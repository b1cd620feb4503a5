# Makes the environment .venv where it is missing or older than pyproject.toml.
# PYTHON may name any Python >= 3.11; PIP_ARGS goes to pip install, as PIP_ARGS=--no-cache-dir.
PYTHON ?= python3
PIP_ARGS ?=

.PHONY: demo test lint slow faults docs

demo: .venv/ready
	.venv/bin/python jobs/search.py --config demo --storage runs --name demo --overwrite

test: .venv/ready
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/faults

slow: .venv/ready
	.venv/bin/python -m pytest -m slow --ignore tests/faults

faults: .venv/ready
	.venv/bin/python -m pytest tests/faults

docs: .venv/ready
	.venv/bin/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("mnist_ray needs Python 3.11 or newer; name one as make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(PIP_ARGS) --quiet --upgrade pip
	.venv/bin/python -m pip install $(PIP_ARGS) --editable '.[dev]'
	touch $@
