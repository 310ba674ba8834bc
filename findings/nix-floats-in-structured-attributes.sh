#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them.
#
# What one would expect: one expression without outside inputs gives one store path, whichever version evaluates
# it, and a .drv file is plain bytes, which a store takes as they are.
#
# What happens: a floating-point number in structured attributes breaks both. Nix 2.8 writes six digits, so that
# 3.14159265358979 becomes 3.14159 and 1000000.0 becomes 1e+06; 2.26 and 2.34 write all digits and 1000000.0.
# The text is part of the .drv, so the store paths differ between 2.8 and the others. And 2.34 does not
# keep the text: it parses the JSON of a .drv that it reads and writes it anew before it computes the output
# path. With 1e+06 it therefore computes another path than the one in the file, and refuses to import or to copy
# the .drv ("derivation has incorrect output"), although the file and its hash are right. 2.26 takes it.
# Without the exponent (3.14159) 2.34 takes the .drv of 2.8, so that it depends on the number alone.
#
# Why it matters: a tool that copies closures of derivations, or keeps them in a cache, holds .drv files that an
# older Nix made and that Nix 2.34 will not have. A tool that computes output paths itself must hash the
# text of the attribute as it stands in the .drv, and not parse it and print it again.
#
# Source of the expectation: the manual of Nix 2.34.8 on derivations and on store paths. The second reading is
# StructuredAttrs::tryExtract and unparse in src/libstore/parsed-derivations.cc of 2.34.8; the six digits
# are what a C++ stream gives in src/libutil/json.cc of 2.8.0.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

cat >float.nix <<'N'
{ x }: derivation { name = "float"; system = "x86_64-linux"; builder = "/bin/sh";
  __structuredAttrs = true; inherit x; }
N
# All three work on one store folder, and each has its own database.
for v in 2.8 2.26 2.34; do mkdir -p $v; done
for x in 3.14159265358979 1000000.0; do
  for v in 2.8 2.26 2.34; do
    use $v
    export NIX_STORE_DIR=$T/store
    drv=$(nix-instantiate float.nix --arg x $x 2>/dev/null)
    echo "== Nix $v, $x: $(basename "$drv")"
    case $v in 2.8) version 2.8.0 ;; 2.26) version 2.26.3 ;; 2.34) version 2.34.8 ;; esac
    text=$(grep -aoE '\\"x\\":[^}]*' "$drv" | cut -d: -f2)
    case $v/$x in
      2.8/3*) is "in the .drv" 3.14159 "$text" ;;
      2.8/1*) is "in the .drv" 1e+06 "$text" ;;
      *) is "in the .drv" $x "$text" ;;
    esac
    echo "$drv" >"$v.$x"
    # keep what 2.8 made, in both forms that travel, for the others
    if [ $v = 2.8 ]; then
      nix-store --export "$drv" >"$x.export"
      nix copy --derivation --to "file://$T/cache" "$drv" 2>/dev/null
    fi
  done
  is "2.26 and 2.34 agree on the path" "$(cat "2.26.$x")" "$(cat "2.34.$x")"
  is "2.8 agrees, too" no "$(cmp -s "2.8.$x" "2.34.$x" && echo yes || echo no)"
done

for x in 3.14159265358979 1000000.0; do
  drv=$(cat "2.8.$x")
  for v in 2.26 2.34; do
    use $v
    export NIX_STORE_DIR=$T/store
    echo "== the .drv of 2.8 with $x, taken by Nix $v into another store"
    other="local?real=$T/other-$v&state=$T/other-$v/var&log=$T/other-$v/log"
    i=0; nix-store --store "$other" --import <"$x.export" >out 2>err1 || i=$?
    c=0; nix copy --derivation --no-check-sigs --from "file://$T/cache" --to "$other" "$drv" >out 2>err2 || c=$?
    if [ $v/$x = 2.34/1000000.0 ]; then
      is "import, copy: status" "1 1" "$i $c"
      is "messages" "1 1" "$(grep -c 'derivation has incorrect output' err1) $(grep -c 'derivation has incorrect output' err2)"
    else
      is "import, copy: status" "0 0" "$i $c"
    fi
  done
done
verdict
exit "$BAD"
