#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them.
#
# What one would expect: `!include FILE` passes over a FILE that cannot be had, and the other lines of
# nix.conf count. `include FILE` is an error then.
#
# What happens: Nix tells three kinds of "cannot be had" apart. If nothing bears the name, it does what one
# expects. If the name is a link whose target is gone, both forms are silent, although `include` should
# fail. If a folder on the way cannot be passed (the user may not enter it, or a link in it leads to
# itself), both forms are silent and end with status 0, but Nix 2.26 and 2.34 forget ALL lines of the
# nix.conf that holds the line, those above it too; Nix 2.8 keeps the lines above and forgets those below.
# The usual way to keep access tokens secret leads there: an `!include` of a file in a folder that only
# root may enter takes every system-wide setting away from the ordinary users.
#
# Why it matters: a tool that reads nix.conf by the letter of the manual has substituters, keys and limits
# that the Nix beside it does not have, and two versions of Nix do not have the same ones either.
#
# Source of the expectation: the chapter on the file format in nix.conf(5) of 2.34.8. The cause is that
# pathExists throws where the loop around it, parseConfigFiles in src/libutil/configuration.cc, does not
# catch; loadConfFile in src/libstore/globals.cc drops the error together with the file.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

# What is left of a nix.conf that has one setting above LINE and one below it.
AS=()
left() { # LINE
  local rc=0 what=
  printf '%s\n' 'connect-timeout = 41' "$1" 'stalled-download-timeout = 42' >"$W/etc/nix.conf"
  "${AS[@]}" nix --extra-experimental-features nix-command "${SHOW[@]}" >out 2>err || rc=$?
  ! grep -qx 'connect-timeout = 41' out || what=above
  ! grep -qx 'stalled-download-timeout = 42' out || what=${what:+$what and }below
  echo "${what:-nothing} left, status $rc, errors $(grep -c '^error' err)"
}

chmod 755 "$T"
for v in 2.8 2.26 2.34; do
  echo "== Nix $v"
  use $v
  SHOW=(config show)
  case $v in
    2.8) version 2.8.0; SHOW=(show-config); cut='above left, status 0, errors 0' ;;
    2.26) version 2.26.3; cut='nothing left, status 0, errors 0' ;;
    2.34) version 2.34.8; cut='nothing left, status 0, errors 0' ;;
  esac
  all='above and below left, status 0, errors 0'
  ln -sfn gone "$W/etc/dangling"
  ln -sfn loop "$W/etc/loop"
  is '!include absent       ' "$all" "$(left '!include absent')"
  is 'include absent        ' 'nothing left, status 1, errors 1' "$(left 'include absent')"
  is '!include dangling     ' "$all" "$(left '!include dangling')"
  is 'include dangling      ' "$all" "$(left 'include dangling')"
  is '!include loop/tokens  ' "$cut" "$(left '!include loop/tokens')"
  is 'include loop/tokens   ' "$cut" "$(left 'include loop/tokens')"

  # A folder that only its owner may enter, as an ordinary user meets it. The file in it, too, may be closed.
  mkdir -p "$W/etc/secret" "$W/etc/open"
  echo 'log-lines = 43' >"$W/etc/secret/tokens"
  cp "$W/etc/secret/tokens" "$W/etc/open/tokens"
  chmod 000 "$W/etc/open/tokens" "$W/etc/secret"
  if [ "$(id -u)" = 0 ]; then AS=(setpriv --reuid=65534 --regid=65534 --clear-groups); chmod 777 "$W/home"; fi
  if "${AS[@]}" test -x "$NIX_RIG_DIR/$v/bin/nix"; then
    is '!include open/tokens  ' "$all" "$(left '!include open/tokens')"
    is '!include secret/tokens' "$cut" "$(left '!include secret/tokens')"
  else
    echo "  (not tried as an ordinary user, who may not enter $NIX_RIG_DIR)"
  fi
  AS=()
done
verdict
exit "$BAD"
