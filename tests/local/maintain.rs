//! Verify, repair and optimise on copies of one damaged store: ours and real Nix's leave the same behind.

use super::{PLAIN, nix_store, open, text};
use crate::support::{Rig, Tally, VERSIONS, rig};
use rusqlite::{Connection, OpenFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tk_nar::fs::remove_tree;
use tk_store::{
    Maintain, RepairSource, StoreVerifyOptions, StoreVerifyReport, VerifyDepth,
    log::{LogEvent, LogSink},
};

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_mended_as_by_nix() {
    let mut table = Tally::new("local stores: verify, repair, optimise as Nix", &VERSIONS);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let damaged = Damaged::new(&rig);
        let at = |name: &str| damaged.temp.path().join(name);
        let version = rig.version;

        let (ours, theirs) = (damaged.copy("verify-ours"), damaged.copy("verify-theirs"));
        let (errors, words) = nix_verify(&rig, &theirs, &[]);
        let (report, told) = verify(&ours, RepairSource::Nothing).await;
        table.equal(version, "verify: errors", report.errors_left, errors);
        table.equal(version, "verify: words", told, words);
        same_stores(&mut table, version, "verify", &ours, &theirs);

        let (ours, theirs) = (damaged.copy("repair-ours"), damaged.copy("repair-theirs"));
        let from = format!("local?root={}&trusted=true", at("good").display());
        let options = ["--repair", "--option", "substituters", &from];
        let (errors, mut words) = nix_verify(&rig, &theirs, &options);
        // See NOT_REPAIRED.
        let forgetful = version != "2.8";
        words
            .retain(|line| !(forgetful && line.contains("cannot repair") && is_not_repaired(line)));
        let good = RepairSource::Stores(vec![Arc::new(open(&at("good")).await)]);
        let (report, told) = verify(&ours, good).await;
        table.equal(
            version,
            "repair: errors",
            (report.errors_left, errors),
            (false, forgetful),
        );
        table.equal(version, "repair: words", told, words);
        let files = |root| {
            let mut files = files(root);
            files
                .retain(|name, _| !(forgetful && is_not_repaired(name.split('/').next().unwrap())));
            files
        };
        let differ = difference(&files(&ours), &files(&theirs));
        table.equal(version, "repair: files", differ, Vec::new());
        table.equal(version, "repair: rows", rows(&ours), rows(&theirs));
        table.equal(
            version,
            "repaired",
            nix_verify(&rig, &ours, &[]),
            (false, BTreeSet::new()),
        );

        // Nix stops at a path that is gone.
        let (ours, theirs) = (
            damaged.complete("link-ours"),
            damaged.complete("link-theirs"),
        );
        nix_store(&rig, &theirs, &["--optimise"]);
        open(&ours).await.optimise(&()).await.unwrap();
        same_stores(&mut table, version, "optimise", &ours, &theirs);
    }
    table.finish();
}

/// Two paths that disappeared, of which a third needs one and that one the other: real Nix stops in the
/// middle with an error of its database.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_disappeared() {
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let temp = TempDir::new().unwrap();
        let root = temp.path().join("root");
        let file = temp.path().join("chain.nix");
        fs::write(&file, CHAIN).unwrap();
        let out = rig.run("nix-instantiate", ["--store", text(&root), text(&file)]);
        let store = open(&root).await;
        let out = String::from_utf8(out).unwrap();
        let mut drv = tk_store::Store::dir(&store).parse(out.trim()).unwrap();
        let mut gone = Vec::new();
        for _ in 0..2 {
            let info = tk_store::StoreExt::require_info(&store, &drv)
                .await
                .unwrap();
            drv = info.references.into_iter().next().unwrap();
            remove_tree(&store.real_path(&drv)).unwrap();
            gone.push(drv.clone());
        }
        let (report, told) = verify(&root, RepairSource::Nothing).await;
        assert_eq!(report.faults.len(), 2, "{report:?}");
        assert!(
            told.iter()
                .all(|line| line.contains("still has valid referrers")),
            "{told:?}"
        );
        let valid = store.all().await.unwrap();
        assert!(gone.iter().all(|path| valid.contains(path)));
    }
}

