#!/usr/bin/env bash
#
# What a request costs: this gateway with everything on, beside a Pingora proxy without a single feature, nginx as a
# plain reverse proxy, and HAProxy with the gateway's policies (token, limits, header rules, security headers, log).
# All stand on loopback before the same local backend and answer the same request; one at a time is loaded, in
# interleaved rounds, and the table shows medians.
#
# CPU time a request is the figure to trust: load generator and backend share the cores with the contestant, so
# requests a second and latencies say as much about the machine. The ratio compares each contestant with `bare` in
# the same round, so that a machine that slows down does so for both.
#
#   scripts/bench.sh                                the table: 3 rounds of 5 s a contestant
#   scripts/bench.sh --rounds 5 --callgrind --write the published figures: docs/performance.md
#   scripts/bench.sh --rounds 0 --callgrind         only the instructions a request
#
# Options:
#   --rounds N         rounds (3); 0: no table
#   --seconds S        seconds of load for each contestant and round (5)
#   --connections C    keep-alive connections of the load (32)
#   --only A,B         of bare,nginx,haproxy,gateway
#   --redis            also the gateway with its limits counted in Redis, which is installed when missing
#   --oha              load with oha instead of wrk (built by cargo when missing)
#   --callgrind        also count instructions a request of bare and gateway: user space, one thread, one connection
#   --idle N           also show the memory of bare and gateway with N idle connections
#   --write            also put the result into docs/performance.md, between the markers
#   --self-check       try the bench itself: all but the gateway, one round of 1 s
#   --help
#
# Environment: BARE_PROXY_BIN, GATEWAY_BIN: binaries to use instead of building them; BENCH_PORT: the first of
# nine ports (18700). What is missing of nginx, haproxy, wrk, valgrind, … is installed by apt-get.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

rounds=3 seconds=5 connections=32 names=bare,nginx,haproxy,gateway
tool=wrk callgrind='' idle='' write=''

base=${BENCH_PORT:-18700}
declare -A PORT=([origin]=$base [bare]=$((base + 1)) [nginx]=$((base + 2)) [haproxy]=$((base + 3)) [gateway]=$((base + 4))
    [redis]=$((base + 6)) [store]=$((base + 7)))
ops_port=$((base + 5))
declare -A PID=()
declare -A LABEL=(
    [bare]='bare: Pingora without a feature'
    [nginx]='nginx: headers and log, no token, no limits'
    [haproxy]='HAProxy: the same policies'
    [gateway]='this gateway: everything on'
    [redis]='this gateway, limits counted in Redis'
)

path=/api/v1/events/123
limit=100000000 # a minute: counted, never reached
csp="default-src 'self';style-src 'self' 'unsafe-inline';script-src 'self';img-src 'self' data: https:;base-uri 'self';font-src 'self' https: data:;form-action 'self';frame-ancestors 'self';object-src 'none';script-src-attr 'none';upgrade-insecure-requests"

say() { echo "bench: $*" >&2; }
die() {
    say "$*"
    exit 1
}

# === Tools and binaries ===

install_tools() {
    PATH=$PATH:/usr/sbin
    local wanted=(nginx:nginx-light haproxy:haproxy jq:jq pgrep:procps openssl:openssl curl:curl)
    [[ $tool != wrk ]] || wanted+=(wrk:wrk)
    ! chosen redis || wanted+=(redis-server:redis-server)
    [[ -z $callgrind ]] || wanted+=(valgrind:valgrind)
    [[ -z $callgrind$idle ]] || wanted+=(python3:python3)
    need "${wanted[@]}"
    if [[ $tool == oha ]] && ! command -v oha >/dev/null; then
        say 'building oha, this takes some minutes'
        cargo install oha --locked >&2
        PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    fi
}

build() {
    local target
    target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | jq -r .target_directory)
    if chosen bare && [[ -z ${BARE_PROXY_BIN:-} ]]; then
        (cd "$root" && cargo build --profile plain --example bare_proxy) >&2
    fi
    if { chosen gateway || chosen redis; } && [[ -z ${GATEWAY_BIN:-} ]]; then
        (cd "$root" && cargo build --release --bin api-gateway) >&2
    fi
    bare_bin=${BARE_PROXY_BIN:-$target/plain/examples/bare_proxy}
    gateway_bin=${GATEWAY_BIN:-$target/release/api-gateway}
}

# === The request ===

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

