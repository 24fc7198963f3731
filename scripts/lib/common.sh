# Sourced by the scripts: where things are kept, and how they are installed.
# shellcheck shell=bash
set -uo pipefail
export PATH="$HOME/.cargo/bin:$PATH" DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

ROOT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE_DIR=${FTPFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ftpfs-test}
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT_DIR/target}
mkdir -p "$CACHE_DIR"

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

SUDO=()
[ "$(id -u)" = 0 ] || SUDO=(sudo)
as_root() { "${SUDO[@]}" "$@"; }

# packages NAME…: installs those Debian or Ubuntu packages that are missing.
packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} = 0 ] && return 0
  command -v apt-get >/dev/null || die "please install: ${missing[*]}"
  say "installing: ${missing[*]}"
  update_lists || return 1
  as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

update_lists() {
  [ -n "${LISTS_UPDATED:-}" ] || as_root apt-get update -qq || return 1
  LISTS_UPDATED=1
}

need_cargo() {
  packages gcc libc6-dev || die "cannot install a C compiler (the linker of Rust)"
  command -v cargo >/dev/null && return 0
  die "cargo is missing: install Rust 1.89 or newer, https://rustup.rs"
}

# work_directory NAME: a new WORK, which the servers' user may enter. What ftpfs keeps of its user it
# keeps there, not in the home directory of whoever runs the tests.
work_directory() {
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/ftpfs-$1-XXXXXX") || die "cannot make a directory to work in"
  chmod 755 "$WORK"
  export XDG_CACHE_HOME=$WORK/cache XDG_STATE_HOME=$WORK/state
}

# A FUSE device that may be opened?
has_fuse() { : 2>/dev/null <>/dev/fuse; }

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
  local until=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.05
  done
}

# A port that nobody uses now.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