/// A store with a path for each kind of damage, and one that is whole.
struct Damaged {
    temp: TempDir,
}

impl Damaged {
    fn new(rig: &Rig) -> Self {
        let temp = TempDir::new().unwrap();
        let (input, good) = (temp.path().join("in"), temp.path().join("good"));
        let mut folders = Vec::new();
        for (name, _) in DAMAGES {
            folders.push(input.join(name));
            make_input(folders.last().unwrap(), name);
        }
        let mut add = vec!["--add"];
        add.extend(folders.iter().map(|folder| text(folder)));
        let paths = nix_store(rig, &good, &add);
        // What a derivation needs.
        let needed = input.join("needed");
        make_input(&needed, "needed");
        let file = temp.path().join("needs.nix");
        fs::write(&file, NEEDS.replace("PATH", text(&needed))).unwrap();
        let drv = rig.run("nix-instantiate", ["--store", text(&good), text(&file)]);
        let drv = String::from_utf8(drv).unwrap();
        let needed = nix_store(rig, &good, &["-q", "--references", drv.trim()]);
        nix_store(rig, &good, &["--optimise"]);

        let bad = temp.path().join("bad");
        copy(&good, &bad);
        let real = |path: &str| bad.join(path.trim_start_matches('/'));
        for ((_, damage), path) in DAMAGES.iter().zip(paths.lines()) {
            damage(&real(path)).unwrap();
        }
        remove_tree(&real(needed.trim())).unwrap();
        let stray = bad.join("nix/store/.links").join("0".repeat(52));
        fs::write(stray, "stray").unwrap();
        Damaged { temp }
    }

    fn copy(&self, name: &str) -> PathBuf {
        let to = self.temp.path().join(name);
        copy(&self.temp.path().join("bad"), &to);
        to
    }

    /// A copy in which what is gone is there again.
    fn complete(&self, name: &str) -> PathBuf {
        let to = self.copy(name);
        for whole in entries(&self.temp.path().join("good/nix/store")) {
            let there = to.join("nix/store").join(whole.file_name().unwrap());
            if there.symlink_metadata().is_err() {
                copy(&whole, &there);
            }
        }
        to
    }
}

fn make_input(folder: &Path, name: &str) {
    fs::create_dir_all(folder.join("sub")).unwrap();
    for (file, content) in [
        ("file", format!("of {name}")),
        ("run", format!("#!{name}")),
        ("same", "the same everywhere".to_owned()),
        ("empty", String::new()),
        ("sub/same", "the same everywhere".to_owned()),
    ] {
        fs::write(folder.join(file), content).unwrap();
    }
    set_mode(&folder.join("run"), 0o755).unwrap();
    symlink("file", folder.join("link")).unwrap();
}

type Damage = fn(&Path) -> io::Result<()>;

