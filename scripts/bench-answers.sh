#!/usr/bin/env bash
#
# What the gateway's own work costs beside the same request without it: a body of 1 KiB held against a JSON Schema, a
# write under an Idempotency-Key (in memory and in Redis), and an aggregate of five sources beside its slowest one. One
# at a time is loaded, in interleaved rounds; the tables show medians, and differences are those within each round.
#
#   scripts/bench-answers.sh                       3 rounds of 5 s a contestant
#   scripts/bench-answers.sh --rounds 5 --write    the published figures: docs/performance.md
#
# Options:
#   --rounds N         rounds (3)
#   --seconds S        seconds of load for each contestant and round (5)
#   --connections C    keep-alive connections of the load (16); aggregates are asked on one
#   --write            also put the result into docs/performance.md, between the markers
#   --help
#
# Environment: GATEWAY_BIN: a binary to use instead of building it; BENCH_PORT: the first of ten ports (18700).

set -euo pipefail

# shellcheck source=scripts/bench.sh
. "$(dirname "$0")/bench.sh"

names=read,validated,unread,unread_validated,plain,keyed,redis,slowest,five
connections=16
PORT=([origin]=$base [memory]=$((base + 1)) [shared]=$((base + 2)) [store]=$((base + 7)) [backend]=$((base + 8)) [answers]=0) # answers: a file of no port
LABEL=(
    [read]='a body of 1 KiB that is read for venues'
    [validated]='the same, held against a schema'
    [unread]='a body of 1 KiB that is not read'
    [unread_validated]='the same, held against a schema'
    [plain]='a write without a key, of ten callers in turns'
    [keyed]='a write under a key, in memory'
    [redis]='a write under a key, in Redis'
    [slowest]='the slowest source by itself (20 ms)'
    [five]='an aggregate of five sources'
)
declare -A PATHS=([read]=/api/v1/read/1 [validated]=/api/v1/validated/1 [unread]=/api/v1/unread/1
    [unread_validated]=/api/v1/unread-validated/1 [plain]=/api/v1/read/1 [keyed]=/api/v1/keyed/1 [redis]=/api/v1/keyed/1
    [slowest]='/api/v1/slow/a?demo-delay-ms=20' [five]=/api/v1/five)
declare -A UNDER=([redis]=shared) # who serves it; none: memory

event() { # 1 KiB that the schema takes
    local id='0f8fad5b-d9cb-469f-a165-70867728950e' tiers='' n
    for n in 1 2 3 4 5 6 7; do
        tiers+=${tiers:+,}'{"id":"'$id'","name":"Tier '$n'","price":'$n'9.50,"quantity":'$n'00,"currency":"EUR"}'
    done
    local text='{"id":"'$id'","name":"Summer Night Concert","venueId":"venue-42","startsAt":"2026-07-01T19:00:00Z","endsAt":"2026-07-01T23:00:00Z","tiers":['$tiers'],"description":"'
    printf '%s%*s"}' "$text" $((1024 - ${#text} - 2)) '' | tr ' ' x
}

load() { # NAME SECONDS
    local url="http://127.0.0.1:${PORT[${UNDER[$1]:-memory}]}${PATHS[$1]}" script=$here/bench/writes.lua tokens='' many=$connections
    case $1 in
        slowest | five) many=1 script=$here/bench/wrk.lua ;;
        plain | keyed | redis) tokens=$work/tokens ;;
    esac
    env WRK_LUA="$here/bench/wrk.lua" BODY="$work/body.json" ${tokens:+TOKENS="$tokens"} \
        wrk -t1 -c"$many" -d"${2}s" --latency -s "$script" "${header_flags[@]}" "$url" | grep '^{'
}

pids() { echo "${PID[${UNDER[$1]:-memory}]}"; }

check() { # NAME: each does what it says
    local url="http://127.0.0.1:${PORT[${UNDER[$1]:-memory}]}${PATHS[$1]}" got
    local post=("${header_flags[@]}" -H 'Content-Type: application/json')
    case $1 in
        slowest | five) got=$(curl -s -o "$work/answer" -w '%{http_code}' "${header_flags[@]}" "$url") ;;
        *) got=$(curl -s -o "$work/answer" -w '%{http_code}' "${post[@]}" --data-binary "@$work/body.json" "$url") ;;
    esac
    [[ $got == 200 ]] || die "$1 answers $got: $(<"$work/answer")"
    case $1 in
        validated | unread_validated)
            got=$(curl -s -o /dev/null -w '%{http_code}' "${post[@]}" --data-binary '{"id":"x"}' "$url")
            [[ $got == 422 ]] || die "$1 answers $got to a body that the schema refuses"
            ;;
        keyed | redis)
            for _ in 1 2; do
                curl -s -D "$work/head" -o /dev/null "${post[@]}" -H 'Idempotency-Key: twice' --data-binary "@$work/body.json" "$url"
            done
            grep -qi '^idempotent-replayed: true' "$work/head" || die "$1 runs a key twice: $(<"$work/head")"
            ;;
        five) jq -e '(.data | length) == 5 and (.errors | length) == 0' "$work/answer" >/dev/null || die "five: $(<"$work/answer")" ;;
    esac
}

