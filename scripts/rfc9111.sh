#!/usr/bin/env bash
#
# The table of RFC 9111 (tests/e2e/rfc9111/) against this gateway and against nginx's proxy_cache, which is installed
# when it is missing. The comparison goes into docs/rfc9111.md, between the markers.

set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/lib.sh
. "$root/scripts/lib.sh"
PATH=$PATH:/usr/sbin
need nginx:nginx-light

report=$(mktemp)
trap 'rm -f "$report"' EXIT
(cd "$root" && RFC9111_REPORT=$report cargo test --locked --test e2e -- --ignored --exact \
    rfc9111::the_same_table_against_nginx_is_written_down) >&2

page=$root/docs/rfc9111.md
new=$(awk -v report="$report" '
    /<!-- rfc9111:begin -->/ { print; while ((getline line < report) > 0) print line; skip = 1 }
    /<!-- rfc9111:end -->/ { skip = 0 }
    !skip' "$page")
printf '%s\n' "$new" >"$page"
echo "written: docs/rfc9111.md" >&2
