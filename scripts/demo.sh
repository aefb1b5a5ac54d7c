#!/usr/bin/env bash
# The gateway in five requests, on a bare Debian with Rust: no platform, no Redis, nothing but loopback.
set -euo pipefail

readonly usage="usage: scripts/demo.sh [--stay | --once]

Installs what the build lacks (apt), builds the gateway and its stand-in backends, starts both on
127.0.0.1, makes five requests and shows the answers. Exits with 1 if one is not as it should be.

  --stay   keep running afterwards, until Ctrl-C (the default on a terminal)
  --once   end after the five requests (the default elsewhere)
  --help   this text

  PORT=3000            the gateway's port
  BACKENDS_BASE=4000   the backends take this + 1 to this + 20"

readonly port=${PORT:-3000} base=${BACKENDS_BASE:-4000}
readonly gateway_url=http://127.0.0.1:$port
readonly ready_within=30 # seconds

# The index is the documented port - 3000; no service has 17.
readonly services=([1]=AUTH VENUE EVENT TICKET PAYMENT MARKETPLACE ANALYTICS NOTIFICATION INTEGRATION
    COMPLIANCE QUEUE SEARCH FILE MONITORING BLOCKCHAIN ORDER [18]=MINTING TRANSFER SCANNING)

main() {
    local stay=no
    [[ -t 1 ]] && stay=yes
    case ${1-} in
    --stay) stay=yes ;;
    --once) stay=no ;;
    --help | -h) echo "$usage" && exit ;;
    '') ;;
    *) echo "$usage" >&2 && exit 2 ;;
    esac

    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    # shellcheck source=scripts/lib.sh
    . scripts/lib.sh
    export PATH=$PATH:${HOME:-/root}/.cargo/bin
    check_ports
    install_missing
    build

    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    work=$(mktemp -d)
    gateway_log=$work/gateway.log backends_log=$work/backends.log
    jwt_secret=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    start_backends
    start_gateway
    make_the_five_calls
    if [[ $stay = yes ]]; then stay_until_interrupted; fi
}

