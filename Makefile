# make serve   train three digit tasks on the embedded backbone and serve them
# make test    every check and test
PYTHON ?= python3
VENV ?= .venv
PORT ?= 3000
HOST ?= 127.0.0.1
BACKBONE = vit_digits_patch8_32
WEIGHTS = lspt_serve/models/weights/$(BACKBONE).safetensors
TASKS = digit parity loop
BIN = $(VENV)/bin
OWN_GRAPH = grep -qs '"$(BACKBONE)"' graph/graph.json
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DELETE_ON_ERROR:
.PHONY: help serve quickstart test check format bench-quick prove-quick clean
.SUFFIXES:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: quickstart ## train the quickstart's tasks if need be, then serve them (PORT=3000, HOST=127.0.0.1)
	@$(BIN)/python examples/digits/serve.py --host $(HOST) --port $(PORT)

quickstart: $(TASKS:%=bundles/%/bundle.json) build/linear/digit/bundle.json graph/graph.json

test: $(VENV)/dev $(VENV)/tritonserver/ready ## every check and test
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test

check: $(VENV)/dev ## format, lint, types and imports: seconds
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

format: $(VENV)/dev ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-quick: $(VENV)/train ## the benchmarks of serving, rough and small: minutes; nothing is written
	$(BIN)/python benchmarks/bench_decode.py --quick
	$(BIN)/python benchmarks/bench_engines.py --quick
	$(BIN)/python benchmarks/bench_beside.py --quick
	$(BIN)/python benchmarks/bench_tasks.py --quick
	$(BIN)/python benchmarks/bench_folders.py --quick
	$(BIN)/python benchmarks/bench_gpu.py --quick

prove-quick: $(VENV)/train ## the proofs of reliability, rough and small: minutes; nothing is written
	$(BIN)/python benchmarks/prove_load.py --quick
	$(BIN)/python benchmarks/prove_excess.py --quick
	$(BIN)/python benchmarks/prove_peers.py --quick
	$(BIN)/python benchmarks/prove_faults.py --quick
	$(BIN)/python benchmarks/prove_attack.py --quick

clean: ## delete what the quickstart wrote; all else stays
	rm -rf $(TASKS:%=bundles/%) $(TASKS:%=bundles/%.run) build/digits build/linear
	@if $(OWN_GRAPH); then rm -rf graph; fi
	@rmdir bundles build 2>/dev/null || true

# The environment: serving, training and the examples; then what development needs.
$(VENV)/train: pyproject.toml constraints.txt
	@echo "installing the packages (about 6 GB, torch with CUDA most of it) into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip
	$(PIP) --editable '.[train,openvino,int8,triton,examples]'
	@touch $@

$(VENV)/dev: $(VENV)/train
	$(PIP) --editable '.[datasets,signing,tracing]' --group dev
	@touch $@

# A tritonserver for the tests, where there is one for this machine; its python wants an older numpy.
$(VENV)/tritonserver/ready: requirements-tritonserver.txt $(VENV)/dev
	@echo "installing a tritonserver for the tests (370 MB)"
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip --disable-pip-version-check install --quiet --requirement $< || rm -rf $(@D)/lib
	@touch $@

# The quickstart: real scans as class folders, three bundles, a linear probe beside them, one graph.
build/digits/ready: $(VENV)/train examples/digits/prepare.py examples/digits/split.py
	$(BIN)/python examples/digits/prepare.py --out build/digits
	@touch $@

bundles/%/bundle.json: build/digits/ready $(WEIGHTS)
	@$(BIN)/lspt train --backbone $(BACKBONE) --data build/digits/$* --out bundles/$* \
	  --option num_prompts=8 --epochs 20 --batch-size 32 --overwrite

build/linear/%/bundle.json: build/digits/ready $(WEIGHTS)
	@$(BIN)/lspt train --backbone $(BACKBONE) --data build/digits/$* --out build/linear/$* \
	  --method linear --epochs 200 --batch-size 32 --lr 0.01 --overwrite

graph/graph.json: $(VENV)/train $(WEIGHTS)
	@if [ -e $@ ] && ! $(OWN_GRAPH); then \
	  echo "graph/ is of another backbone; serve it by lspt serve, or move it away" >&2; exit 2; fi
	@$(BIN)/lspt export --backbone $(BACKBONE) --out graph --overwrite
