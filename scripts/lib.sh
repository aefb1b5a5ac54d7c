# shellcheck shell=bash
# What the scripts share: installing what is missing.

# need COMMAND:PACKAGE ... installs each package whose command is not there.
need() {
    local missing=() pair
    for pair in "$@"; do
        type -P "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || { echo "these are missing, install them: ${missing[*]}" >&2; exit 1; }
    local sudo=()
    [ "$(id -u)" -eq 0 ] || sudo=(sudo)
    echo "installing: ${missing[*]}" >&2
    "${sudo[@]}" apt-get update -qq >&2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}
