# Thin recipes; scripts/test is the full run.

# List the recipes
default:
    @just --list --unsorted

# Build the workspace
build:
    cargo build --workspace --all-targets

# Run all tests
test:
    cargo test --workspace

# Run all tests and show their output
test-v:
    cargo test --workspace -- --nocapture

# Run the tests whose name contains NAME
test-one NAME:
    cargo test --workspace {{NAME}} -- --nocapture

# Tests of one area
test-types:
    cargo test --lib types::
test-error:
    cargo test --lib error::
test-subject:
    cargo test --lib subject::
test-consumer:
    cargo test --lib provider::consumer::
test-memory:
    cargo test --lib provider::memory::
test-store:
    cargo test --lib bus::

# The conformance kit against every provider
test-conformance:
    cargo test --test conformance

# Run the benchmarks
bench:
    cargo bench

# Run the benchmarks whose name contains NAME
bench-one NAME:
    cargo bench -- {{NAME}}

# Measure beside other libraries, and write docs/benchmarks.md
benchmarks:
    scripts/benchmarks

# The picture of the front page
watch-picture:
    scripts/watch-picture

# Coverage needs cargo-llvm-cov (cargo install cargo-llvm-cov --locked)
test-cov:
    cargo llvm-cov --workspace
cov:
    cargo llvm-cov --workspace --json --summary-only
cov-html:
    cargo llvm-cov --workspace --open
cov-table:
    cargo llvm-cov --workspace --show-missing-lines
cov-ci:
    cargo llvm-cov --workspace --lcov --output-path lcov.info

# Clippy, warnings are errors
lint:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Format the code
fmt:
    cargo fmt --all

# All that a change has to pass
ci:
    scripts/test

# The same and what needs tools that are compiled first
ci-slow:
    scripts/test --slow

# The week of earthquakes; URL is a provider, for instance memory://
quickstart *URL:
    cargo run --quiet --example quickstart -- {{URL}}

# Build and open the documentation
doc:
    cargo doc --no-deps --open
