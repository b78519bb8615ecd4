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
    cargo test --lib provider::group::
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

# Coverage of all tests; ARGS are those of cargo llvm-cov
coverage *ARGS:
    scripts/coverage {{ARGS}}

# Coverage as text, as JSON, in the browser, with the lines that are missing, as lcov.info
test-cov: coverage
cov: (coverage "--json --summary-only")
cov-html: (coverage "--open")
cov-table: (coverage "--show-missing-lines")
cov-ci: (coverage "--lcov --output-path lcov.info")

# Clippy, warnings are errors
lint:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Format the code
fmt:
    cargo fmt --all

# All that a change has to pass
ci:
    scripts/test

# The same and what takes long or needs other tools; PARTS are those of the slow tier alone
ci-slow *PARTS:
    scripts/test --slow {{PARTS}}

# Run every fuzz target for so many seconds
fuzz SECONDS="60":
    A3S_EVENT_FUZZ_SECONDS={{SECONDS}} scripts/test --slow fuzz

# The main job on a SQLite file, or on the provider of URL
quickstart *URL:
    cargo run --quiet --example quickstart --features sqlite -- {{URL}}

# The release archive of the tool for this machine, in target/dist
release:
    scripts/release

# Build and open the documentation
doc:
    cargo doc --no-deps --open
