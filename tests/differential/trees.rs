//! Trees: dumped, hashed, restored and added by Nix and by us.

use super::{
    engine::{Plan, Verdict, Verdicts, expect_find, hold},
    node::{Node, node},
};
use crate::support::{
    Rig, equal, rig,
    trees::{Scratch, packed, snapshot},
};
use proptest::prelude::{Strategy, prop_oneof};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};
use tk_nar::fs::{UnpackMetadata, UnpackOptions, unpack};
use tk_path::{Algorithm, ContentAddress, Hash, Method, NarHash, References, StoreDir};

#[test]
fn as_nix_packs_hashes_restores_and_adds() {
    hold("trees", BATCH, &case(), |rig, cases| {
        Batch::new(rig, packed, cases).verdicts()
    });
}

#[test]
fn an_archive_that_forgets_executables_is_found() {
    let Some(rig) = rig("2.34") else { return };
    let plan = Plan::planted(BATCH);
    let find = plan.search(&case(), |cases| Batch::new(&rig, forgetful, cases).hashed());
    expect_find(find, |case| match &case.root {
        Node::File(mode, contents) => mode & 0o100 != 0 && contents.is_empty(),
        folder => folder.count() == 2,
    });
}

/// A tree and its name in the store.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    root: Node,
}

fn case() -> impl Strategy<Value = Case> {
    let name = prop_oneof![
        6 => "[a-z][a-z0-9.]{0,6}",
        3 => "[0-9a-zA-Z+_?=-][0-9a-zA-Z+._?=-]{0,20}",
        1 => "x{205,211}",
    ];
    let name = name.prop_filter("would be read as one", |name| !name.ends_with(".drv"));
    (name, node()).prop_map(|(name, root)| Case { name, root })
}

/// Trees on disk, each in a folder of its own, and our archives of them.
struct Batch<'a> {
    rig: &'a Rig,
    cases: &'a [Case],
    pack: fn(&Path) -> Vec<u8>,
    place: Scratch,
    paths: Vec<PathBuf>,
    nars: Vec<Vec<u8>>,
}

/// What Nix says of each tree, in order.
struct Answers {
    /// Where `--add` puts it.
    sources: Vec<String>,
    /// Where `--add-fixed --recursive sha1` puts it.
    recursive: Vec<String>,
    /// Where `--add-fixed sha256` puts those that are files.
    flat: BTreeMap<usize, String>,
}