token() { # KEY CLAIM=VALUE ...: the claims of a good token, changed by those named
    local key=$1 now claims change signed
    shift
    now=$(date +%s)
    claims=$(jq -cn --argjson now "$now" '{sub: "user-1", email: "ann@example.com", role: "admin",
        tenant_id: "tenant-1", type: "access", iss: "tickettoken-api", iat: $now, exp: ($now + 21600), jti: "bench-1"}')
    for change; do
        claims=$(jq -c --arg k "${change%%=*}" --arg v "${change#*=}" '.[$k] = ($v | tonumber? // $v)' <<<"$claims")
    done
    signed=$(printf '{"alg":"HS256","typ":"JWT"}' | base64url).$(printf %s "$claims" | base64url)
    printf '%s.%s' "$signed" "$(printf %s "$signed" | openssl dgst -sha256 -hmac "$key" -binary | base64url)"
}

prepare_request() {
    secret=$(openssl rand -hex 20)
    headers=(
        "Authorization: Bearer $(token "$secret")"
        'User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0'
        'Accept: application/json, text/plain, */*'
        'Accept-Encoding: gzip, deflate, br'
        'Accept-Language: en-GB,en;q=0.8,de;q=0.5'
    )
    header_flags=()
    for header in "${headers[@]}"; do header_flags+=(-H "$header"); done
}

# === The contestants: each start_NAME leaves its process in PID[NAME] ===

chosen() { [[ ,$names, == *,$1,* ]]; }

config() { # TEMPLATE NAME: the filled template, as a file
    sed -e "s|@DIR@|$work|g" -e "s|@ORIGIN@|${PORT[origin]}|g" -e "s|@SLOW@|${PORT[backend]:-}|g" -e "s|@PORT@|${PORT[$2]}|g" -e "s|@THREADS@|$cores|g" \
        -e "s|@SECRET@|$secret|g" -e "s|@LIMIT@|$limit|g" -e "s|@CSP@|$csp|g" "$here/bench/$1" >"$work/$2.conf"
}

launch() { # NAME COMMAND ...: output goes to NAME.log
    local name=$1
    shift
    ! (: <>"/dev/tcp/127.0.0.1/${PORT[$name]}") 2>/dev/null || die "port ${PORT[$name]} is taken; set BENCH_PORT"
    "$@" >"$work/$name.log" 2>&1 </dev/null &
    PID[$name]=$!
    for _ in {1..600}; do
        kill -0 "${PID[$name]}" 2>/dev/null || break
        (: <>"/dev/tcp/127.0.0.1/${PORT[$name]}") 2>/dev/null && return
        sleep 0.1
    done
    tail -n 20 "$work/$name.log" >&2
    die "$name did not start"
}

