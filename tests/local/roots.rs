//! Roots of all shapes, as real Nix sees them.

use crate::support::{Rig, each_version, machine::Machine, rig};
use std::{collections::BTreeSet, fs, path::Path, process::Command};
use tempfile::TempDir;

each_version!(the_same_roots);

/// Links, files and processes of all shapes: what Nix takes for a root we do, and no more, but for mapped files
/// that Nix overlooks.
fn the_same_roots(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let (ours, theirs) = shapes(&rig, SHAPES);
    let missing: Vec<_> = theirs.difference(&ours).collect();
    assert!(missing.is_empty(), "{version}: Nix finds {missing:?}");
    let names = |lines: BTreeSet<String>| {
        let names = lines.into_iter().map(|line| name(&line));
        names.collect::<BTreeSet<_>>()
    };
    let more: Vec<_> = ours.difference(&theirs).cloned().collect();
    let more = names(more.into_iter().collect());
    assert_eq!(more, set(&["mapped-blank", "mapped-deleted"]), "{version}");
    let expected = set(&[
        "cwd",
        "deep",
        "direct",
        "environ",
        "exe",
        "fd",
        "fd-deleted",
        "file",
        "hidden",
        "indirect",
        "into",
        "mapped",
        "outer-relative",
        "profile",
        "update",
    ]);
    assert_eq!(names(theirs), expected, "{version}");
}

each_version!(links_and_leases);

/// What `--out-link`, `roots add` and `roots lease` make keeps its path from Nix's collector, and ends.
fn links_and_leases(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let machine = Machine::new();
    machine.write("in/file", format!("of {version}, linked"));
    machine.write("leased", format!("of {version}, leased"));
    machine.write("added", format!("of {version}, added"));
    let store = machine.store();
    let path = machine.ok("add in");
    let cache = machine.cache("cache");
    machine.ok(&format!("push {path} --to {cache}"));
    let pull = format!("pull {path} --from {cache} --no-check-sigs --out-link kept");
    machine.ok(&pull);
    let (leased, added) = (machine.ok("add leased"), machine.ok("add added"));
    let lease = machine.ok(&format!("roots lease {leased} --ttl 2h --owner agent"));
    let link = machine.ok(&format!("roots add {added} sub/link"));
    let printed = || {
        let store = store.to_str().unwrap();
        let args = ["--store", store, "--gc", "--print-roots"];
        String::from_utf8(rig.run("nix-store", args)).unwrap()
    };
    for path in [&path, &leased, &added] {
        assert!(
            printed().contains(&format!("-> {path}")),
            "{version}: {path}"
        );
    }
    let list = machine.ok("roots list");
    let ends = format!("-> {leased}  (lease {lease} for agent, ends in 119m)");
    let ends_later = ends.replace("119m", "2h");
    assert!(list.contains(&ends) || list.contains(&ends_later), "{list}");
    let line = format!("{link} -> {added}");
    assert!(list.lines().any(|listed| listed == line), "{list}");

    assert!(
        machine
            .fails(1, "roots remove in")
            .contains("is no root of")
    );
    machine.ok("roots remove sub/link");
    machine.ok("roots release --owner agent");
    machine.fails(1, &format!("roots release {lease}"));
    fs::remove_file(machine.home().join("kept")).unwrap();
    let left = machine.ok("roots list");
    for path in [&path, &leased, &added] {
        assert!(!left.contains(&**path), "{left}");
        assert!(!printed().contains(&**path), "{version}: {path}");
    }
}

/// Runs `script` beside a store of Nix at /nix, which makes roots; what our `roots list` prints, and what
/// `nix-store --gc --print-roots` does.
fn shapes(rig: &Rig, script: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("script");
    fs::write(&file, script).unwrap();
    let mut command: Command = rig.with_daemon();
    command.args(["--no-daemon", rig.version, "--", "bash"]);
    command
        .arg(&file)
        .arg(rig.version)
        .current_dir(folder.path());
    command.env("TK_STORE_BIN", env!("CARGO_BIN_EXE_tk-store"));
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {told}", rig.version);
    let read = |name: &str| lines(&folder.path().join(name));
    (read("ours"), read("theirs"))
}

