# Two commands set up a fresh machine (Python 3.11 to 3.13, make, a C compiler) and use it:
#   make demo   make the environment, then run the main job on an example
#   make test   make the environment, then run all tests
#   make benchmark   time the cpu target against PyTorch (an hour)
#   make planted-bugs   see which of the known bugs the verifier finds (half an hour)
.PHONY: demo test lint format goldens planted-bugs benchmark clean

PYTHON ?= python3
BIN := .venv/bin
SOURCES := kir frontends backends agent tests benchmarks examples

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,triton,cute,agent,postgres,ray,dev]'
	touch $@

demo: .venv/ready
	$(BIN)/python examples/demo.py

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# rewrite the expected outputs after a change that is meant
goldens: .venv/ready
	$(BIN)/python -m pytest tests/test_errors.py tests/test_rewrite_cases.py tests/test_docs.py \
		tests/test_replay.py tests/test_syntax_tables.py --update-goldens

# plant known bugs in copies of the tree, one at a time
planted-bugs: .venv/ready
	$(BIN)/python -m tests.planted.run --json benchmarks/results/planted_bugs.json

# the cpu's suite, on a machine that does nothing else; JAX=python of an environment with JAX
benchmark: .venv/ready
	$(BIN)/python -m benchmarks.cpu --peers eager compile max-autotune jax \
		--jax-python $(or $(JAX),$(BIN)/python) --json benchmarks/results/cpu.json \
		--markdown docs/benchmarks-cpu.md --plot docs/benchmarks-cpu.svg

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
