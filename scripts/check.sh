#!/usr/bin/env bash
# The gate before a commit: format, lints, tests, documentation.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --check
cargo clippy --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --document-private-items
scripts/test.sh
