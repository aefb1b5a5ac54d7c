#!/usr/bin/env bash
# The gate before a commit: format, lints, documentation, licences, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --check
cargo clippy --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --document-private-items
if type -P cargo-deny >/dev/null; then
    cargo deny --locked check licenses bans sources
else
    echo 'check.sh: licences and sources are NOT checked: cargo install cargo-deny --locked' >&2
fi
scripts/test.sh
