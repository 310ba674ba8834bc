#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them; Python 3 of the machine reads JSON.
#
# What one would expect: a file name in the Nix store may hold any bytes but zero and slash. A store path that
# Nix adds, verifies and copies can be copied to a binary cache with any of the cache's settings.
#
# What happens: with `write-nar-listing=true` the copy of a path with one file name in Latin-1 depends on the
# version. Nix 2.8 writes the bytes as they are into the .ls file, which is then no valid JSON: a strict
# reader refuses all of it, and a reader that puts U+FFFD for bad bytes gives two names one key and
# loses a file. Nix 2.26 and 2.34 pack the whole NAR, then fail with status 1 and put neither NAR nor
# narinfo there, so that this path cannot be pushed to such a cache at all. Without a listing it goes
# through. `nix store ls --json` fails in the same way where `nix store ls` prints the names.
#
# Why it matters: a tool that pushes many paths to a cache with listings meets one path, out of a source with
# old file names, that no real Nix can have pushed there. It must choose an encoding of its own for the
# listing or leave the listing out, and it must not take an absent .ls for an absent path.
#
# Source of the expectation: the manual of Nix 2.34.8 on file system objects and on the NAR format, where names
# are bytes, and on the store setting `write-nar-listing`. The listing is written by
# src/libstore/binary-cache-store.cc with a JSON library that wants UTF-8.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

for v in 2.8 2.26 2.34; do
  echo "== Nix $v"
  use $v
  case $v in
    2.8) version 2.8.0 ;;
    2.26) version 2.26.3 ;;
    2.34) version 2.34.8 ;;
  esac
  mkdir "$W/tree"
  echo one >"$W/tree/"$'caf\xe9'       # two names that differ in one byte, é and è of Latin-1
  echo two >"$W/tree/"$'caf\xe8'
  p=$(nix-store --add "$W/tree")
  h=$(basename "$p" | cut -c1-32)

  rc=0; nix copy --to "file://$W/plain?compression=none" "$p" >err 2>&1 || rc=$?
  is "a copy without a listing, status" 0 "$rc"
  rc=0; nix copy --to "file://$W/listed?compression=none&write-nar-listing=true" "$p" >err 2>&1 || rc=$?
  cached="NAR $(find "$W/listed/nar" -name '*.nar' | wc -l) narinfo $(find "$W/listed" -name '*.narinfo' | wc -l) ls $(find "$W/listed" -name '*.ls' | wc -l)"
  nix store ls "$p" >out 2>>err
  is "names that nix store ls prints" 2 "$(grep -ac '^./caf.$' out)"
  js=0; nix store ls --json "$p" >out 2>>err || js=$?
  if [ $v = 2.8 ]; then
    is "a copy with a listing, status and files" "0, NAR 1 narinfo 1 ls 1" "$rc, $cached"
    is "nix store ls --json, status" 0 "$js"
    is "the .ls file, read strictly" UnicodeDecodeError "$(python3 - "$W/listed/$h.ls" <<'P'
import json, sys
try: print(len(json.load(open(sys.argv[1], encoding='utf-8'))['root']['entries']))
except Exception as e: print(type(e).__name__)
P
)"
    is "files in it, bad bytes replaced" 1 "$(python3 - "$W/listed/$h.ls" <<'P'
import json, sys
print(len(json.load(open(sys.argv[1], encoding='utf-8', errors='replace'))['root']['entries']))
P
)"
  else
    is "a copy with a listing, status and files" "1, NAR 0 narinfo 0 ls 0" "$rc, $cached"
    is "nix store ls --json, status" 1 "$js"
    is "messages about it" 2 "$(grep -c 'error: .json.exception.type_error.316' err)"
  fi
done
verdict
exit "$BAD"