differences() {
    jq -rs '
        def median: sort | (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2;
        def tenths: . * 10 | round / 10;
        def of($name): map(select(.name == $name)) | sort_by(.round);
        def more($a; $b; key): [of($a), of($b)] | transpose | map((.[0] | key) - (.[1] | key));
        def told: "\(median | tenths) (rounds: \(map(tenths) | join(", ")))";
        "A schema, CPU µs: \(more("validated"; "read"; .cpu) | told) where the body is read anyhow, \(more("unread_validated"; "unread"; .cpu) | told) where it is not.",
        "A key, CPU µs: \(more("keyed"; "plain"; .cpu) | told) in memory, \(more("redis"; "plain"; .cpu) | told) in Redis, whose own are not in it.",
        "An aggregate, p50 ms more than its slowest source: \(more("five"; "slowest"; .p50 / 1000) | map(. * 10) | (median | round / 10) as $m | "\($m) (rounds: \(map(round / 10) | join(", ")))")."' "$work/results"
}

report() {
    printf '%s, by `scripts/bench-answers.sh`: rounds: %s, of %s s a contestant, on %s connections (aggregates: one); 1 KiB of JSON.\n' \
        "$(date -u +%Y-%m-%d)" "$rounds" "$seconds" "$connections"
    circumstances | tail -n 2
    table | cut -d'|' -f1-3,5-
    echo
    differences
}

while (($#)); do
    case $1 in
        --rounds) rounds=$2 && shift ;;
        --seconds) seconds=$2 && shift ;;
        --connections) connections=$2 && shift ;;
        --write) write=yes ;;
        --help) sed -n '3,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift
done

cores=$(nproc)
PATH=$PATH:/usr/sbin
need nginx:nginx-light haproxy:haproxy wrk:wrk jq:jq redis-server:redis-server pgrep:procps openssl:openssl curl:curl
work=$(mktemp -d)
chmod 755 "$work" # nginx's worker is nobody, and serves a file of it
trap finish EXIT
trap 'exit 130' INT TERM
[[ -n ${GATEWAY_BIN:-} ]] || (cd "$root" && cargo build --release --bin api-gateway) >&2
binary=${GATEWAY_BIN:-$(cd "$root" && cargo metadata --format-version 1 --no-deps | jq -r .target_directory)/release/api-gateway}
rustc --edition 2024 -O -o "$work/one_backend" "$root/examples/one_backend.rs"
launch backend "$work/one_backend" "${PORT[backend]}"
event >"$work/body.json"
prepare_request
expected=''
for n in 0 1 2 3 4 5 6 7 8 9; do token "$secret" sub="user-$n" jti="bench-$n" && echo; done >"$work/tokens"
config origin.conf.in origin
launch origin nginx -p "$work" -e "$work/origin.err" -c "$work/origin.conf"
config answers-gateway.yaml.in answers
cp "$here/bench/event.schema.json" "$work/event.schema.json"
launch store redis-server --port "${PORT[store]}" --bind 127.0.0.1 --save '' --appendonly no --dir "$work"
gateway_bin=$work/api-gateway
printf '#!/bin/sh\nexec %q --conf %q\n' "$(realpath "$binary")" "$work/answers.conf" >"$gateway_bin"
chmod +x "$gateway_bin"
gateway memory $((base + 3)) ''
gateway shared $((base + 4)) 127.0.0.1
IFS=, read -ra contestants <<<"$names"
for name in "${contestants[@]}"; do check "$name"; done
say 'all answer as they should'
for ((round = 1; round <= rounds; round++)); do
    for name in "${contestants[@]}"; do measure "$name" "$round"; done
done
report >"$work/report"
cat "$work/report"
[[ -z $write ]] || {
    page=$root/docs/performance.md
    grep -q '<!-- bench-answers:begin -->' "$page" ||
        printf '\n## Schemas, keys and aggregates\n\n<!-- bench-answers:begin -->\n<!-- bench-answers:end -->\n' >>"$page"
    awk -v report="$work/report" '
        /<!-- bench-answers:begin -->/ { print; while ((getline line < report) > 0) print line; skip = 1 }
        /<!-- bench-answers:end -->/ { skip = 0 }
        !skip' "$page" >"$work/page"
    cat "$work/page" >"$page"
}