stop() { # NAME [TENTHS]: by the signal that ends it at once; who is still there after 5 s, or so many tenths, is killed
    local name=$1 pid=${PID[$1]:-} signal=INT tenths
    [[ $name != haproxy ]] || signal=TERM # HAProxy leaves SIGINT ignored, as background jobs are born
    [[ -n $pid ]] || return 0
    unset "PID[$name]"
    kill -"$signal" "$pid" 2>/dev/null || true
    for ((tenths = ${2:-50}; tenths > 0; tenths--)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

start_origin() {
    config origin.conf.in origin
    launch origin nginx -p "$work" -e "$work/origin.err" -c "$work/origin.conf"
}

start_bare() { # [THREADS [WRAPPER ...]]
    launch bare "${@:2}" "$bare_bin" "127.0.0.1:${PORT[bare]}" "127.0.0.1:${PORT[origin]}" "${1:-$cores}"
}

start_nginx() {
    config nginx.conf.in nginx
    launch nginx nginx -p "$work" -e "$work/nginx.err" -c "$work/nginx.conf"
}

start_haproxy() {
    config haproxy.cfg.in haproxy
    launch haproxy haproxy -db -f "$work/haproxy.conf"
}

start_gateway() { # [THREADS [WRAPPER ...]]
    gateway gateway "$ops_port" '' "$@"
}

start_redis() {
    launch store redis-server --port "${PORT[store]}" --bind 127.0.0.1 --save '' --appendonly no --dir "$work"
    gateway redis $((base + 8)) 127.0.0.1 "$@"
    # Until the limits are counted there.
    for _ in {1..100}; do
        curl -s -o /dev/null "${header_flags[@]}" "http://127.0.0.1:${PORT[redis]}$path"
        ! redis-cli -p "${PORT[store]}" exists rl:user:user-1 | grep -q 1 || return 0
        sleep 0.1
    done
    die 'the limits are not counted in Redis'
}

gateway() { # NAME OPS_PORT REDIS_HOST [THREADS [WRAPPER ...]]; nothing of the caller's environment reaches it
    # Every service is there, as on the platform: a missing one would be looked for all the time.
    local name services=()
    for name in AUTH VENUE EVENT TICKET PAYMENT MARKETPLACE ANALYTICS NOTIFICATION INTEGRATION COMPLIANCE QUEUE SEARCH \
        FILE MONITORING BLOCKCHAIN ORDER MINTING TRANSFER SCANNING; do
        services+=("${name}_SERVICE_URL=http://127.0.0.1:${PORT[origin]}")
    done
    launch "$1" env -i PATH="$PATH" NODE_ENV=production HOST=127.0.0.1 PORT="${PORT[$1]}" \
        OPS_LISTEN="127.0.0.1:$2" SERVER_THREADS="${4:-$cores}" JWT_SECRET="$secret" \
        REDIS_HOST="$3" REDIS_PORT="${PORT[store]}" \
        "${services[@]}" RATE_LIMIT_GLOBAL_MAX=$limit LIMITS_FLOOD_MAX=$limit MAX_CONNECTIONS_PER_ADDRESS=0 \
        LOG_LEVEL=info LOG_FORMAT=json "${@:5}" "$gateway_bin"
}

finish() {
    for name in "${!PID[@]}"; do stop "$name"; done
    rm -rf "$work"
}

# === Does each do what it says? ===

status() { # NAME HEADER: the status with this Authorization
    curl -s -o /dev/null -w '%{http_code}' -H "$2" "http://127.0.0.1:${PORT[$1]}$path"
}

check_answer() { # NAME
    local answer
    answer=$(curl -sS -f "${header_flags[@]}" "http://127.0.0.1:${PORT[$1]}$path") || die "$1 does not answer 200"
    [[ $answer == "$expected" ]] || die "$1 does not answer with the backend's body: $answer"
}

check_policies() { # NAME: bad tokens are refused, the client's identity headers are replaced
    local case got echo
    local -A bad=(
        [no token]='X-None: 1'
        [a forged token]="Authorization: Bearer $(token another-secret-of-at-least-thirty-two-characters)"
        [an expired token]="Authorization: Bearer $(token "$secret" exp=1700000000)"
        [a refresh token]="Authorization: Bearer $(token "$secret" type=refresh)"
        [a foreign issuer]="Authorization: Bearer $(token "$secret" iss=somebody-else)"
        [no tenant]="Authorization: Bearer $(token "$secret" tenant_id=)"
    )
    for case in "${!bad[@]}"; do
        got=$(status "$1" "${bad[$case]}")
        [[ $got == 401 ]] || die "$1 answers $got instead of 401 to $case"
    done
    echo=$(curl -sS -f "${header_flags[@]}" -H 'X-Tenant-ID: evil' -H 'X-Internal-Service: evil' -H 'Cookie: a=b' \
        -H 'X-Gateway-Forwarded: evil' -H 'X-Original-IP: 6.6.6.6' -H 'X-Request-ID: req-77' \
        "http://127.0.0.1:${PORT[$1]}/api/v1/events/echo") || die "$1 does not answer 200 to a request with odd headers"
    jq -e '. == {tenant: "tenant-1", internal: "", cookie: "", gateway: "true", ip: "127.0.0.1", request: "req-77"}' \
        <<<"$echo" >/dev/null || die "$1 does not apply the header rules: $echo"
    echo=$(curl -sS -D - -o /dev/null "${header_flags[@]}" "http://127.0.0.1:${PORT[$1]}$path" | tr -d '\r')
    for header in X-Content-Type-Options X-Frame-Options Content-Security-Policy X-Request-ID X-RateLimit-Remaining; do
        grep -qi "^$header: ." <<<"$echo" || die "$1 does not send $header"
    done
}

# === Measuring ===

pids() { # NAME: its process and, for nginx, the workers
    echo "${PID[$1]}"
    pgrep -P "${PID[$1]}" || true
}

ticks() { # NAME: CPU time so far, user and system, in clock ticks
    local pid line fields sum=0
    for pid in $(pids "$1"); do
        line=$(<"/proc/$pid/stat")
        read -ra fields <<<"${line##*) }" # the process's name may hold spaces; field 3 comes after it
        sum=$((sum + fields[11] + fields[12])) # utime and stime, fields 14 and 15
    done
    echo "$sum"
}

memory() { # NAME: resident kB, summed over its processes (pages that they share count for each)
    local pid
    for pid in $(pids "$1"); do cat "/proc/$pid/status"; done | awk '/^VmRSS:/ { sum += $2 } END { print sum }'
}

load() { # NAME SECONDS: {requests, rps, p50, p99 (us), bad, socket}
    local url="http://127.0.0.1:${PORT[$1]}$path"
    if [[ $tool == wrk ]]; then
        wrk -t1 -c"$connections" -d"${2}s" --latency -s "$here/bench/wrk.lua" "${header_flags[@]}" "$url" | grep '^{'
        return
    fi
    local json=--json
    ! oha --help | grep -q -e --output-format || json=--output-format=json
    # Requests under way when the time is up are no errors.
    oha -z "${2}s" -c "$connections" --no-tui "$json" "${header_flags[@]}" "$url" | jq -c '
        (.statusCodeDistribution | to_entries) as $codes
        | {requests: ([$codes[].value] | add // 0), rps: .summary.requestsPerSec,
           p50: (.latencyPercentiles.p50 * 1e6), p99: (.latencyPercentiles.p99 * 1e6),
           bad: ([$codes[] | select(.key[0:1] != "2") | .value] | add // 0),
           socket: ([.errorDistribution | to_entries[] | select(.key | test("deadline") | not) | .value] | add // 0)}'
}

measure() { # NAME ROUND: one line more in results
    local before result after
    load "$1" 1 >/dev/null
    before=$(ticks "$1")
    result=$(load "$1" "$seconds")
    after=$(ticks "$1")
    jq -e '.requests > 0 and .bad == 0 and .socket == 0' <<<"$result" >/dev/null || die "$1 failed under load: $result"
    jq -c --arg name "$1" --argjson round "$2" --argjson ticks $((after - before)) --argjson hz "$(getconf CLK_TCK)" \
        --argjson rss "$(memory "$1")" \
        '. + {name: $name, round: $round, cpu: ($ticks / $hz * 1e6 / .requests), rss: ($rss / 1024)}' \
        <<<"$result" | tee -a "$work/results" >&2
}

table() {
    printf '\n| contestant | CPU µs a request | ratio to bare | requests/s | p50 ms | p99 ms | memory MB |\n'
    echo '| --- | ---: | ---: | ---: | ---: | ---: | ---: |'
    jq -rs --arg names "$names" '
        def median: sort | if length == 0 then null else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;
        (map(select(.name == "bare") | {key: "\(.round)", value: .cpu}) | from_entries) as $bare
        | . as $all | $names | split(",")[] as $name
        | [$all[] | select(.name == $name)]
        | [$name, (map(.cpu) | median), (map(select($bare["\(.round)"]) | .cpu / $bare["\(.round)"]) | median // "-"),
           (map(.rps) | median), (map(.p50) | median / 1000), (map(.p99) | median / 1000), (map(.rss) | median)] | @tsv' "$work/results" |
        while IFS=$'\t' read -r name cpu ratio rps p50 p99 rss; do
            [[ $ratio == - ]] || printf -v ratio %.2f "$ratio"
            printf '| %s | %.1f | %s | %.0f | %.2f | %.2f | %.1f |\n' \
                "${LABEL[$name]}" "$cpu" "$ratio" "$rps" "$p50" "$p99" "$rss"
        done
}

instructions() { # NAME REQUESTS: into `counted`, callgrind's total for a life of 200 requests to warm up and REQUESTS
    "start_$1" 1 valgrind --tool=callgrind --callgrind-out-file="$work/callgrind.out"
    python3 "$here/bench/connections.py" count "${PORT[$1]}" "$path" $(($2 + 200)) "${headers[@]}" ||
        { tail -n 20 "$work/$1.log" >&2 && die "$1 failed under valgrind"; }
    stop "$1" 600 # valgrind takes its time to write the profile
    counted=$(awk '/Collected :/ { print $NF }' "$work/$1.log")
    [[ -n $counted ]] || { tail -n 20 "$work/$1.log" >&2 && die "callgrind did not report on $1"; }
}

callgrind_table() {
    local name few each ratio counted bare=
    printf '\n| contestant | instructions a request | ratio to bare |\n| --- | ---: | ---: |\n'
    for name in bare gateway; do
        chosen $name || continue
        say "counting the instructions of $name"
        # Start, warm-up and stop are the same in both, so that they cancel.
        instructions $name 1000
        few=$counted
        instructions $name 3000
        each=$(((counted - few) / 2000))
        [[ $name != bare ]] || bare=$each
        ratio=-
        [[ -z $bare ]] || printf -v ratio %.2f "$(jq -n "$each / $bare")"
        echo "| ${LABEL[$name]} | $each | $ratio |"
    done
}

idle_table() {
    local name before after
    ulimit -n $((idle + 500)) || die "cannot raise the limit of open files for $idle connections"
    printf '\n| contestant | memory MB | with %s idle connections | kB for each |\n| --- | ---: | ---: | ---: |\n' "$idle"
    for name in bare gateway; do
        chosen $name || continue
        say "holding $idle connections to $name"
        "start_$name"
        check_answer $name
        before=$(memory $name)
        python3 "$here/bench/connections.py" idle "${PORT[$name]}" "$path" "$idle" "${headers[@]}" >"$work/holder.log" &
        PID[holder]=$!
        until grep -q ready "$work/holder.log"; do
            kill -0 "${PID[holder]}" 2>/dev/null || die "$name does not hold $idle connections"
            sleep 0.1
        done
        after=$(memory $name)
        stop holder
        stop $name
        jq -rn --arg name "${LABEL[$name]}" --argjson before "$before" --argjson after "$after" --argjson n "$idle" '
            def tenths: . * 10 | round / 10;
            "| \($name) | \($before / 1024 | tenths) | \($after / 1024 | tenths) | \(($after - $before) / $n | tenths) |"'
    done
}

# === The report ===

circumstances() {
    local memory_gb load_tool what='no load'
    ((rounds == 0)) || what="rounds: $rounds, of $seconds s a contestant after 1 s of warm-up, on $connections keep-alive connections"
    memory_gb=$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
    load_tool=$($tool --version 2>&1 | grep -oE "^$tool [^ ]+" | head -n 1) || true
    cat <<END
$(date -u +%Y-%m-%d), by \`scripts/bench.sh\`: $what,
one \`GET\` with a token and a browser's headers, $(printf %s "$expected" | wc -c) bytes of JSON in answer, no TLS.
$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(nproc --all) cores shared with load and backend, $memory_gb GB, Linux $(uname -r).
$(nginx -v 2>&1 | sed 's|.*: ||'), $(haproxy -v | sed -E 's|^HAProxy version ([^ ]+).*|haproxy/\1|;q'), ${load_tool:-$tool}, $(rustc --version | cut -d' ' -f1,2).
END
}

write_page() { # puts the report between the markers, or at the end of a page that has none
    local page=$root/docs/performance.md
    mkdir -p "$root/docs"
    [[ -e $page ]] || cat >"$page" <<'END'
# Performance

What a request costs in this gateway with every policy on, beside a Pingora proxy without a single feature, nginx as
a plain reverse proxy and HAProxy with the same policies. CPU time a request is the figure to compare; the load and
the backend share the machine, so requests a second and latencies are no more than an impression.

    scripts/bench.sh --rounds 5 --callgrind --write

measures it again and replaces what stands below.

END
    grep -q '<!-- bench:begin -->' "$page" || printf '<!-- bench:begin -->\n<!-- bench:end -->\n' >>"$page"
    awk -v report="$work/report" '
        /<!-- bench:begin -->/ { print; while ((getline line < report) > 0) print line; skip = 1 }
        /<!-- bench:end -->/ { skip = 0 }
        !skip' "$page" >"$work/page"
    cat "$work/page" >"$page"
}

main() {
    while (($#)); do
        case $1 in
            --rounds) rounds=$2 && shift ;;
            --seconds) seconds=$2 && shift ;;
            --connections) connections=$2 && shift ;;
            --only) names=$2 && shift ;;
            --redis) names+=,redis ;;
            --oha) tool=oha ;;
            --callgrind) callgrind=yes ;;
            --idle) idle=$2 && shift ;;
            --write) write=yes ;;
            --self-check) names=bare,nginx,haproxy rounds=1 seconds=1 ;;
            --help) sed -n '3,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
            *) die "unknown option $1; see --help" ;;
        esac
        shift
    done
    cores=$(nproc)
    install_tools
    build
    work=$(mktemp -d)
    trap finish EXIT
    trap 'exit 130' INT TERM
    prepare_request
    start_origin
    expected=$(curl -sS -f "http://127.0.0.1:${PORT[origin]}$path")

    local contestants name round
    IFS=, read -ra contestants <<<"$names"
    for name in "${contestants[@]}"; do
        [[ -n ${LABEL[$name]:-} ]] || die "no contestant $name"
        "start_$name"
        check_answer "$name"
    done
    for name in haproxy gateway redis; do
        if chosen $name; then check_policies $name; fi
    done
    say 'all answer as they should'

    for ((round = 1; round <= rounds; round++)); do
        for name in "${contestants[@]}"; do measure "$name" "$round"; done
    done
    for name in "${contestants[@]}"; do stop "$name"; done

    {
        circumstances
        ((rounds == 0)) || table
        [[ -z $callgrind ]] || callgrind_table
        [[ -z $idle ]] || idle_table
    } >"$work/report"
    cat "$work/report"
    [[ -z $write ]] || write_page
}

# bench-cache.sh has a main of its own.
[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
