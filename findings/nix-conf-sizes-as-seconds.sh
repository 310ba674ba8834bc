#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them.
#
# What one would expect: a setting of nix.conf that counts seconds either takes only a plain number, or
# reads the letter m as minutes, as the time settings of systemd do. Nix 2.8 takes plain numbers only.
#
# What happens: since its release 2.24 Nix reads a letter behind the number of every whole-number setting
# as a binary multiple. `timeout = 10m` is 10,485,760 seconds, which is 121 days, and `http-connections = 1K`
# is 1024 connections. Nix says nothing about it. `timeout = 1h` is an error, since h is none of K, M, G
# and T: one wrong unit is refused and the other one is taken. `max-jobs`, which is a number as well,
# refuses every letter. Nix 2.8 refuses them all, so that one and the same nix.conf stops the older Nix
# and gives the newer one a limit that is no limit.
#
# Why it matters: a tool that reads nix.conf must multiply as this Nix does, or else its timeouts and
# connection limits differ from those that Nix uses. A tool that writes nix.conf for several versions
# must write plain numbers, also where it means bytes, such as `min-free`.
#
# Source of the expectation: nix.conf(5) of 2.34.8 describes `timeout` and `max-silent-time` as numbers of
# seconds; the release notes of 2.24 announce the letters with a size in bytes as their example. The
# code is string2IntWithUnitPrefix in src/libutil/include/nix/util/util.hh of 2.34.8.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

setting() { # NAME VALUE: what Nix makes of it, or "refused"
  local out
  out=$(NIX_CONFIG="$1 = $2" nix "${SHOW[@]}" 2>&1) || { echo "refused"; return; }
  sed -n "s/^$1 = //p" <<<"$out"
}

for v in 2.8 2.26 2.34; do
  echo "== Nix $v"
  use $v
  SHOW=(config show)
  case $v in
    2.8) version 2.8.0; SHOW=(show-config) ;;
    2.26) version 2.26.3 ;;
    2.34) version 2.34.8 ;;
  esac
  for c in timeout:10m:10485760 timeout:1h:refused connect-timeout:1k:1024 narinfo-cache-negative-ttl:2M:2097152 \
    http-connections:1K:1024 cores:2K:2048 max-jobs:2K:refused min-free:1G:1073741824; do
    IFS=: read -r name value want <<<"$c"
    [ $v != 2.8 ] || want=refused
    is "$name = $value" "$want" "$(setting "$name" "$value")"
  done
done
verdict
exit "$BAD"
