#!/usr/bin/env bash
# Runs all tests, on a machine with nothing but Rust and apt: installs what they need, then builds and runs them in one
# profile. Arguments go to the test programs: `scripts/test.sh admit` runs what has `admit` in its name.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

# cmake and a C compiler build zlib and the cryptography, openssl makes keys for the tests, redis-server is one, iptables
# drops what is sent to it (as root: without being root the tests of that fail), systemd-analyze and strace judge the unit,
# prlimit and setpriv (and strace again) take away what a process needs,
# chromium looks at the API documentation, and gRPC's own client and server are those of Debian's Python.
need cc:build-essential cmake:cmake openssl:openssl redis-server:redis-server iptables:iptables kill:procps \
    systemd-analyze:systemd strace:strace prlimit:util-linux setpriv:util-linux chromium:chromium
/usr/bin/python3 -c 'import grpc' 2>/dev/null || need no-python-grpc:python3-grpcio
cargo fmt --check
cargo test --locked -- "$@"
