# The two commands: `make quickstart` and `make test`. Each sets up what is missing.
.PHONY: quickstart tutorials docs figures bench test test-all test-lowest test-distribution lint format clean
.DELETE_ON_ERROR:

VENV := .venv
LOWEST := .venv-lowest
export PYTHON
PY := $(VENV)/bin/python
# The networks are small: one thread a process lets two test workers share two cores.
# NumPy's products would wait for each other's threads in a loop that takes a core.
# Neighbours stay together, as they share fixtures; an idle worker steals half the rest.
WORKERS ?= 2
BENCHMARKS ?= $(filter-out benchmarks/side_by_side.py,$(wildcard benchmarks/*.py))
# Of other packages' plugins only xdist: for those of hypothesis and jaxtyping, each
# process would rewrite the assertions of all of their modules.
PYTEST = PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 OPENBLAS_NUM_THREADS=1 \
	XLA_FLAGS="--xla_cpu_multi_thread_eigen=false $(COMPILE) $(XLA_FLAGS)" \
	$(PY) -m pytest -p xdist -n $(WORKERS) --dist worksteal
# What old versions break first: the rules, NumPyro's private names, the file formats.
CORE ?= tests/rules tests/handlers tests/nn/test_contract.py tests/nn/test_sites.py \
	tests/infer/compiled/test_compiled_mcmc.py tests/infer/compiled/test_compiled_svi.py \
	tests/infer/kernels/test_flat_nuts.py tests/infer/losses/test_explained.py \
	tests/prediction/test_predict.py \
	tests/infer/resumable/test_resumable.py tests/posterior/test_datatree.py \
	tests/posterior/test_saving.py tests/posterior/test_plots.py tests/scores

quickstart: $(VENV)/.tutorials
	$(PY) tutorials/quickstart.py

tutorials: $(VENV)/.tutorials
	@set -e; for script in tutorials/*.py; do echo "== $$script"; $(PY) $$script; done

# Warnings are errors: a name that is missing, a link that leads nowhere.
docs: $(VENV)/.docs
	$(PY) -m mkdocs build --strict
	$(PY) .ci/check_links.py site

# The figures that the pages show: the tutorials', and the README's.
figures: tutorials
	$(PY) docs/figures.py

bench: $(VENV)/.dev
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(PY) $$script; done

# Its programs are small and run once, so compiling takes longer than running: LLVM
# optimises nothing. `make test-all`, which also samples for long, runs optimised code.
test: COMPILE = --xla_backend_optimization_level=0
test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev
	$(PYTEST)

# Builds a wheel and an sdist and installs them in an empty environment.
test-distribution: $(VENV)/.dev
	$(PY) -m pytest tests/test_distribution.py

# Python 3.12 and every dependency at the lowest version that pyproject.toml declares.
test-lowest: PY := $(LOWEST)/bin/python
test-lowest: $(LOWEST)/.test
	$(PY) -c "import pyrox_ppl; pyrox_ppl.show_versions()"
	$(PYTEST) -m "not slow" $(CORE)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) build dist site tutorials/output benchmarks/output

$(VENV)/bin/python:
	sh .ci/make_venv.sh $(VENV)

# A stamp says which extras are installed; a changed pyproject.toml installs again.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

# Made anew each time: what an earlier install left would not be what pip picks now.
$(LOWEST)/.test: pyproject.toml .ci/lowest.txt
	sh .ci/make_venv.sh $(LOWEST) 3.12
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .ci/lowest.txt --editable ".[test]"
	touch $@
