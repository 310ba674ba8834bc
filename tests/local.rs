//! Stores on disk beside real Nix: each opens what the other made, at the same time too.

mod abilities;
mod garbage;
mod maintain;
mod profiles;
mod questions;
mod roots;

use crate::support::{Rig, Tally, VERSIONS, each_version, equal, rig};
use futures::{StreamExt, TryStreamExt, stream};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tk_local::{LocalConfig, LocalStore};
use tk_nar::fs::DumpOptions;
use tk_narinfo::{PathInfo, SecretKey};
use tk_path::{Algorithm, Method, NarHash, References, StorePath};
use tk_store::{AddContent, AddSignatures, Error, SigCheck, Store, StoreExt, nar, verify};

each_version!(async ours_in_nix);

/// A store filled by us is read, checked and written by each Nix.
async fn ours_in_nix(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    let store = open(&root).await;
    let infos = fill(&store, &temp.path().join("in")).await;
    for info in &infos {
        same_facts(&rig, &root, &store, info).await;
    }
    verify_with(&rig, &root);
    nix_adds(&rig, &temp, &root, &store).await;
    nix_copies(&rig, &temp, &root, &infos);
    // A second process of ours, after Nix.
    drop(store);
    let store = open(&root).await;
    assert!(store.all().await.unwrap().len() > infos.len());
    verify_all(&store).await;
}

each_version!(async nix_in_ours);

/// A store filled by each Nix is read and written by us.
async fn nix_in_ours(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    let input = inputs(&temp.path().join("in"));
    let mut paths = Vec::new();
    for path in &input {
        // With the tables of content-addressed derivations.
        let args = ["--store", text(&root), "--add", text(path)];
        let path = String::from_utf8(rig.run("nix-store", args)).unwrap();
        paths.push(path.trim_end().to_owned());
    }
    assert!(
        tables(&root)
            .iter()
            .any(|(_, name, _)| name == "Realisations")
    );
    let store = open(&root).await;
    for (path, source) in paths.iter().zip(&input) {
        let path = store.dir().parse(path).unwrap();
        let info = store.require_info(&path).await.unwrap();
        same_facts(&rig, &root, &store, &info).await;
        let chunks: Vec<_> = store.nar(&path).await.unwrap().try_collect().await.unwrap();
        let dumped = rig.run("nix-store", ["--dump", text(source)]);
        assert!(chunks.concat() == dumped, "{path} with Nix {}", rig.version);
    }
    let before = store.all().await.unwrap().len();
    let infos = fill(&store, &temp.path().join("more")).await;
    assert!(store.all().await.unwrap().len() > before);
    verify_with(&rig, &root);
    for info in &infos {
        same_facts(&rig, &root, &store, info).await;
    }
}

/// The tables of a fresh store are those of a fresh store of Nix 2.34.
#[tokio::test]
async fn same_tables() {
    let Some(rig) = rig("2.34") else { return };
    let temp = TempDir::new().unwrap();
    let (ours, theirs) = (temp.path().join("ours"), temp.path().join("theirs"));
    drop(open(&ours).await);
    let file = temp.path().join("file");
    fs::write(&file, "x").unwrap();
    nix_store(&rig, &theirs, &["--add", text(&file)]);
    assert_eq!(tables(&ours), tables(&theirs));
    let schema = |root: &Path| fs::read(root.join("nix/var/nix/db/schema")).unwrap();
    assert_eq!(schema(&ours), schema(&theirs));
    let reserved = |root: &Path| {
        root.join("nix/var/nix/db/reserved")
            .metadata()
            .unwrap()
            .len()
    };
    assert_eq!(reserved(&ours), reserved(&theirs));
}

/// What is added has the same path and the same row, whoever adds it.
#[tokio::test(flavor = "multi_thread")]
async fn same_rows() {
    let mut table = Tally::new("local stores: added as Nix adds", &VERSIONS);
    for rig in VERSIONS.into_iter().filter_map(rig) {
        let temp = TempDir::new().unwrap();
        let (ours, theirs) = (temp.path().join("ours"), temp.path().join("theirs"));
        let store = open(&ours).await;
        for source in inputs(&temp.path().join("in")) {
            for (method, algorithm) in methods(&source) {
                let what = format!("{} {method} {algorithm}", source.display());
                let added = add_content(&store, &source, method, algorithm).await;
                let args = nix_arguments(method, algorithm, &source);
                let args: Vec<_> = args.iter().map(String::as_str).collect();
                let path = nix_store(&rig, &theirs, &args);
                table.case(rig.version, &what, || {
                    let info = added.map_err(|e| e.to_line())?;
                    equal(store.dir().path(&info.path), path.clone())?;
                    equal(row(&ours, &path), row(&theirs, &path))
                });
            }
        }
    }
    table.finish();
}

