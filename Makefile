# Every target sets up what it needs in .venv; nothing else is installed by hand.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT ?= circle.png

.PHONY: demo test check bench docs wheel recipe clean

demo: .venv/installed  ## draw a picture with the model that ships here
	$(BIN)/lading generate "a red circle on a white background" --guidance-scale 3 --steps 25 --out $(OUT)

test: check  ## lint, types and all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: .venv/developer  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/developer  ## measure; tables go to docs/benchmarks.md
	$(BIN)/python -m bench

docs: .venv/documented  ## build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

recipe: .venv/installed  ## train the model that ships here again
	$(BIN)/python -m recipes.shapes

wheel: .venv/developer  ## build dist/
	$(BIN)/python -m build

clean:
	rm -rf .venv site dist build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/developer: .venv/installed
	$(INSTALL) --editable ".[dev,train]"
	touch $@

.venv/documented: .venv/installed
	$(INSTALL) --editable ".[docs]"
	touch $@