/// The lines of a list of roots, without quotes, and without the temporary roots of those who look.
fn lines(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.contains("{temp:"));
    lines.map(|line| line.replace('"', "")).collect()
}

/// The name of the path that a line tells, which is `shape-VERSION-NAME`.
fn name(line: &str) -> String {
    let name = line.rsplit("-shape-").next().unwrap_or(line);
    name.to_owned()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Paths of no other test: all of /proc is read, of other namespaces too.
const SHAPES: &str = r#"
set -eu
G=/nix/var/nix/gcroots P=/nix/var/nix/profiles
mkdir -p work $G/.hidden/deep; cd work; W=$PWD
add() {
    mkdir -p "$1/shape-$1"
    echo "$v $1 $$" >"$1/shape-$1/x"; cp "$1/shape-$1/x" "$1/shape-$1/a b"
    cp "$(command -v sleep)" "$1/shape-$1/sleep"
    nix-store --add "$1/shape-$1"
}
v=$1
ln -s $(add direct) $G/direct
ln -s $(add hidden) $G/.hidden/.link
ln -s $(add deep) $G/.hidden/deep/link
ln -s $(add into)/x $G/into
ln -s $(add indirect) link; ln -s $W/./link $G/indirect
ln -s $(add outer-relative) outer; ln -s $(realpath --relative-to=$G $W)/outer $G/outer
ln -s $(add update) moved; nix-store --add-root $W/moved -r $(readlink moved) >/dev/null
ln -s p-1-link $P/p; ln -s $(add profile) $P/p-1-link
F=$(add file); : >$G/${F##*/}; : >$G/other
# None of these is a root.
ln -s $W/link two; ln -s $W/two $G/two
R=$(add relative); ln -s ../../../store/${R##*/} $G/relative
I=$(add inner-relative); ln -s $(realpath --relative-to=$W /nix/store)/${I##*/} inner; ln -s $W/inner $G/inner
D=$(add doubled); ln -s /nix//store/${D##*/} $G/doubled; ln -s /nix/store//${D##*/} $G/doubled2
mkdir folder; ln -s $(add in-folder) folder/l; ln -s $W/folder $G/folder
ln -s /nix/store/00000000000000000000000000000000-absent $G/absent
B=$(add bare)
C=$(add command)
nix-store --add-root $W/gone -r $(add stale) >/dev/null; rm gone
cwd=$(add cwd) exe=$(add exe) environ=$(add environ) fd=$(add fd) fdd=$(add fd-deleted) \
    mapped=$(add mapped) md=$(add mapped-deleted) mb=$(add mapped-blank)
(cd $cwd; exec sleep 20) & pids=$!
(exec $exe/sleep 20) & pids="$pids $!"
(A=a:$environ/b B=${B##*/} exec sleep 20) & pids="$pids $!"
(exec sleep 20 <$fd/x) & pids="$pids $!"
python3 - "$mapped/x" "$md/x" "$mb/a b" "$fdd/x" <<'PY' &
import mmap, os, sys, time
def mapped(path):
    file = os.open(path, os.O_RDONLY)
    kept = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    os.close(file)
    for n in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + n) == path: os.close(int(n))
        except OSError: pass
    return kept
paths = sys.argv[1:]
kept = [mapped(path) for path in paths[:3]] + [open(paths[3])]
for path in (paths[1], paths[3]):
    os.chmod(os.path.dirname(path), 0o755)
    os.unlink(path)
open("ready", "w").close()
time.sleep(20)
PY
pids="$pids $!"
(exec python3 -c 'import time; time.sleep(20)' $C/x) & pids="$pids $!"
tries=0
until [ -e ready ] && grep -qz shape-environ /proc/$(echo $pids | cut -d' ' -f3)/environ; do
    sleep .05; tries=$((tries + 1)); [ $tries -lt 200 ]
done
$TK_STORE_BIN roots list --store local >../ours
[ "$(ls $G/auto | wc -l)" = 2 ]
nix-store --gc --print-roots >../theirs
[ "$(ls $G/auto | wc -l)" = 1 ]
kill $pids
"#;