each_version!(async at_the_same_time);

/// Both add at the same time, the same paths and others.
async fn at_the_same_time(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    let input = inputs(&temp.path().join("in"));
    let theirs: Vec<_> = input.iter().rev().take(6).chain(&input[..6]).collect();
    let mut command = rig.command("nix-store");
    command
        .args(["--store", text(&root)])
        .args(PLAIN)
        .arg("--add")
        .args(theirs);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let store = open(&root).await;
    let adds = input
        .iter()
        .map(|source| add_content(&store, source, Method::Nar, Algorithm::Sha256));
    for added in futures::future::join_all(adds).await {
        added.unwrap();
    }
    assert!(child.wait().unwrap().success(), "Nix {}", rig.version);
    assert_eq!(store.all().await.unwrap().len(), input.len());
    verify_all(&store).await;
    verify_with(&rig, &root);
}

each_version!(async collector);

/// Nix's collector respects what a process of ours has added, and what it is just unpacking.
async fn collector(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    let store = open(&root).await;
    let infos = fill(&store, &temp.path().join("in")).await;
    // A path that is received, whose stream has not ended when the collector runs.
    let (send, chunks) = futures::channel::mpsc::unbounded();
    let (late, nar) = made_up("late", [infos[0].path.clone()]);
    let (head, tail) = nar.split_at(nar.len() / 2);
    send.unbounded_send(Ok(head.to_vec().into())).unwrap();
    let adding = tokio::spawn({
        let (store, late) = (store.clone(), late.clone());
        async move {
            store
                .add_one(late, chunks.boxed(), &SigCheck::Skip.into())
                .await
        }
    });
    while !unpacking(&store) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    nix_store(&rig, &root, &["--gc"]);
    let all: BTreeSet<_> = infos.iter().map(|info| info.path.clone()).collect();
    assert_eq!(store.valid(&all).await.unwrap(), all, "Nix {}", rig.version);
    send.unbounded_send(Ok(tail.to_vec().into())).unwrap();
    drop(send);
    adding.await.unwrap().unwrap();
    verify(&store, &store.require_info(&late.path).await.unwrap())
        .await
        .unwrap();

    // Without a process that holds them they are garbage.
    drop(store);
    nix_store(&rig, &root, &["--gc"]);
    let left: Vec<_> = root.join("nix/store").read_dir().unwrap().collect();
    assert_eq!(left.len(), 1, "Nix {}: {left:?}", rig.version);
    let store = open(&root).await;
    assert!(store.all().await.unwrap().is_empty(), "Nix {}", rig.version);
    for info in &infos {
        assert!(!store.real_path(&info.path).exists());
    }
}

async fn open(root: &Path) -> LocalStore {
    LocalStore::open(LocalConfig::chroot(root)).await.unwrap()
}

/// Adds the inputs by content, and paths that refer to them and have signatures and derivers.
async fn fill(store: &LocalStore, folder: &Path) -> Vec<PathInfo> {
    let mut infos = Vec::new();
    for source in inputs(folder) {
        let (method, algorithm) = (Method::Nar, Algorithm::Sha256);
        infos.push(
            add_content(store, &source, method, algorithm)
                .await
                .unwrap(),
        );
    }
    let key = SecretKey::generate("test-1").unwrap();
    let other = SecretKey::generate("also-1").unwrap();
    let references = infos.iter().map(|info| info.path.clone());
    let (mut top, top_nar) = made_up("top", references);
    top.references.insert(top.path.clone());
    top.deriver = Some(StorePath::from_digest(&[9; 20], "top.drv").unwrap());
    top.sign(store.dir(), &key).unwrap();
    let (mut above, above_nar) = made_up("above", [top.path.clone()]);
    above.ultimate = true;
    let items = [(top.clone(), top_nar), (above.clone(), above_nar)];
    let items = items.map(|(info, nar)| Ok((info, nar::from_bytes(nar))));
    let report = store
        .add(stream::iter(items).boxed(), &SigCheck::Skip.into())
        .await
        .unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    top.sign(store.dir(), &other).unwrap();
    store
        .add_signatures(&top.path, &top.signatures)
        .await
        .unwrap();
    infos.extend([top, above]);
    infos
}

