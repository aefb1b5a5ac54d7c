#!/usr/bin/env bash
#
# What a hit costs: this gateway answering from its cache with every policy on, the same route without a cache, the same
# at a backend that takes two milliseconds, and nginx's proxy_cache with the same object, headers and log, with and without
# its cache. One at a time is loaded, in interleaved rounds; the table shows medians, and the ratios are those of the
# contestants within each round.
#
#   scripts/bench-cache.sh                       3 rounds of 5 s a contestant
#   scripts/bench-cache.sh --rounds 5 --write    the published figures: docs/performance.md
#
# Options:
#   --rounds N         rounds (3)
#   --seconds S        seconds of load for each contestant and round (5)
#   --connections C    keep-alive connections of the load (32)
#   --size BYTES       of the answer (213: that of bench.sh)
#   --shared           contestants with a thread for each core, which load and backend share with them; without it a
#                      contestant has one thread on a core of its own, so that its requests a second are its own
#   --only A,B         of hit,uncached,slow,nginx,passed; without the ratios
#   --write            also put the result into docs/performance.md, between the markers
#   --help
#
# Environment: GATEWAY_BIN: a binary to use instead of building it; BENCH_PORT: the first of eleven ports (18700).

set -euo pipefail

# shellcheck source=scripts/bench.sh
. "$(dirname "$0")/bench.sh"

names=hit,uncached,slow,nginx,passed
readonly all=$names
size=213
shared=
PORT=([origin]=$base [hit]=$((base + 1)) [uncached]=$((base + 2)) [nginx]=$((base + 3)) [slow]=$((base + 4)) [passed]=$((base + 10)) [backend]=$((base + 8)) [store]=$((base + 7)) [cache]=0) # cache: a file of no port
LABEL=(
    [hit]='this gateway: a hit, everything on'
    [uncached]='this gateway: the same route without a cache'
    [slow]='this gateway: without a cache, from a backend that takes 2 ms'
    [nginx]='nginx: a hit of proxy_cache, no token, no limits'
    [passed]='nginx: the same without its cache'
)
declare -A PATHS=([hit]=/api/v1/events/123 [uncached]=/api/v1/plain/123 [slow]='/api/v1/slow/123?demo-delay-ms=2' [nginx]=/api/v1/events/123 [passed]=/api/v1/events/123)
# Does the answer come from a cache? What says so, and what it must say.
declare -A SAYS=([hit]='cache-status: .*; *hit' [nginx]='x-cache: hit')

build_gateway() {
    target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | jq -r .target_directory)
    [[ -n ${GATEWAY_BIN:-} ]] || (cd "$root" && cargo build --release --bin api-gateway) >&2
    local binary=${GATEWAY_BIN:-$target/release/api-gateway}
    gateway_bin=$work/api-gateway
    printf '#!/bin/sh\nexec %s %q --conf %q\n' "${alone[*]}" "$(realpath "$binary")" "$work/cache.conf" >"$gateway_bin"
    chmod +x "$gateway_bin"
}

answer() { # one line of JSON of so many bytes
    local text='{"id":"123","name":"Summer Night Concert","venueId":"venue-42","pad":"'
    printf '%s%*s"}' "$text" $((size - ${#text} - 2)) '' | tr ' ' x
}

start() { # NAME
    case $1 in
        origin)
            config cache-origin.conf.in origin
            answer >"$work/answer.json"
            launch origin nginx -p "$work" -e "$work/origin.err" -c "$work/origin.conf"
            ;;
        nginx)
            config cache-nginx.conf.in nginx
            launch nginx "${alone[@]}" nginx -p "$work" -e "$work/nginx.err" -c "$work/nginx.conf"
            ;;
        passed)
            config cache-nginx.conf.in passed
            sed -i -e '/proxy_cache/d' -e 's/nginx\.pid/passed.pid/' "$work/passed.conf"
            launch passed "${alone[@]}" nginx -p "$work" -e "$work/passed.err" -c "$work/passed.conf"
            ;;
        slow)
            rustc --edition 2024 -O -o "$work/one_backend" "$root/examples/one_backend.rs"
            launch backend "$work/one_backend" "${PORT[backend]}"
            gateway slow $((base + 9)) ''
            ;;
        hit) gateway hit $((base + 5)) '' ;;
        uncached) gateway uncached $((base + 6)) '' ;;
    esac
}