impl<'a> Batch<'a> {
    fn new(rig: &'a Rig, pack: fn(&Path) -> Vec<u8>, cases: &'a [Case]) -> Batch<'a> {
        let place = Scratch::new();
        let trees = place.path().join(TREES);
        fs::create_dir(&trees).expect("writable");
        let write = |(index, case): (usize, &Case)| {
            let folder = trees.join(index.to_string());
            fs::create_dir(&folder).expect("writable");
            let path = folder.join(&case.name);
            case.root.write(&path);
            path
        };
        let paths: Vec<_> = cases.iter().enumerate().map(write).collect();
        let nars = paths.iter().map(|path| pack(path)).collect();
        Batch {
            rig,
            cases,
            pack,
            place,
            paths,
            nars,
        }
    }

    fn verdicts(&self) -> Verdicts {
        let mut verdicts = self.hashed()?;
        let answers = self.ask()?;
        for (at, verdict) in verdicts.iter_mut().enumerate() {
            if verdict.is_ok() {
                *verdict = self.verdict(&answers, at);
            }
        }
        Ok(verdicts)
    }

    /// Whether our archives have the hashes that Nix says.
    fn hashed(&self) -> Verdicts {
        let hash = ["hash", "path", "--type", "sha256", "--base32"];
        let paths: Vec<_> = self.paths.iter().collect();
        let theirs = self.lines("nix", &hash, &paths)?;
        let same = |(nar, theirs): (&Vec<u8>, String)| {
            let ours = NarHash::digest(nar).to_string();
            equal(ours, format!("sha256:{theirs}")).map_err(|e| format!("NAR hash: {e}"))
        };
        Ok(self.nars.iter().zip(theirs).map(same).collect())
    }

    fn ask(&self) -> Result<Answers, String> {
        self.unpacked(&self.dumped()?)?;
        let all: Vec<_> = self.paths.iter().collect();
        Ok(Answers {
            sources: self.add(&["--add"], &all)?,
            recursive: self.add(&["--add-fixed", "--recursive", "sha1"], &all)?,
            flat: self.flat()?,
        })
    }

    fn flat(&self) -> Result<BTreeMap<usize, String>, String> {
        let cases = self.cases.iter().enumerate();
        let files = cases.filter(|(_, case)| matches!(case.root, Node::File(..)));
        let files: Vec<usize> = files.map(|(at, _)| at).collect();
        if files.is_empty() {
            return Ok(BTreeMap::new());
        }
        let paths: Vec<_> = files.iter().map(|at| &self.paths[*at]).collect();
        let added = self.add(&["--add-fixed", "sha256"], &paths)?;
        Ok(files.into_iter().zip(added).collect())
    }

    fn add(&self, how: &[&str], paths: &[&PathBuf]) -> Result<Vec<String>, String> {
        let store = self.store();
        let store = store.to_str().expect("UTF-8");
        let store = ["--store", store, "--option", "fsync-metadata", "false"];
        self.lines("nix-store", &[&store, how].concat(), paths)
    }

    /// What a program prints for `paths`, one line each.
    fn lines(
        &self,
        program: &str,
        args: &[&str],
        paths: &[&PathBuf],
    ) -> Result<Vec<String>, String> {
        let mut command = self.rig.command(program);
        let out = self.rig.try_run(command.args(args).args(paths))?;
        let out = String::from_utf8(out).map_err(|e| e.to_string())?;
        let lines: Vec<_> = out.lines().map(str::to_owned).collect();
        equal(lines.len(), paths.len()).map(|()| lines)
    }

    /// Nix's archive of the folder with all trees, which is ours too.
    fn dumped(&self) -> Result<Vec<u8>, String> {
        let mut command = self.rig.command("nix-store");
        let nar = self.rig.try_run(command.arg("--dump").arg(self.trees()))?;
        if nar == (self.pack)(&self.trees()) {
            Ok(nar)
        } else {
            Err("nix-store --dump of all differs".to_owned())
        }
    }

    /// Unpacks Nix's archive of all: it, and we.
    fn unpacked(&self, nar: &[u8]) -> Result<(), String> {
        let (file, theirs) = (self.place.path().join("nar"), self.place.path().join("it"));
        fs::write(&file, nar).expect("writable");
        let mut command = self.rig.command("nix-store");
        let nar_file = File::open(&file).expect("readable");
        command.arg("--restore").arg(&theirs).stdin(nar_file);
        self.rig.try_run(&mut command)?;
        self.unpack(nar, "we", UnpackMetadata::Plain)
    }

    fn unpack(&self, nar: &[u8], name: &str, metadata: UnpackMetadata) -> Result<(), String> {
        let mut options = UnpackOptions::default();
        options.metadata = metadata;
        let unpacked = unpack(nar, &self.place.path().join(name), &options);
        unpacked.map(|_| ()).map_err(|e| e.to_string())
    }

    fn verdict(&self, answers: &Answers, at: usize) -> Verdict {
        let (case, nar) = (&self.cases[at], &self.nars[at]);
        equal(&case.root.nar(), nar).map_err(|e| format!("encoded and dumped: {e}"))?;
        let path = |method, hash| path_of(&case.name, method, hash);
        let sha256 = Hash::digest(Algorithm::Sha256, nar);
        equal(path(Method::Nar, sha256), answers.sources[at].clone())?;
        let sha1 = Hash::digest(Algorithm::Sha1, nar);
        equal(path(Method::Nar, sha1), answers.recursive[at].clone())?;
        if let (Node::File(_, contents), Some(flat)) = (&case.root, answers.flat.get(&at)) {
            let sha256 = Hash::digest(Algorithm::Sha256, contents);
            equal(&path(Method::Flat, sha256), flat)?;
        }
        let inside = |place: &str| {
            let tree = self.place.path().join(place).join(at.to_string());
            snapshot(&tree.join(&case.name))
        };
        equal(inside("we"), inside("it")).map_err(|e| format!("unpacked: {e}"))?;
        let stored = snapshot(&self.store().join(&answers.sources[at][1..]));
        let name = format!("canonical-{at}");
        self.unpack(nar, &name, UnpackMetadata::Canonical)?;
        let ours = snapshot(&self.place.path().join(name));
        equal(ours, stored).map_err(|e| format!("in a store: {e}"))
    }

    fn trees(&self) -> PathBuf {
        self.place.path().join(TREES)
    }

    fn store(&self) -> PathBuf {
        self.place.path().join("store")
    }
}

fn path_of(name: &str, method: Method, hash: Hash) -> String {
    let (dir, ca) = (StoreDir::default(), ContentAddress { method, hash });
    let path = dir.path_of_content(name, &ca, &References::default());
    dir.path(&path.expect("a path"))
}

/// The planted fault: an archive in which nothing can be run.
fn forgetful(path: &Path) -> Vec<u8> {
    let nar = packed(path);
    let mut rest = &nar[..];
    let mut without = Vec::new();
    while let Some(at) = rest.windows(MARK.len()).position(|part| part == MARK) {
        without.extend_from_slice(&rest[..at]);
        rest = &rest[at + MARK.len()..];
    }
    without.extend_from_slice(rest);
    without
}

/// The folder with all trees.
const TREES: &str = "trees";
/// Cases at once: what a command line holds.
const BATCH: usize = 250;
/// What says that a file can be run.
const MARK: &[u8; 32] = b"\x0a\0\0\0\0\0\0\0executable\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