/// Files and folders of many kinds.
fn inputs(folder: &Path) -> Vec<PathBuf> {
    fs::create_dir_all(folder).unwrap();
    let at = |name: &str| folder.join(name);
    fs::write(at("empty"), "").unwrap();
    fs::write(at("plain.txt"), "plain\n").unwrap();
    fs::write(at("large"), vec![7; 1_000_001]).unwrap();
    fs::write(at("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(at("read-only"), "ro").unwrap();
    fs::set_permissions(at("read-only"), fs::Permissions::from_mode(0o400)).unwrap();
    symlink("/no/such/place", at("link")).unwrap();
    fs::create_dir(at("empty-folder")).unwrap();
    fs::create_dir_all(at("tree/sub/deep")).unwrap();
    for name in [
        "tree/b",
        "tree/a b",
        "tree/\u{e4}",
        "tree/sub.x",
        "tree/sub/deep/z",
    ] {
        fs::write(at(name), name).unwrap();
    }
    symlink("sub/deep", at("tree/up")).unwrap();
    fs::hard_link(at("tree/b"), at("tree/hard")).unwrap();
    fs::copy(at("run"), at("tree/run")).unwrap();
    let names = [
        "empty",
        "plain.txt",
        "large",
        "run",
        "read-only",
        "link",
        "empty-folder",
        "tree",
    ];
    names.map(at).to_vec()
}

fn methods(source: &Path) -> Vec<(Method, Algorithm)> {
    use Algorithm::{Md5, Sha1, Sha256, Sha512};
    let mut methods: Vec<_> = [Sha256, Sha1, Sha512, Md5]
        .map(|a| (Method::Nar, a))
        .to_vec();
    let meta = source.symlink_metadata().unwrap();
    if meta.is_file() && meta.permissions().mode() & 0o100 == 0 {
        methods.extend([Sha256, Sha1, Sha512, Md5].map(|a| (Method::Flat, a)));
    }
    methods
}

fn nix_arguments(method: Method, algorithm: Algorithm, source: &Path) -> Vec<String> {
    let source = text(source);
    let algorithm = algorithm.to_string();
    let arguments = match (method, algorithm.as_str()) {
        (Method::Nar, "sha256") => vec!["--add", source],
        (Method::Nar, algorithm) => vec!["--recursive", "--add-fixed", algorithm, source],
        (_, algorithm) => vec!["--add-fixed", algorithm, source],
    };
    arguments.into_iter().map(str::to_owned).collect()
}

async fn add_content(
    store: &LocalStore,
    source: &Path,
    method: Method,
    algorithm: Algorithm,
) -> Result<PathInfo, Error> {
    let name = source.file_name().unwrap().to_str().unwrap();
    let content = nar::dump(source.to_owned(), DumpOptions::default());
    store
        .add_content(name, method, algorithm, &References::default(), content)
        .await
}

/// A path with a name of its own and a file in it.
fn made_up(name: &str, references: impl IntoIterator<Item = StorePath>) -> (PathInfo, Vec<u8>) {
    let temp = TempDir::new().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, format!("made up: {name}\n").repeat(100)).unwrap();
    let mut nar = Vec::new();
    tk_nar::fs::dump(&file, &DumpOptions::default(), &mut nar).unwrap();
    let hash = tk_path::Hash::digest(Algorithm::Sha256, &nar);
    let digest: [u8; 20] = hash.compress(20).try_into().unwrap();
    let path = StorePath::from_digest(&digest, name).unwrap();
    let mut info = PathInfo::new(path, NarHash::try_from(hash).unwrap(), nar.len() as u64);
    info.references = references.into_iter().collect();
    (info, nar)
}

/// Compares what Nix says about a path in the store at `root` with `info`.
async fn same_facts(rig: &Rig, root: &Path, store: &LocalStore, info: &PathInfo) {
    let dir = store.dir();
    let path = dir.path(&info.path);
    let full = |paths: &BTreeSet<StorePath>| {
        paths
            .iter()
            .map(|path| dir.path(path))
            .collect::<BTreeSet<_>>()
    };
    let ask = |what| nix_store(rig, root, &["-q", what, &path]);
    let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(ask("--hash"), info.nar_hash.to_string());
    assert_eq!(ask("--size"), info.nar_size.to_string());
    assert_eq!(lines(ask("--references")), full(&info.references));
    let deriver = info.deriver.as_ref().map(|deriver| dir.path(deriver));
    assert_eq!(
        ask("--deriver"),
        deriver.unwrap_or("unknown-deriver".to_owned())
    );
    let referrers = store.referrers(&info.path).await.unwrap();
    assert_eq!(lines(ask("--referrers")), full(&referrers));

    let args = ["--store", text(root), "path-info", "-r", "--json", &path];
    let json = rig.run("nix", [&PLAIN[..], &args].concat());
    let json: Value = serde_json::from_slice(&json).unwrap();
    let entry = match &json {
        Value::Array(list) => list.iter().find(|e| e["path"] == path.as_str()).unwrap(),
        _ => &json[&path],
    };
    let ca = info.ca.as_ref().map(ToString::to_string);
    assert_eq!(entry["ca"].as_str(), ca.as_deref());
    assert_eq!(entry["ultimate"].as_bool().unwrap_or(false), info.ultimate);
    let no_signatures = Vec::new();
    let signatures = entry["signatures"].as_array().unwrap_or(&no_signatures);
    let signatures: BTreeSet<_> = signatures
        .iter()
        .map(|s| s.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        signatures,
        info.signatures.iter().map(ToString::to_string).collect()
    );
}

/// Each Nix adds and deletes in a store of ours that is open.
async fn nix_adds(rig: &Rig, temp: &TempDir, root: &Path, store: &LocalStore) {
    let file = temp.path().join("by-nix");
    fs::write(&file, "added by real Nix").unwrap();
    let path = nix_store(rig, root, &["--add", text(&file)]);
    let path = store.dir().parse(&path).unwrap();
    verify(store, &store.require_info(&path).await.unwrap())
        .await
        .unwrap();
    nix_store(rig, root, &["--delete", &store.dir().path(&path)]);
    assert_eq!(store.info(&path).await.unwrap(), None);
    nix_store(rig, root, &["--add", text(&file)]);
    assert!(store.info(&path).await.unwrap().is_some());
}

/// `nix copy` from a store of ours to another folder, and from there back into a new one.
fn nix_copies(rig: &Rig, temp: &TempDir, root: &Path, infos: &[PathInfo]) {
    let (out, back) = (temp.path().join("out"), temp.path().join("back"));
    let top = format!("/nix/store/{}", infos.last().unwrap().path);
    let copy = |from: &Path, to: &Path| {
        let args = [
            "copy",
            "--no-check-sigs",
            "--from",
            text(from),
            "--to",
            text(to),
            &top,
        ];
        rig.run("nix", [&PLAIN[..], &args].concat());
        verify_with(rig, to);
    };
    copy(root, &out);
    copy(&out, &back);
}

fn verify_with(rig: &Rig, root: &Path) {
    let mut command = rig.command("nix-store");
    command
        .args(["--store", text(root)])
        .args(PLAIN)
        .args(["--verify", "--check-contents"]);
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "Nix {}: {said}", rig.version);
    assert!(
        !said.contains("error") && !said.contains("modified"),
        "{said}"
    );
}

