//! Garbage collections of generated stores: Nix and we keep the same paths, and delete the same.

use super::{
    caches::runtime,
    engine::{Plan, Verdicts, expect_find, hold_share},
};
use crate::support::{Rig, equal, rig};
use proptest::{
    collection::vec,
    option,
    prelude::{Strategy, any},
    sample::select,
};
use rusqlite::{Connection, params};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tk_local::{LocalConfig, LocalStore};
use tk_path::{Algorithm, Hash, StorePath};
use tk_store::{GarbageCollector, GcAction, GcOptions};

#[test]
fn as_nix_collects() {
    for keep in [
        Keep {
            outputs: false,
            derivations: true,
        },
        Keep {
            outputs: false,
            derivations: false,
        },
        Keep {
            outputs: true,
            derivations: true,
        },
        Keep {
            outputs: true,
            derivations: false,
        },
    ] {
        let family = format!(
            "garbage, keep-outputs {}, keep-derivations {}",
            keep.outputs, keep.derivations
        );
        hold_share(&family, SHARE, BATCH, &case(), |rig, cases| {
            compare(rig, keep, keep, cases)
        });
    }
}

#[test]
fn a_collector_that_forgets_derivers_is_found() {
    let Some(rig) = rig("2.34") else { return };
    let theirs = Keep {
        outputs: false,
        derivations: true,
    };
    let ours = Keep {
        derivations: false,
        ..theirs
    };
    let plan = Plan::planted(BATCH);
    let find = plan.search(&case(), |cases| compare(&rig, theirs, ours, cases));
    expect_find(find, |case| case.nodes.len() <= 3 && case.roots.len() == 1);
}

/// Nix's settings.
#[derive(Debug, Clone, Copy)]
struct Keep {
    outputs: bool,
    derivations: bool,
}

/// A part of a store that nothing else refers to.
#[derive(Debug, Clone)]
struct Case {
    nodes: Vec<GarbageNode>,
    roots: Vec<(RootShape, usize)>,
    left_overs: Vec<LeftOver>,
}

/// A valid path.
#[derive(Debug, Clone)]
struct GarbageNode {
    /// For each one before whether it refers to it.
    references: Vec<bool>,
    itself: bool,
    /// Which of the paths is its deriver, if that one is a derivation.
    deriver: Option<usize>,
    /// Which of the paths is another derivation with the same output.
    other_deriver: Option<usize>,
    derivation: bool,
}

/// How something leads to a path. Some of these are roots, to Nix.
#[derive(Debug, Clone, Copy, PartialEq)]
enum RootShape {
    Profile,
    Nested,
    IntoThePath,
    Indirect,
    TwoLinksBetween,
    Relative,
    DoubledSlash,
    FileOfItsName,
    LinkToFolderElsewhere,
}

/// What lies in the store folder without being valid.
#[derive(Debug, Clone, Copy)]
enum LeftOver {
    Folder,
    File,
    Lock,
    Odd,
    Hidden,
    Link,
    Scratch,
}

fn case() -> impl Strategy<Value = Case> {
    use LeftOver::{File, Folder, Hidden, Link, Lock, Odd, Scratch};
    let left_overs = vec![Folder, File, Lock, Odd, Hidden, Link, Scratch];
    let shapes = vec![
        RootShape::Profile,
        RootShape::Nested,
        RootShape::IntoThePath,
        RootShape::Indirect,
        RootShape::TwoLinksBetween,
        RootShape::Relative,
        RootShape::DoubledSlash,
        RootShape::FileOfItsName,
        RootShape::LinkToFolderElsewhere,
    ];
    let roots = vec((select(shapes), 0..MOST), 0..3);
    (vec(node(), 1..MOST), roots, vec(select(left_overs), 0..3)).prop_map(
        |(nodes, roots, left_overs)| Case {
            nodes,
            roots,
            left_overs,
        },
    )
}

fn node() -> impl Strategy<Value = GarbageNode> {
    let references = vec(any::<bool>(), MOST);
    let derivers = (option::of(0..MOST), option::of(0..MOST));
    (references, any::<[bool; 2]>(), derivers).prop_map(
        |(references, [itself, derivation], (deriver, other_deriver))| GarbageNode {
            references,
            itself,
            deriver,
            other_deriver,
            derivation,
        },
    )
}

