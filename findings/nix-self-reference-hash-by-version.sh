#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them.
#
# What one would expect: the content address of a store path that refers to itself is the same in every Nix, and
# a content-addressed path from a cache needs no signature, since anybody can check it. The design hashes the
# NAR with the path's own 32 digits blanked, followed by the places where they stood.
#
# What happens: only Nix 2.8 hashes the places ("|" and the decimal offset, for each). Nix 2.26 and 2.34 still
# have the loop that would do so, but since the search moved to another function the list of places stays
# empty, and they hash the blanked NAR alone. So the same tree gets another content address and another
# path. This script computes both formulas beside each Nix. A path that Nix 2.8 made, by
# `nix store make-content-addressed` or by a content-addressed derivation, can be copied to another store of 2.8,
# but not to one of 2.26 or 2.34: they refuse it ("ca hash mismatch"), also without a check of
# signatures, and 2.8 refuses what they made. Without a self reference all of them agree.
#
# Why it matters: a tool that checks content addresses by one formula calls half of the world's self-referential
# paths corrupt. It must accept both, or know which Nix wrote the cache; a test against one version proves
# nothing about the other.
#
# Source of the expectation: the comment in HashModuloSink::finish, src/libstore/references.cc of 2.34.8, says
# that the places are hashed; RewritingSink in the same file no longer notes them, as it does in 2.8.0.
set -u
FEATURES='nix-command ca-derivations'
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

cat >formulas.py <<'P'
import hashlib, sys
nar, digits = open(sys.argv[1], 'rb').read(), sys.argv[2].encode()
places, at = [], nar.find(digits)
while at >= 0:
    places.append(at)
    at = nar.find(digits, at + 32)
blank = nar.replace(digits, bytes(32))
def nix32(d):
    n = int.from_bytes(d, 'little')
    return ''.join('0123456789abcdfghijklmnpqrsvwxyz'[n >> 5 * i & 31] for i in reversed(range(52)))
print(len(places), nix32(hashlib.sha256(blank + b''.join(b'|%d' % p for p in places)).digest()),
      nix32(hashlib.sha256(blank).digest()))
P
cat >self.nix <<'N'
{ ca ? false }: derivation ({ name = "self"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "echo $out >$out; echo and again $out/x >>$out" ]; }
  // (if ca then { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } else { }))
N

formula() { # PATH: which formula its content address follows
  local ca n with without
  ca=$(nix path-info --json "$1" 2>/dev/null | grep -o '"ca":"[^"]*"' | cut -d'"' -f4)
  nix-store --dump "$1" >nar
  read -r n with without < <(python3 formulas.py nar "$(basename "$1" | cut -c1-32)")
  case $ca in
    "fixed:r:sha256:$with") echo "$n references, places hashed" ;;
    "fixed:r:sha256:$without") echo "$n references, places not hashed" ;;
    *) echo "neither: $ca" ;;
  esac
}

for v in 2.8 2.26 2.34; do
  echo "== Nix $v"
  use $v
  export NIX_STORE_DIR=$T/store NIX_STATE_DIR=$T/var-$v NIX_LOG_DIR=$T/log-$v
  case $v in
    2.8) version 2.8.0; want='2 references, places hashed' ;;
    2.26) version 2.26.3; want='2 references, places not hashed' ;;
    2.34) version 2.34.8; want='2 references, places not hashed' ;;
  esac
  o=$(nix-build --no-out-link self.nix 2>/dev/null)
  p=$(nix store make-content-addressed --json "$o" 2>/dev/null | grep -o "$T/store/[^\"]*" | tail -n 1)
  is "make-content-addressed" "$want" "$(formula "$p")"
  d=$(nix-build --no-out-link self.nix --arg ca true 2>/dev/null)
  is "content-addressed derivation" "$want" "$(formula "$d")"
  nix copy --to "file://$T/cache-$v" "$p" 2>/dev/null
  echo "$p" >path-$v
  mv store store-$v
done
is "2.26 and 2.34 give one path" "$(cat path-2.26)" "$(cat path-2.34)"
is "2.8 gives it, too" no "$(cmp -s path-2.8 path-2.34 && echo yes || echo no)"

for from in 2.8 2.34; do
  for to in 2.8 2.26 2.34; do
    use $to
    export NIX_STORE_DIR=$T/store
    s="local?real=$T/$from-$to&state=$T/$from-$to/var&log=$T/$from-$to/log"
    rc=0
    nix copy --no-check-sigs --from "file://$T/cache-$from" --to "$s" "$(cat path-$from)" >out 2>&1 || rc=$?
    if [ $from = $to ] || [ $from$to = 2.342.26 ]; then want='status 0, mismatches 0'; else want='status 1, mismatches 1'; fi
    is "what $from made, into a store of $to" "$want" "status $rc, mismatches $(grep -c 'ca hash mismatch' out)"
  done
done
verdict
exit "$BAD"
