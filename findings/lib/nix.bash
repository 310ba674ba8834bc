# Sourced by the findings about Nix: works in a temporary folder T, with three versions of real Nix, which
# tests/rig/install brings. FEATURES are the experimental features to switch on.
# shellcheck shell=bash
export LC_ALL=C
FEATURES=${FEATURES:-nix-command}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) || exit 2
T=$(mktemp -d) || exit 2
T=$(cd "$T" && pwd -P) || exit 2
# shellcheck disable=SC2317  # the trap runs it
clean() { [ -z "${SRV:-}" ] || kill "$SRV" 2>/dev/null; chmod -R u+rwX "$T" 2>/dev/null; rm -rf "$T"; }
trap clean EXIT
trap 'exit 130' HUP INT TERM
cd "$T" || exit 2

# Real Nix, from the folder that NIX_RIG_DIR names or else in a folder of our own.
for v in 2.8 2.26 2.34; do [ -x "${NIX_RIG_DIR:-$T/none}/$v/bin/nix" ] || NIX_RIG_DIR=$T/rig; done
export NIX_RIG_DIR
"$HERE/tests/rig/install" 2.8 2.26 2.34 >rig.log 2>&1 || { cat rig.log; echo "not set up: no Nix"; exit 2; }

# use VERSION: that Nix, with an empty store and settings of its own below $T/VERSION.
ORIG=$PATH
unset "${!NIX_CO@}" "${!XDG_@}" NIX_REMOTE NIX_PATH NIX_SSHOPTS NIX_USER_CONF_FILES
use() {
  W=$T/$1
  mkdir -p "$W/etc" "$W/home"
  export PATH=$NIX_RIG_DIR/$1/bin:$ORIG HOME=$W/home NIX_CONF_DIR=$W/etc NIX_USER_CONF_FILES='' \
    NIX_STORE_DIR=$W/store NIX_STATE_DIR=$W/var NIX_LOG_DIR=$W/log NIX_CACHE_HOME=$W/home/cache/nix
  printf '%s\n' "experimental-features = $FEATURES" 'build-users-group =' \
    'sandbox = false' 'substituters =' >"$W/etc/nix.conf"
}

BAD=0
is() { # WHAT WANTED SEEN
  if [ "$2" = "$3" ]; then printf '  as before: %s: %s\n' "$1" "$3"
  else printf '  CHANGED: %s\n    was:    %s\n    is now: %s\n' "$1" "$2" "$3"; BAD=1; fi
}
version() { is "nix --version" "nix (Nix) $1" "$(nix --version)"; }
verdict() { if [ "$BAD" = 0 ]; then echo "still so"; else echo "something has changed"; fi; }