fn compare(rig: &Rig, theirs: Keep, ours: Keep, cases: &[Case]) -> Verdicts {
    let temp = TempDir::new().map_err(|e| e.to_string())?;
    let [nix, own] = ["nix", "own"].map(|name| temp.path().join(name));
    for root in [&nix, &own] {
        fill(root, cases);
    }
    let value = |on: bool| if on { "true" } else { "false" };
    let mut command = rig.command("nix-store");
    command.args(["--store", nix.to_str().expect("UTF-8"), "--gc"]);
    for (name, text) in [
        // Otherwise derivations are read, and these here are none.
        ("experimental-features", "nix-command"),
        ("keep-outputs", value(theirs.outputs)),
        ("keep-derivations", value(theirs.derivations)),
    ] {
        command.args(["--option", name, text]);
    }
    rig.try_run(&mut command)?;
    let before = Store::of(&own);
    let (told, deleted) = collect(&own, ours).map_err(|e| e.to_line())?;
    let (nix, own) = (Store::of(&nix), Store::of(&own));
    let gone = &before.entries - &own.entries;
    let verdict = |number: usize| {
        let mark = format!("g{number}-");
        let of_case = |names: &BTreeSet<String>| -> BTreeSet<String> {
            names
                .iter()
                .filter(|name| name.contains(&mark))
                .cloned()
                .collect()
        };
        equal(of_case(&own.entries), of_case(&nix.entries))?;
        equal(of_case(&own.rows), of_case(&nix.rows))?;
        equal(of_case(&deleted), of_case(&gone))?;
        equal(of_case(&told), of_case(&gone))
    };
    Ok((0..cases.len()).map(verdict).collect())
}

/// What a dry run tells, and what a collection then deletes: names of the store folder.
fn collect(root: &Path, keep: Keep) -> tk_store::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let mut config = LocalConfig::chroot(root);
    config.keep_outputs = keep.outputs;
    config.keep_derivations = keep.derivations;
    runtime().block_on(async {
        let store = LocalStore::open(config).await?;
        let mut both = Vec::new();
        for action in [GcAction::ReturnDead, GcAction::DeleteDead] {
            let report = store.collect_garbage(&GcOptions::new(action), &()).await?;
            let names = report
                .paths
                .iter()
                .map(|path| path["/nix/store/".len()..].to_owned());
            both.push(names.collect());
        }
        let deleted = both.pop().expect("two");
        Ok((both.pop().expect("two"), deleted))
    })
}

/// What is in a store.
struct Store {
    entries: BTreeSet<String>,
    rows: BTreeSet<String>,
}

impl Store {
    fn of(root: &Path) -> Store {
        let entries = root.join("nix/store").read_dir().unwrap();
        let entries = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let database = Connection::open(root.join("nix/var/nix/db/db.sqlite")).unwrap();
        let mut rows = database.prepare("select path from ValidPaths").unwrap();
        let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
        Store {
            entries: entries.collect(),
            rows: rows.map(Result::unwrap).collect(),
        }
    }
}

fn fill(root: &Path, cases: &[Case]) {
    runtime().block_on(async {
        drop(LocalStore::open(LocalConfig::chroot(root)).await.unwrap());
    });
    let database = Connection::open(root.join("nix/var/nix/db/db.sqlite")).unwrap();
    database.execute_batch("begin").unwrap();
    fs::create_dir(root.join("links")).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let paths: Vec<_> = case.paths(number);
        case.write_rows(&paths, &database);
        for path in &paths {
            fs::write(root.join("nix/store").join(path.as_str()), "x").unwrap();
        }
        for (n, (shape, at)) in case.roots.iter().enumerate() {
            let path = &paths[at % paths.len()];
            make_root(root, *shape, &format!("r{number}-{n}"), path);
        }
        for (n, left) in case.left_overs.iter().enumerate() {
            left.make(&root.join("nix/store"), &format!("g{number}-left-{n}"));
        }
    }
    database.execute_batch("commit").unwrap();
}

impl Case {
    fn paths(&self, number: usize) -> Vec<StorePath> {
        let path = |(at, node): (usize, &GarbageNode)| {
            let end = if node.derivation { ".drv" } else { "" };
            of_name(&format!("g{number}-{at}{end}"))
        };
        self.nodes.iter().enumerate().map(path).collect()
    }

    /// The derivation that a node names, by the number it has.
    fn derivation(&self, at: Option<usize>, own: usize) -> Option<usize> {
        let at = at? % self.nodes.len();
        (at != own && self.nodes[at].derivation).then_some(at)
    }

