# The two commands of the README are `make demo` and `make test`. Each sets up what it needs first, in .venv, and
# skips what is there. PYTHON=/path/to/python3.11 chooses the Python, ARGS="..." goes to the command itself.

SETUP := @sh tools/setup_env/run.sh
PY := .venv/bin/python
# Tests run in one process a core; WORKERS=0 runs them in this one (for a debugger, or a single test).
WORKERS ?= logical
PYTEST := @$(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: help demo test test-quick test-slow test-all test-lower-bounds lint format docs setup lock wheel clean

help:
	@echo 'make demo       train the LiDAR segmenter with and without clustering, print the table, draw the pictures'
	@echo 'make test       the fast tests'
	@echo 'make test-quick  the kernels and the rules of the house, in about a minute'
	@echo 'make test-slow  the tests that take more than ten seconds each;  make test-all  both'
	@echo 'make test-lower-bounds  tests with the oldest versions that are promised, in an environment of its own'
	@echo 'make lint       ruff and mypy;  make format  lets ruff fix what it can'
	@echo 'make docs       the documentation, into site/'
	@echo 'make setup      everything that the others need, and nothing else'
	@echo 'make lock       write requirements/constraints.txt and hashes.txt from .venv'
	@echo 'make wheel      a wheel with configs and tools, into dist/'
	@echo 'make clean      remove built files (not .venv, not work_dirs)'

demo:
	$(SETUP) host
	@$(PY) tools/demo.py $(ARGS)

test:
	$(SETUP) test
	$(PYTEST) -m 'not slow' $(ARGS)

# What a change breaks first: the kernels on hand-computed cases, validation, the rooms of the house.
QUICK := tests/test_core tests/test_registry.py tests/test_package/test_import_direction.py \
	tests/test_package/test_licenses.py $(addprefix tests/test_functional/test_, distances.py gather.py kmeans.py \
	kmedoids.py metrics.py sinkhorn.py subclasses.py transport.py input_validation.py)

test-quick:
	$(SETUP) test
	$(PYTEST) -m 'not slow' $(QUICK) $(ARGS)

test-slow:
	$(SETUP) test
	$(PYTEST) -m slow $(ARGS)

test-all:
	$(SETUP) test
	$(PYTEST) $(ARGS)

# The environment takes some GB in work_dirs/lower_bounds.
OLDEST_PYTHON ?= python3.10
test-lower-bounds:
	$(SETUP) test
	@$(PY) tests/lower_bounds.py --python $(OLDEST_PYTHON) --out work_dirs/lower_bounds $(ARGS)

# mypy reads the types of torch and NumPy, so they have to be there.
lint:
	$(SETUP) types
	@$(PY) -m ruff check . $(ARGS)
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format:
	$(SETUP) lint
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs:
	$(SETUP) docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

setup:
	$(SETUP) host test lint docs

lock:
	@$(PY) tools/setup_env --lock

wheel:
	$(SETUP) host
	@$(PY) -m pip wheel . --no-deps --no-build-isolation -w dist

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
