# make demo, make test, make lint, make docs: each makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install lint format test demo docs bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,docs]"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

demo: install
	$(BIN)/python examples/digits_demo.py

docs: install
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: install
	$(BIN)/python examples/benchmarks/planar.py

clean:
	rm -rf .venv docs/_build docs/gallery demo