check() { # NAME: the right answer, from where it should come
    local head
    path=${PATHS[$1]}
    if [[ $1 == slow ]]; then
        local expected='{"name":"'${PORT[backend]}'"}'
    fi
    check_answer "$1"
    sleep 0.2
    head=$(curl -sS -D - -o /dev/null "${header_flags[@]}" "http://127.0.0.1:${PORT[$1]}$path" | tr -d '\r')
    if [[ -n ${SAYS[$1]:-} ]]; then
        grep -qiE "^${SAYS[$1]}" <<<"$head" || die "$1 does not answer from its cache: $head"
    elif grep -qiE '^(age|cache-status|x-cache):' <<<"$head"; then
        die "$1 has a cache: $head"
    fi
}

ratios() { # of each round, and their median
    jq -rs '
        def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
        def hundredths: . * 100 | round / 100;
        def of($name): map(select(.name == $name)) | sort_by(.round);
        def ratio($a; $b; key): [of($a), of($b)] | transpose | map((.[0] | key) / (.[1] | key));
        (ratio("hit"; "uncached"; .rps)) as $rps | (ratio("hit"; "slow"; .rps)) as $slow | (ratio("hit"; "nginx"; .cpu)) as $cpu |
        (ratio("hit"; "uncached"; .cpu)) as $saved | (ratio("hit"; "slow"; .cpu)) as $more |
        (ratio("nginx"; "passed"; .rps)) as $theirs |
        "Requests a second, hit to uncached: \($rps | median | hundredths) (rounds: \($rps | map(hundredths) | join(", "))).",
        "The same, where the backend takes 2 ms: \($slow | median | hundredths) (rounds: \($slow | map(hundredths) | join(", "))).",
        "nginx, hit to the same without its cache: \($theirs | median | hundredths) (rounds: \($theirs | map(hundredths) | join(", "))).",
        "CPU a request, hit to uncached: \($saved | median | hundredths), and \($more | median | hundredths) where the backend takes 2 ms.",
        "CPU a hit, this gateway to nginx: \($cpu | median | hundredths) (rounds: \($cpu | map(hundredths) | join(", ")))."' "$work/results"
}

report() {
    printf '%s, by `scripts/bench-cache.sh`: rounds: %s, of %s s a contestant, on %s connections; %s bytes of JSON.\n' \
        "$(date -u +%Y-%m-%d)" "$rounds" "$seconds" "$connections" "$size"
    circumstances | tail -n 2
    [[ -n $shared ]] || printf '%s\n' 'Each contestant has one thread on a core of its own; load and backend have the other cores.'
    table | cut -d'|' -f1-3,5- # without the ratio to `bare`, which does not run here
    [[ $names != "$all" ]] || { echo && ratios; }
}

write_section() { # between its markers in docs/performance.md
    local page=$root/docs/performance.md
    grep -q '<!-- bench-cache:begin -->' "$page" ||
        printf '\n## A hit in the response cache\n\n<!-- bench-cache:begin -->\n<!-- bench-cache:end -->\n' >>"$page"
    awk -v report="$work/report" '
        /<!-- bench-cache:begin -->/ { print; while ((getline line < report) > 0) print line; skip = 1 }
        /<!-- bench-cache:end -->/ { skip = 0 }
        !skip' "$page" >"$work/page"
    cat "$work/page" >"$page"
}

while (($#)); do
    case $1 in
        --rounds) rounds=$2 && shift ;;
        --seconds) seconds=$2 && shift ;;
        --connections) connections=$2 && shift ;;
        --size) size=$2 && shift ;;
        --shared) shared=yes ;;
        --only) names=$2 && shift ;;
        --write) write=yes ;;
        --help) sed -n '3,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift
done

cores=$(nproc)
alone=()
if [[ -z $shared ]]; then
    ((cores > 1)) || die 'one core: see --shared'
    cores=1
    alone=(taskset -c 0)
    taskset -pc "1-$(($(nproc --all) - 1))" $$ >/dev/null
fi
PATH=$PATH:/usr/sbin
need nginx:nginx-light wrk:wrk jq:jq taskset:util-linux pgrep:procps openssl:openssl curl:curl
work=$(mktemp -d)
chmod 755 "$work" # nginx's workers are nobody, and serve a file of it
trap finish EXIT
trap 'exit 130' INT TERM
{ ! chosen hit && ! chosen uncached; } || build_gateway
prepare_request
start origin
path=${PATHS[hit]}
expected=$(curl -sS -f "http://127.0.0.1:${PORT[origin]}$path")
config cache-gateway.yaml.in cache
IFS=, read -ra contestants <<<"$names"
for name in "${contestants[@]}"; do
    start "$name"
    check "$name"
done
say 'all answer as they should'
for ((round = 1; round <= rounds; round++)); do
    for name in "${contestants[@]}"; do
        path=${PATHS[$name]}
        measure "$name" "$round"
    done
done
report >"$work/report"
cat "$work/report"
[[ -z $write ]] || write_section
