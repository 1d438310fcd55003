# Every verb once; `make help` explains them. CI (.ci/run) runs nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

UV_VERSION := 0.13.9
UV := .venv-uv/bin/uv
BIN := .venv/bin
SYNCED := .venv/.synced
IMAGE := build/protos.binpb
BASE_PYTHON ?= python3

# The interpreter is the machine's own: a downloaded one could not load Debian's libraries.
export UV_PYTHON_DOWNLOADS := never

# More arguments for every pytest run, e.g. `make unit PYTEST="-k lease -x"`.
PYTEST ?=

.PHONY: help
help: ## explain the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- installing ---------------------------------------------------------------------------------

.PHONY: setup
setup: system $(SYNCED) ## install everything: Debian's packages (as root) and the locked Python workspace

.PHONY: system
system: ## install Debian's packages: etcd, libvirt, QEMU, compilers (as root)
	@echo "== Debian packages: lab/install-debian.sh"
	@if [ "$$(id -u)" != 0 ]; then echo "Debian packages can be installed by root only: run \`make setup\` as root" >&2; exit 1; fi
	@lab/install-debian.sh || { echo "lab/install-debian.sh failed, its words are above: repair apt (network, sources), then \`make setup\` again" >&2; exit 1; }

# uv from PyPI into an environment of its own: nothing of it is needed on the machine beforehand.
$(UV):
	@echo "== uv $(UV_VERSION) into .venv-uv"
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: install python3, or name it with BASE_PYTHON=..." >&2; exit 1; }
	@$(BASE_PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; } \
	  || { echo "Python's venv module is missing: \`apt-get install python3-venv\` as root, then again" >&2; exit 1; }
	@rm -rf .venv-uv && $(BASE_PYTHON) -m venv .venv-uv
	@.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)" \
	  || { echo "uv $(UV_VERSION) could not be had from PyPI: check the network and pip's configuration, then again" >&2; exit 1; }

$(SYNCED): uv.lock pyproject.toml $(wildcard */pyproject.toml services/*/pyproject.toml) | $(UV)
	@echo "== Python packages of uv.lock into .venv"
	@$(UV) sync --frozen --quiet || { echo "uv sync failed, its words are above; libvirt-python is built from source and needs Debian's packages: \`make setup\` as root" >&2; exit 1; }
	@touch $@

# --- generated code -----------------------------------------------------------------------------

.PHONY: gen
gen: $(SYNCED) ## generate protos/gen and protos/stubs from the .proto files
	@$(BIN)/python protos/generate.py

.PHONY: gen-check
gen-check: $(SYNCED) ## fail when the generated code is not what the .proto files say
	@$(BIN)/python protos/generate.py --check

.PHONY: lint-protos
lint-protos: $(SYNCED) ## buf lint, buf format and buf breaking
	@mkdir -p build
	@$(BIN)/python protos/generate.py --image $(IMAGE)
	@$(BIN)/buf lint $(IMAGE) --config buf.yaml --path remuda || { echo "buf lint refuses the .proto files, see above" >&2; exit 1; }
	@$(BIN)/buf format --path protos/remuda --diff --exit-code || { echo "badly formatted .proto files: run \`make fmt\`" >&2; exit 1; }
	@$(BIN)/python protos/breaking.py $(IMAGE)

.PHONY: docs
docs: $(SYNCED) ## fill the generated parts of the documents from the code
	@$(BIN)/python docs/render.py

.PHONY: fmt
fmt: $(SYNCED) ## format Python and .proto files
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/buf format --path protos/remuda --write

# --- checking and testing -----------------------------------------------------------------------

.PHONY: check
check: gen-check lint-protos lint types rules ## all static checks: gen-check lint-protos lint types rules

.PHONY: lint
lint: $(SYNCED) ## ruff: format and rules
	@$(BIN)/ruff format --check --quiet . || { echo "badly formatted: run \`make fmt\`" >&2; exit 1; }
	@$(BIN)/ruff check --quiet . || { echo "ruff refuses the code, see above; \`make fmt\` repairs what it can" >&2; exit 1; }

.PHONY: types
types: $(SYNCED) ## mypy --strict over everything, tests and generated code too
	@$(BIN)/mypy || { echo "mypy refuses the code, see above" >&2; exit 1; }

.PHONY: rules
rules: $(SYNCED) ## rules of the tree as tests: layout, comments, policy, errors, documents
	@.ci/suite repo $(PYTEST)

.PHONY: unit
unit: $(SYNCED) ## unit tests: no processes, no network
	@.ci/suite unit $(PYTEST)

.PHONY: contract
contract: $(SYNCED) ## contract tests: one suite per interface, on every implementation
	@.ci/suite contract $(PYTEST)

.PHONY: integration
integration: $(SYNCED) ## integration tests: real etcd, services in processes, fake hypervisor
	@.ci/suite integration $(PYTEST)

.PHONY: e2e
e2e: $(SYNCED) ## end-to-end tests: a lab with real libvirt and guests (as root)
	@if [ "$$(id -u)" != 0 ]; then echo "the lab makes namespaces and bridges: run \`make e2e\` as root" >&2; exit 1; fi
	@.ci/suite e2e $(PYTEST)

.PHONY: reliability
reliability: $(SYNCED) ## every crash in the middle of a move, and docs/reliability.md from what became of them (as root)
	@rm -f docs/reliability.jsonl
	@REMUDA_FAULT_ROWS=docs/reliability.jsonl $(BIN)/pytest tests/e2e/crashes $(PYTEST)
	@$(BIN)/python docs/render.py

.PHONY: test
test: ## everything but the demo, each part timed: setup check unit contract integration e2e
	@.ci/parts install check unit contract integration e2e

# --- measuring ----------------------------------------------------------------------------------

.PHONY: bench-images
bench-images: setup ## transfers, snapshots, launches beside raw tools, into docs/performance.md (as root)
	@$(BIN)/remuda-bench images --json docs/performance/images.json
	@$(BIN)/python docs/render.py

.PHONY: bench-migration
bench-migration: setup ## live migration beside plain virsh migrate, into docs/performance.md (as root)
	@$(BIN)/remuda-bench migration --runs 7 --json docs/performance/migration.json
	@$(BIN)/python docs/render.py

# --- a cluster to look at -----------------------------------------------------------------------

.PHONY: demo
demo: setup ## a mesh, a guest launched and live-migrated, everything taken down again (as root)
	@$(BIN)/remuda-lab demo

.PHONY: lab-up
lab-up: setup ## the demo's cluster left standing, with the lines that say how to talk to it (as root)
	@$(BIN)/remuda-lab up

.PHONY: lab-down
lab-down: $(SYNCED) ## take down what lab-up started (as root)
	@$(BIN)/remuda-lab down

.PHONY: clean
clean: ## remove build output and caches; the environments .venv and .venv-uv stay
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
	@echo "removed build output and caches"
