# Millrace. `make help` lists what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TOOLS := target/tools
PYTHON := $(TOOLS)/venv/bin/python
GRPCURL := $(TOOLS)/grpcurl
PGBOUNCER := $(TOOLS)/pgbouncer
# Only what the tests call; found first on the PATH of the recipes that need them.
export MILLRACE_TOOLS := $(CURDIR)/$(TOOLS)

.PHONY: help
help: ## List the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: setup-build setup-test ## Install what building and testing need (Debian, Ubuntu)

.PHONY: setup-build
setup-build:
	@scripts/setup build

.PHONY: setup-test
setup-test: $(PYTHON) $(GRPCURL) $(PGBOUNCER)
	@scripts/setup test

$(PYTHON): tests/requirements.txt
	@scripts/setup python $(TOOLS)/venv tests/requirements.txt

$(PGBOUNCER):
	@scripts/setup pgbouncer $(TOOLS)

$(GRPCURL):
	@scripts/setup grpcurl $(TOOLS)

# The tests ask for what they have built already, which has other features than the binary alone.
RUN_TARGETS ?= --bin millrace

.PHONY: run
run: setup-build ## Build and serve the whole suite on SQLite, at 127.0.0.1:7600
	cargo build --workspace $(RUN_TARGETS)
	exec target/debug/millrace dev

.PHONY: build
build: setup-build ## Build everything the tests use
	cargo build --workspace --all-targets

.PHONY: test
test: build setup-test ## Run every test, on SQLite and on a PostgreSQL of its own
	tests/with-postgres.sh cargo test --workspace --no-fail-fast

.PHONY: compat
compat: build setup-test ## Run the release before and this build together (builds the former once, in target/compat)
	tests/with-postgres.sh cargo test --workspace --no-fail-fast --test compat --test releases

.PHONY: chaos
chaos: build setup-test ## Run the chaos test for MINUTES (default 10) instead of one minute
	MILLRACE_CHAOS_SECONDS=$$(( $${MINUTES:-10} * 60 )) tests/with-postgres.sh cargo test --workspace --test chaos -- --nocapture

.PHONY: drill
drill: setup-build $(TOOLS)/venv/.drill ## Replay an incident against real services: D=D1a, SEED=n repeats one
	cargo build --workspace --bins
	tests/with-postgres.sh target/debug/millrace-drill $${D:-D1a} $${SEED:+--seed $$SEED}

$(TOOLS)/venv/.drill: $(PYTHON) tests/requirements-drill.txt
	$(TOOLS)/venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements-drill.txt
	@touch $@

.PHONY: bench
bench: setup-build ## Measure against the database's own ceiling (release build, a few minutes)
	cargo build --release --workspace
	tests/with-postgres.sh target/release/millrace-bench

.PHONY: lint
lint: setup-build $(PYTHON) ## Check format, clippy, the contracts and the house rules
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@# The one test that --all-targets leaves out.
	cargo clippy --workspace --test releases -- -D warnings
	cd proto && $(CURDIR)/$(TOOLS)/venv/bin/buf lint
	cd proto && $(CURDIR)/$(TOOLS)/venv/bin/buf format --diff --exit-code
	@# Against the contract of every release that this one must work beside (tests/compat/releases.toml).
	for image in tests/compat/releases/*.binpb; do $(TOOLS)/venv/bin/buf breaking proto --against $$image; done
	$(TOOLS)/venv/bin/squawk --config migrations/squawk.toml migrations/postgres/*/up.sql
	$(TOOLS)/venv/bin/squawk --config migrations/squawk-down.toml migrations/postgres/*/down.sql

.PHONY: gen
gen: setup-build ## Write the code generated from the contracts
	MILLRACE_GEN=write cargo test --workspace --test generated

.PHONY: goldens
goldens: build ## Write the golden rows and bytes that a new schema version or message lacks
	MILLRACE_GEN=write tests/with-postgres.sh cargo test --workspace --test compat golden

.PHONY: verify
verify: setup-build ## Check that the generated code is up to date
	cargo test --workspace --test generated
