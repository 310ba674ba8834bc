#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them, and Brotli 1.1.0 as the Python package
# brotli 1.1.0 brings it.
#
# What one would expect: `nix copy --to 'file://…?compression=br&compression-level=1'` packs quickly, as level 1 of the
# other methods does, and level 11 packs tightly. Brotli has the levels 0 to 11.
#
# What happens: Nix takes the setting without a word and does not hand it to Brotli. Every level, the default too,
# gives the very bytes of quality 11, Brotli's slowest. So the time is that of quality 11 as well, some hundred
# times that of quality 1. All three versions do so, and their bytes are the same.
# For gzip the same setting works: levels 1 and 9 give different sizes.
#
# Why it matters: who measures the methods through Nix, and so chooses one for a cache, finds Brotli unusably slow and
# never sees its fast levels. A tool that heeds the level writes other bytes than Nix from the same URL, with
# another FileHash; one that wants Nix's bytes must ignore the level as Nix does.
#
# Source of the expectation: the manual of Nix 2.34.8 on the store setting `compression-level`. The level is not
# among the arguments of BrotliCompressionSink in src/libutil/compression.cc of 2.34.8.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

python3 -m pip install -q --disable-pip-version-check --target "$T/py" brotli==1.1.0 >pip.log 2>&1 ||
  { cat pip.log; echo "not set up: no brotli"; exit 2; }
export PYTHONPATH=$T/py
# 300 kB of text that packs about as well as source code does, the same on every machine
python3 -c '
import hashlib
words = [hashlib.sha256(b"%d" % i).hexdigest()[: i % 9 + 1] for i in range(4000)]
n = 1
for _ in range(9000):
    line = []
    for _ in range(6):
        n = n * 6364136223846793005 + 1442695040888963407 & 2**64 - 1
        line.append(words[(n >> 33) % 4000 * ((n >> 50) % 40) // 40])
    print(" ".join(line))' >text

sum_() { sha256sum | cut -c1-16; }
for v in 2.8 2.26 2.34; do
  echo "== Nix $v"
  use $v
  case $v in 2.8) version 2.8.0 ;; 2.26) version 2.26.3 ;; 2.34) version 2.34.8 ;; esac
  p=$(nix-store --add text)
  nix-store --dump "$p" >nar
  sums=
  for level in default 1 5 11; do
    rm -rf cache
    nix copy --to "file://$T/cache?compression=br$([ $level = default ] || echo "&compression-level=$level")" "$p" 2>/dev/null
    sums="$sums $(cat cache/nar/*.br | sum_)"
  done
  python3 - nar >expected <<'P'
import sys, time, brotli
nar = open(sys.argv[1], 'rb').read()
for q in 1, 11:
    t = time.process_time()
    b = brotli.compress(nar, quality=q)
    open('q%d' % q, 'wb').write(b)
    print('  Brotli itself, quality %d: %d of %d bytes, %.3f s' % (q, len(b), len(nar), time.process_time() - t))
P
  cat expected
  q=$(sum_ <q11)
  is "default, 1, 5, 11 beside quality 11" " $q $q $q $q" "$sums"
  is "quality 1 is more than a tenth larger" yes "$([ "$(($(stat -c %s q1) * 10))" -gt "$(($(stat -c %s q11) * 11))" ] && echo yes || echo no)"
  for level in 1 9; do
    rm -rf cache
    nix copy --to "file://$T/cache?compression=gzip&compression-level=$level" "$p" 2>/dev/null
    cat cache/nar/* >gz$level
  done
  is "gzip: level 1 is larger than level 9" yes "$([ "$(stat -c %s gz1)" -gt "$(stat -c %s gz9)" ] && echo yes || echo no)"
done
is "Brotli" 1.1.0 "$(python3 -c 'import brotli; print(brotli.__version__)')"
verdict
exit "$BAD"
