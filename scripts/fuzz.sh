#!/usr/bin/env bash
# Every parser against inputs that libFuzzer makes up, a minute each: fuzz/, and the properties in src/fuzz/.
#
#   scripts/fuzz.sh               # all of them
#   scripts/fuzz.sh path head     # these
#
#   FUZZ_SECONDS=60               for each
#   FUZZ_SANITIZER=none           `address` also finds what unsafe code of libraries does; it takes longer
#
# What is found is in fuzz/artifacts/NAME/; once mended, its input goes to fuzz/corpus/NAME/, where `cargo test` tries it
# for ever. Needs a nightly toolchain, and installs cargo-fuzz where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
export PATH=$PATH:${HOME:-/root}/.cargo/bin

readonly seconds=${FUZZ_SECONDS:-60} sanitizer=${FUZZ_SANITIZER:-none}

die() { echo "fuzz.sh: $*" >&2; exit 1; }

[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "FUZZ_SECONDS is a whole number of seconds, not \`$seconds\`"
cargo +nightly --version >/dev/null 2>&1 ||
    die 'there is no nightly toolchain, which libFuzzer needs: rustup toolchain install nightly --profile minimal'
need c++:build-essential cmake:cmake
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked

# As cargo has it: a folder of its own, as every crate is built once more here.
export CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-fuzz/target}
mapfile -t all < <(cargo +nightly fuzz list)
targets=("$@")
[[ $# -gt 0 ]] || targets=("${all[@]}")
for target in "${targets[@]}"; do
    [[ " ${all[*]} " = *" $target "* ]] || die "there is no \`$target\`; there are: ${all[*]}"
done

# One line each, in the order of the table at the end.
report=$(mktemp)
new=$(mktemp -d)
trap 'rm -rf "$report" "$new"' EXIT
failed=0
cargo +nightly fuzz build --sanitizer "$sanitizer"
for target in "${targets[@]}"; do
    echo "== $target, ${seconds} s" >&2
    log=$new/$target.log
    mkdir -p "$new/$target"
    # Inputs that reach something new stay outside of what is checked in. One input may take 10 s and 2 GiB.
    verdict=held
    cargo +nightly fuzz run --sanitizer "$sanitizer" "$target" "$new/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 \
        -dict="fuzz/dictionaries/$target" >"$log" 2>&1 || verdict=BROKEN
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    printf '%-14s %-7s %10s inputs, %6s edges\n' "$target" "$verdict" "${runs:-?}" "${edges:-?}" | tee -a "$report" >&2
    if [[ $verdict = BROKEN ]]; then
        failed=1
        grep -v '^#[0-9]' "$log" | tail -n 60 >&2
    fi
done
echo "== ${#targets[@]} targets, $seconds s each, sanitizer: $sanitizer" >&2
cat "$report"
exit $failed