    fn write_rows(&self, paths: &[StorePath], database: &Connection) {
        let mut ids = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let deriver = self.derivation(node.deriver, at);
            let deriver = deriver.map(|at| full(&paths[at]));
            let sql = "insert into ValidPaths (path, hash, registrationTime, deriver, narSize) \
                       values (?, ?, ?, ?, 120)";
            let hash = format!("sha256:{}", "0".repeat(64));
            let time = 1000 + at as i64;
            database
                .execute(sql, params![full(&paths[at]), hash, time, deriver])
                .unwrap();
            ids.push(database.last_insert_rowid());
        }
        for (at, node) in self.nodes.iter().enumerate() {
            let before = node.references.iter().take(at).enumerate();
            let chosen = before.filter(|(_, chosen)| **chosen).map(|(to, _)| to);
            for to in chosen.chain(node.itself.then_some(at)) {
                let sql = "insert into Refs values (?, ?)";
                database.execute(sql, [ids[at], ids[to]]).unwrap();
            }
            for (name, drv) in [("out", node.deriver), ("same", node.other_deriver)] {
                let Some(drv) = self.derivation(drv, at) else {
                    continue;
                };
                let sql = "insert or ignore into DerivationOutputs values (?, ?, ?)";
                let name = format!("{name}{at}");
                database
                    .execute(sql, params![ids[drv], name, full(&paths[at])])
                    .unwrap();
            }
        }
    }
}

fn make_root(root: &Path, shape: RootShape, name: &str, path: &StorePath) {
    let state = root.join("nix/var/nix");
    let gcroots = state.join("gcroots");
    let link = |target: &str, at: PathBuf| {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(target, at).unwrap();
    };
    let outside = |name: &str| root.join("links").join(name);
    match shape {
        RootShape::Profile => link(&full(path), state.join("profiles").join(name)),
        RootShape::Nested => link(&full(path), gcroots.join(format!("{name}/.a/b"))),
        RootShape::IntoThePath => link(&format!("{}/bin/x", full(path)), gcroots.join(name)),
        RootShape::Indirect | RootShape::TwoLinksBetween => {
            let mut to = outside(name);
            link(&full(path), to.clone());
            if shape == RootShape::TwoLinksBetween {
                let first = outside(&format!("{name}-first"));
                link(to.to_str().unwrap(), first.clone());
                to = first;
            }
            link(to.to_str().unwrap(), gcroots.join("auto").join(name));
        }
        RootShape::Relative => link(&format!("../../../store/{path}"), gcroots.join(name)),
        RootShape::DoubledSlash => link(&format!("/nix//store/{path}"), gcroots.join(name)),
        RootShape::FileOfItsName => fs::write(gcroots.join(path.as_str()), "").unwrap(),
        RootShape::LinkToFolderElsewhere => {
            link(&full(path), outside(name).join("inner"));
            link(outside(name).to_str().unwrap(), gcroots.join(name));
        }
    }
}

impl LeftOver {
    fn make(self, store: &Path, name: &str) {
        let path = of_name(name);
        let at = |name: &str| store.join(name);
        match self {
            LeftOver::Folder => fs::create_dir_all(at(path.as_str()).join("a/b")).unwrap(),
            LeftOver::File => fs::write(at(path.as_str()), "x").unwrap(),
            LeftOver::Lock => fs::write(at(&format!("{path}.lock")), "").unwrap(),
            LeftOver::Odd => fs::write(at(&format!("odd-{name}")), "x").unwrap(),
            LeftOver::Hidden => fs::write(at(&format!(".{name}")), "x").unwrap(),
            LeftOver::Link => symlink("/elsewhere", at(&format!("link-{name}"))).unwrap(),
            LeftOver::Scratch => fs::create_dir(at(&format!("tmp-{name}"))).unwrap(),
        }
    }
}

fn full(path: &StorePath) -> String {
    format!("/nix/store/{path}")
}

fn of_name(name: &str) -> StorePath {
    let digest = Hash::digest(Algorithm::Sha256, format!("garbage {name}").as_bytes());
    let digest: [u8; 20] = digest
        .compress(20)
        .try_into()
        .expect("20 bytes were asked for");
    StorePath::from_digest(&digest, name).expect("a name")
}

/// The most paths of a case.
const MOST: usize = 7;
const BATCH: usize = 100;
/// Stores are large, and there are four families of them.
const SHARE: usize = 10;