async fn verify_all(store: &LocalStore) {
    for path in store.all().await.unwrap() {
        verify(store, &store.require_info(&path).await.unwrap())
            .await
            .unwrap();
    }
}

fn nix_store(rig: &Rig, root: &Path, args: &[&str]) -> String {
    let args = [&["--store", text(root)], &PLAIN[..], args].concat();
    let out = String::from_utf8(rig.run("nix-store", args)).unwrap();
    out.trim_end().to_owned()
}

/// Tables, indexes and triggers, with the spacing of their text made even.
fn tables(root: &Path) -> BTreeSet<(String, String, Option<String>)> {
    let database = database(root);
    let sql = "select type, name, sql from sqlite_master";
    let mut statement = database.prepare(sql).unwrap();
    let even = |sql: String| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows = statement.query_map([], |row| {
        Ok((
            row.get(0)?,
            row.get(1)?,
            row.get::<_, Option<String>>(2)?.map(even),
        ))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// The columns of the row of `path` but for its number and time, and the paths it refers to.
fn row(root: &Path, path: &str) -> Vec<String> {
    let database = database(root);
    let sql = "select hash, deriver, narSize, ultimate, sigs, ca, \
               (select count(*) from Refs where referrer = id) \
               from ValidPaths where path = ?";
    let mut statement = database.prepare(sql).unwrap();
    let mut rows = statement.query([path]).unwrap();
    let mut columns = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        columns.extend((0..7).map(|i| format!("{:?}", row.get_ref(i).unwrap())));
    }
    columns
}

fn database(root: &Path) -> Connection {
    let file = root.join("nix/var/nix/db/db.sqlite");
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// Whether something lies in the temporary folder of a process of ours.
fn unpacking(store: &LocalStore) -> bool {
    let mut folders = store
        .real_dir()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let temporary = folders.find(|path| text(path).contains("-tk-tmp-"));
    temporary.is_some_and(|folder| folder.read_dir().unwrap().next().is_some())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Without `ca-derivations`, which would make Nix add its tables to our stores, alone: it waits
/// until no other process has the store open.
const PLAIN: [&str; 3] = ["--option", "experimental-features", "nix-command"];