const DAMAGES: &[(&str, Damage)] = &[
    ("whole", |_| Ok(())),
    // With the entry in .links.
    ("changed-in-place", |path| {
        write(&path.join("file"), "of changed-IN-place")
    }),
    ("changed", |path| replace(path, "file", "changed", 0o444)),
    ("shorter", |path| replace(path, "file", "of", 0o444)),
    ("longer", |path| {
        replace(path, "file", "of longer and longer", 0o444)
    }),
    ("emptied", |path| replace(path, "file", "", 0o444)),
    ("became-executable", |path| {
        set_mode(&path.join("file"), 0o555)
    }),
    ("lost-its-bit", |path| set_mode(&path.join("run"), 0o444)),
    ("lost-a-file", |path| {
        inside(path, || fs::remove_file(path.join("file")))
    }),
    ("got-a-file", |path| {
        inside(path, || fs::write(path.join("more"), "more"))
    }),
    ("renamed", |path| {
        inside(path, || fs::rename(path.join("file"), path.join("fil")))
    }),
    ("other-target", |path| {
        inside(path, || {
            fs::remove_file(path.join("link"))?;
            symlink("run", path.join("link"))
        })
    }),
    ("link-to-file", |path| {
        inside(path, || {
            fs::remove_file(path.join("link"))?;
            fs::copy(path.join("file"), path.join("link")).map(drop)
        })
    }),
    ("folder-to-file", |path| {
        inside(path, || {
            remove_tree(&path.join("sub"))?;
            fs::write(path.join("sub"), "sub")
        })
    }),
    ("file-to-folder", |path| {
        inside(path, || {
            fs::remove_file(path.join("file"))?;
            fs::create_dir(path.join("file"))
        })
    }),
    ("all-is-a-link", |path| {
        remove_tree(path)?;
        symlink("/etc", path)
    }),
    ("all-is-a-file", |path| {
        remove_tree(path)?;
        fs::write(path, "file")
    }),
    ("disappeared", |path| remove_tree(path)),
    // Nobody says anything of these.
    ("not-linked", |path| {
        replace(path, "same", "the same everywhere", 0o444)
    }),
    ("writable-file", |path| {
        replace(path, "file", "of writable-file", 0o644)
    }),
    ("writable-folder", |path| set_mode(path, 0o755)),
    ("newer", |path| {
        replace(path, "file", "of newer", 0o444)?;
        fs::File::open(path.join("file"))?.set_modified(SystemTime::now())
    }),
    // The entry has another size.
    ("entry-of-other-size", |path| {
        let links = path.parent().unwrap().join(".links");
        let own = path.join("file").metadata()?.ino();
        for entry in fs::read_dir(links)? {
            let entry = entry?.path();
            if entry.symlink_metadata()?.ino() == own {
                fs::remove_file(&entry)?;
                fs::write(&entry, "of another size than the file")?;
                set_mode(&entry, 0o444)?;
            }
        }
        Ok(())
    }),
];

/// What Nix 2.26 and 2.34 cannot repair where it is content-addressed: they remember what kind of file each
/// was, take the new content for another, and leave it with modes of its own.
const NOT_REPAIRED: [&str; 7] = [
    "-all-is-a-link",
    "-all-is-a-file",
    "-link-to-file",
    "-folder-to-file",
    "-file-to-folder",
    "-became-executable",
    "-lost-its-bit",
];

fn is_not_repaired(name: &str) -> bool {
    let name = name.trim_end_matches(".lock");
    NOT_REPAIRED.iter().any(|kind| name.ends_with(kind))
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write(file: &Path, content: &str) -> io::Result<()> {
    set_mode(file, 0o644)?;
    fs::write(file, content)?;
    set_mode(file, 0o444)
}

/// Puts another file in the place of one, as old as all in a store.
fn replace(folder: &Path, name: &str, content: &str, mode: u32) -> io::Result<()> {
    let file = folder.join(name);
    inside(folder, || {
        fs::remove_file(&file)?;
        fs::write(&file, content)?;
        fs::File::open(&file)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))?;
        set_mode(&file, mode)
    })
}

fn inside(folder: &Path, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    set_mode(folder, 0o755)?;
    work()?;
    fs::File::open(folder)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))?;
    set_mode(folder, 0o555)
}

/// With its hard links, modes and times.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Whether errors are left, and what is said.
fn nix_verify(rig: &Rig, root: &Path, options: &[&str]) -> (bool, BTreeSet<String>) {
    let mut command = rig.command("nix-store");
    command.args(["--store", text(root)]).args(PLAIN);
    command.args([
        "--verify",
        "--check-contents",
        "--option",
        "require-sigs",
        "false",
    ]);
    let out = command.args(options).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    let words = said.lines().filter_map(|line| greppable(line, root));
    (!out.status.success(), words.collect())
}

