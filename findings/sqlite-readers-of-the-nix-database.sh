#!/usr/bin/env bash
# Package and version: Nix 2.8.0, 2.26.3 and 2.34.8, as Debian builds them, and SQLite 3.46.1, as the Python package
# apsw 3.46.1.0 brings it.
#
# What one would expect: whoever may read db.sqlite (its mode is 0644) can query the store's database, and gets
# what is in it. One way to open it serves for every Nix.
#
# What happens: it depends on which Nix wrote last, and no way of opening serves for all. Nix 2.8 removes the
# files -wal and -shm at its end, but leaves the database in WAL mode: an ordinary user who opens it with
# mode=ro gets ReadOnlyError, since SQLite would have to make these files in a folder that he may not write.
# Nix 2.26 and 2.34 leave both files there, and the same open works, until somebody runs one command of Nix
# 2.8 on that store. With immutable=1 the open works after each of them, but SQLite then does not look at the
# WAL: while any process of 2.26 or 2.34 has the store open, a path that another one has added and that is
# valid is not in the answer. Nix 2.34's own `local?read-only=true` opens in that way, and says of such a
# path that it is not valid.
#
# Why it matters: a store tool that reads the database as an ordinary user must try mode=ro first, fall back on
# immutable=1 only where there is no -wal file, and never take "not in the answer" of an immutable read for
# "not valid". A test on a machine with one version sees only one of the cases.
#
# Source of the expectation: SQLite's document "Write-Ahead Logging", section "Read-Only Databases", and the manual of
# Nix 2.34.8 on the store setting `read-only`. The files stay because of the persistent WAL that openDB sets in
# src/libstore/local-store.cc of 2.26.3 and 2.34.8, but not of 2.8.0.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib/nix.bash"

python3 -m pip install -q --disable-pip-version-check --target "$T/py" apsw==3.46.1.0 >pip.log 2>&1 ||
  { cat pip.log; echo "not set up: no apsw"; exit 2; }
chmod 755 "$T"
cat >read.py <<'P'
# read.py DB OPTION: how many paths an ordinary user finds there
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + '/py')
import apsw
db, option = sys.argv[1:]
if option == 'version':
    print(apsw.sqlite_lib_version())
    sys.exit()
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    c = apsw.Connection('file:%s?%s' % (db, option), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    print(*[n for n, in c.execute('select count(*) from ValidPaths')], 'found')
except apsw.Error as e:
    print(type(e).__name__)
P
# The owner of the database is an ordinary user for it once its files and their folder are write-protected.
ask() { # OPTION
  [ "$(id -u)" = 0 ] || chmod -R a-w "$W/var/db"
  python3 read.py "$W/var/db/db.sqlite" "$1"
  [ "$(id -u)" = 0 ] || chmod -R u+w "$W/var/db"
}
add() { # TEXT
  echo "$1" >"$1"
  nix-store --add "$1"
}
files() { find "$W/var/db" -name 'db.sqlite*' -printf '%f\n' | sort | paste -sd' '; }

is "SQLite" 3.46.1 "$(python3 read.py none version)"
for v in 2.8 2.26 2.34; do
  echo "== Nix $v adds one path"
  use $v
  case $v in
    2.8) version 2.8.0; left='db.sqlite' ro=ReadOnlyError ;;
    2.26) version 2.26.3; left='db.sqlite db.sqlite-shm db.sqlite-wal' ro='1 found' ;;
    2.34) version 2.34.8; left='db.sqlite db.sqlite-shm db.sqlite-wal' ro='1 found' ;;
  esac
  add first >/dev/null
  is "mode of db.sqlite" 644 "$(stat -c %a "$W/var/db/db.sqlite")"
  is "journal mode, from the file's header (2 is WAL)" 2 "$(od -An -tu1 -j18 -N1 "$W/var/db/db.sqlite" | tr -d ' ')"
  is "files" "$left" "$(files)"
  is "an ordinary user, mode=ro" "$ro" "$(ask mode=ro)"
  is "an ordinary user, immutable=1" "1 found" "$(ask immutable=1)"
done

echo "== one command of Nix 2.8 on the store of 2.34"
PATH=$NIX_RIG_DIR/2.8/bin:$ORIG nix-store -q --hash "$(add first)" >/dev/null
is "an ordinary user, mode=ro" ReadOnlyError "$(ask mode=ro)"
add first >/dev/null
is "the same after a command of 2.34" "1 found" "$(ask mode=ro)"

echo "== a second path, added while another process of Nix 2.34 has the store open"
mkfifo hold
nix-store --serve <hold >/dev/null 2>&1 &
SRV=$!
exec 7>hold
for _ in $(seq 100); do
  [ -z "$(find "/proc/$SRV/fd" -lname '*/db.sqlite-wal' 2>/dev/null)" ] || break
  sleep 0.05
done
second=$(add second)
is "Nix itself" "$second" "$(nix-store --check-validity "$second" && echo "$second")"
is "an ordinary user, mode=ro" "2 found" "$(ask mode=ro)"
is "an ordinary user, immutable=1" "1 found" "$(ask immutable=1)"
rc=0
nix --extra-experimental-features read-only-local-store path-info --store 'local?read-only=true' "$second" >out 2>&1 || rc=$?
is "Nix with read-only=true" "status 1, not valid 1" "status $rc, not valid $(grep -c 'is not valid' out)"
exec 7>&-
wait "$SRV"
SRV=
is "immutable=1 once that process has ended" "2 found" "$(ask immutable=1)"
verdict
exit "$BAD"