check_ports() {
    local number
    for number in "$port" "$base"; do
        [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || fail "PORT and BACKENDS_BASE are port numbers, not \`$number\`"
    done
    ! is_open "$port" || fail "port $port is taken by another program; try PORT=$((port + 100)) scripts/demo.sh"
}

is_open() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

install_missing() {
    has cargo || fail "no cargo, neither on PATH nor in ~/.cargo/bin: install Rust first"
    # cmake builds zlib-ng, which Pingora compresses with.
    need cc:build-essential make:build-essential cmake:cmake curl:curl
}

has() { type -P "$1" >/dev/null; }

build() {
    say "Building (the first time takes some minutes)"
    cargo build --bin api-gateway --example backends
    local target
    target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    gateway=$target/debug/api-gateway backends=$target/debug/examples/backends
}

start_backends() {
    JWT_SECRET=$jwt_secret "$backends" --base "$base" >"$backends_log" 2>&1 &
    backends_pid=$!
    until grep -q listening "$backends_log"; do
        is_alive "$backends_pid" || fail "the backends have ended; if a port is taken, try BACKENDS_BASE=$((base + 1000))" "$backends_log"
        sleep 0.1
    done
}

start_gateway() {
    # Nothing but these: neither a Redis nor a key from the caller's own environment.
    local environment=(NODE_ENV=development HOST=127.0.0.1 PORT="$port" OPS_LISTEN=127.0.0.1:0 JWT_SECRET="$jwt_secret") number
    for number in "${!services[@]}"; do
        environment+=("${services[number]}_SERVICE_URL=http://127.0.0.1:$((base + number))")
    done
    say "Starting the gateway on $gateway_url, its log is $gateway_log"
    env -i PATH="$PATH" "${environment[@]}" "$gateway" >"$gateway_log" 2>&1 &
    gateway_pid=$!

    local give_up=$((SECONDS + ready_within))
    until curl --fail --output /dev/null "$gateway_url/ready" 2>/dev/null; do
        is_alive "$gateway_pid" || fail "the gateway has ended" "$gateway_log"
        ((SECONDS < give_up)) || fail "the gateway is not ready after $ready_within s" "$gateway_log"
        sleep 0.2
    done
    is_alive "$gateway_pid" || fail "the gateway has ended, and another program answers on port $port" "$gateway_log"
}

make_the_five_calls() {
    TOKEN=$(JWT_SECRET=$jwt_secret "$backends" token)
    say "A customer's token of tenant-1, valid for an hour; the requests below use it"
    echo "export TOKEN=$TOKEN"

    say "1. The gateway's own health"
    try 200 '"status":"ok"' "curl -i $gateway_url/health"

    say "2. Without a token nobody gets past the gateway"
    try 401 '"code":"AUTH_REQUIRED"' "curl -i $gateway_url/api/v1/events/42"

    say "3. With one, the answer is the stand-in event-service's: what reached it, and what the gateway added"
    try 200 '"x-tenant-id":"tenant-1"' "curl -i $gateway_url/api/v1/events/42 -H \"Authorization: Bearer \$TOKEN\""

    say "4. A Stripe webhook needs no token; its signature, over the raw bytes, is the backend's to check"
    local body="'{\"id\": \"evt_1\", \"type\": \"payment_intent.succeeded\"}'" sign
    printf -v sign '%q sign --secret whsec_demo' "$backends"
    try 200 '"signature":"valid"' "curl -i $gateway_url/api/v1/webhooks/stripe -H 'Content-Type: application/json' \\
    -H \"Stripe-Signature: \$(printf %s $body | $sign)\" \\
    -d $body"

    say "5. A caller's own X-Tenant-ID is worth nothing: the tenant is the token's"
    try 200 '"x-tenant-id":"tenant-1"' "curl -i '$gateway_url/api/v1/search/events?q=jazz' \\
    -H \"Authorization: Bearer \$TOKEN\" -H 'X-Tenant-ID: other'"

    say "All five answers are as they should be."
}

# try STATUS TEXT COMMAND: shows the command, runs just that, shows the answer's status line and body, and
# insists on the status and on the text in the body.
try() {
    local status=$1 text=$2 command=$3 answer body
    printf '$ %s\n' "$command"
    answer=$(eval "$command" | tr -d '\r') || fail "no answer" "$gateway_log"
    body=${answer#*$'\n\n'}
    echo "${answer%%$'\n'*}"
    if has jq; then jq . <<<"$body" 2>/dev/null || echo "$body"; else echo "$body"; fi
    [[ $answer = "HTTP/1.1 $status"* ]] || fail "the status above is not the expected $status" "$gateway_log"
    [[ ${body// /} = *"$text"* ]] || fail "the answer above does not contain $text" "$gateway_log"
}

curl() { command curl --silent --show-error --noproxy '*' --max-time 15 "$@"; }

stay_until_interrupted() {
    trap 'exit 0' INT TERM
    say "Both keep running: copy the token and any request above into another terminal. Ctrl-C ends them."
    wait -n "$gateway_pid" "$backends_pid" || true
    fail "the gateway or its backends have ended" "$gateway_log"
}

finish() {
    trap '' INT TERM
    local pid
    for pid in ${gateway_pid-} ${backends_pid-}; do end "$pid" || true; done
    rm -rf "${work-}"
}

# SIGTERM stops gracefully; a second one ends the gateway at once.
end() {
    local signal
    for signal in TERM TERM KILL; do
        kill -s "$signal" "$1" 2>/dev/null || return 0
        for _ in {1..20}; do is_alive "$1" || return 0; sleep 0.1; done
    done
}

is_alive() { kill -0 "$1" 2>/dev/null; }

say() { printf '\n== %s\n' "$1"; }

# fail MESSAGE [LOG]
fail() {
    [[ -z ${2-} ]] || printf '\n-- the end of %s\n%s\n' "$2" "$(tail -n 30 "$2")" >&2
    printf '\n!! demo.sh: %s\n' "$1" >&2
    exit 1
}

main "$@"