async fn verify(root: &Path, repair: RepairSource) -> (StoreVerifyReport, BTreeSet<String>) {
    let mut options = StoreVerifyOptions::default();
    options.depth = VerifyDepth::Contents;
    options.repair = repair;
    let told = Mutex::new(BTreeSet::new());
    let sink = |event: LogEvent| {
        if let LogEvent::Message { text, .. } = event {
            told.lock().unwrap().extend(greppable(&text, root));
        }
    };
    let sink: &dyn LogSink = &sink;
    let report = open(root).await.verify_store(&options, sink).await.unwrap();
    (report, told.into_inner().unwrap())
}

/// The line without quotes, which differ from version to version, if anybody looks for it.
fn greppable(line: &str, root: &Path) -> Option<String> {
    let words = [
        "was modified!",
        "disappeared",
        "removed link",
        "cannot repair",
    ];
    let line = line.replace(['"', '\''], "").replace(text(root), "");
    words.iter().any(|word| line.contains(word)).then_some(line)
}

fn same_stores(table: &mut Tally, version: &str, what: &str, ours: &Path, theirs: &Path) {
    let differ = difference(&files(ours), &files(theirs));
    table.equal(version, &format!("{what}: files"), differ, Vec::new());
    table.equal(version, &format!("{what}: rows"), rows(ours), rows(theirs));
}

/// What is not the same, with what ours and theirs say of it.
fn difference(
    ours: &BTreeMap<String, String>,
    theirs: &BTreeMap<String, String>,
) -> Vec<(String, Option<String>, Option<String>)> {
    let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).cloned().collect();
    let both = names.into_iter().map(|name| {
        let (ours, theirs) = (ours.get(&name).cloned(), theirs.get(&name).cloned());
        (name, ours, theirs)
    });
    both.filter(|(_, ours, theirs)| ours != theirs).collect()
}

/// Each file with kind, mode, time, content, and the first file that it is one with.
fn files(root: &Path) -> BTreeMap<String, String> {
    let store = root.join("nix/store");
    let mut found = BTreeMap::new();
    let mut firsts = BTreeMap::<u64, String>::new();
    let mut left: Vec<_> = entries(&store);
    left.sort();
    left.reverse();
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(&store).unwrap().display().to_string();
        // Which other names it has is the same, whichever of them is in .links.
        let is_entry = name.starts_with(".links/");
        let content = if meta.is_dir() {
            let mut below = entries(&path);
            below.sort();
            left.extend(below.into_iter().rev());
            String::new()
        } else {
            let first = firsts
                .entry(meta.ino())
                .or_insert_with(|| name.clone())
                .clone();
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                fs::read_to_string(&path).unwrap()
            };
            format!("{content:?} {} as {first}", meta.nlink())
        };
        let time = if name == ".links" || is_entry {
            1
        } else {
            meta.mtime().min(2)
        };
        found.insert(name, format!("{:o} {time} {content}", meta.mode()));
    }
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.collect()
}

fn rows(root: &Path) -> BTreeSet<String> {
    let file = root.join("nix/var/nix/db/db.sqlite");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = Connection::open_with_flags(file, flags).unwrap();
    let mut rows = BTreeSet::new();
    for sql in [
        "select path || ' ' || hash || ' ' || narSize || ' ' || ifnull(ultimate, '-') || ' ' || \
         ifnull(ca, '-') || ' ' || registrationTime from ValidPaths",
        "select a.path || ' -> ' || b.path from Refs join ValidPaths a on a.id = referrer \
         join ValidPaths b on b.id = reference",
    ] {
        let mut statement = db.prepare(sql).unwrap();
        let texts = statement
            .query_map([], |row| row.get::<_, String>(0))
            .unwrap();
        rows.extend(texts.map(Result::unwrap));
    }
    rows
}

const NEEDS: &str =
    r#"derivation { name = "needs"; system = "x86_64-linux"; builder = "/bin/sh"; src = PATH; }"#;
const CHAIN: &str = r#"
let drv = name: needs: derivation { inherit name needs; system = "x86_64-linux"; builder = "/bin/sh"; };
in drv "a" (drv "b" (drv "c" ""))
"#;
