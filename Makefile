# The two commands: `make quickstart` and `make test`. Each sets up what is missing.
.PHONY: quickstart tutorials bench test test-all lint format clean
.DELETE_ON_ERROR:

VENV := .venv
export PYTHON
PY := $(VENV)/bin/python
# The networks are small: one thread a process lets two test workers share two cores.
WORKERS ?= 2
BENCHMARKS ?= $(filter-out benchmarks/side_by_side.py,$(wildcard benchmarks/*.py))
PYTEST := XLA_FLAGS="--xla_cpu_multi_thread_eigen=false $(XLA_FLAGS)" $(PY) -m pytest -n $(WORKERS) --dist loadscope

quickstart: $(VENV)/.tutorials
	$(PY) tutorials/quickstart.py

tutorials: $(VENV)/.tutorials
	@set -e; for script in tutorials/*.py; do echo "== $$script"; $(PY) $$script; done

bench: $(VENV)/.dev
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(PY) $$script; done

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev
	$(PYTEST)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist tutorials/output benchmarks/output

$(VENV)/bin/python:
	sh .ci/make_venv.sh $(VENV)

# A stamp says which extras are installed; a changed pyproject.toml installs again.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@
