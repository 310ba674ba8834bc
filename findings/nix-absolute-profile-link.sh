#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them.
#
# What one would expect: a profile is a link to one of its generations, and `nix-collect-garbage -d` deletes
# all generations but the one that the profile leads to. Whether the link's text is relative (`p-3-link`, as
# Nix writes it) or absolute (`/…/profiles/p-3-link`, as `ln -sfn "$PWD/p-3-link" p` or a restored backup
# leaves it) makes no difference to anybody who follows it.
#
# What happens: with an absolute text no generation counts as the current one. `--list-generations` marks
# none, and `nix-collect-garbage -d` deletes all of them, then all that only they kept. The profile is left
# behind, leading nowhere, and the programs of its current generation are gone from the disk. The exit status
# is 0 and no line says so. With the relative text the same steps keep the current generation.
#
# Why it matters: whoever writes profiles, restores them or moves them has to write the relative text, and
# whoever deletes generations has to find out where the link leads, not how its text reads.
#
# Source of the expectation: nix-collect-garbage(1) of 2.34.8, "deletes all old generations of all profiles".
# The cause is findGenerations in src/libstore/profiles.cc: it takes the number out of the text of the link,
# which must begin with the profile's name.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

# After three generations and `nix-collect-garbage -d`, with the text that makes the profile lead to the third.
after() { # TEXT
  local p=$NIX_STATE_DIR/profiles/p n marked status=0
  rm -rf "${p%/*}"
  mkdir -p "${p%/*}"
  for n in 1 2 3; do
    echo "generation $n" >made
    nix-env -p "$p" --set "$(nix-store --add made)" >/dev/null 2>&1 || status=$?
  done
  ln -sfn "${1//PROFILE/$p}" "$p"
  marked=$(nix-env -p "$p" --list-generations 2>/dev/null | grep -c current)
  nix-collect-garbage -d >/dev/null 2>&1 || status=$?
  echo "$marked marked, $(find "${p%/*}" -name 'p-*-link' | wc -l) left," \
    "the profile holds '$(cat "$p" 2>/dev/null)', status $status"
}

for v in 2.8 2.26 2.34; do
  echo "== Nix $v"
  use $v
  case $v in
    2.8) version 2.8.0 ;;
    2.26) version 2.26.3 ;;
    2.34) version 2.34.8 ;;
  esac
  is 'relative text' "1 marked, 1 left, the profile holds 'generation 3', status 0" "$(after p-3-link)"
  is 'absolute text' "0 marked, 0 left, the profile holds '', status 0" "$(after PROFILE-3-link)"
done
verdict
exit "$BAD"
