//! Roots, logs, derivations and realisations on disk.

mod common;

use common::{add_all, open, sample, try_add};
use futures::TryStreamExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::{
    PathInfo,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, ContentAddress, Derivation, DerivationOutput, Hash, InputOutputs, Inputs, Method,
    NarHash, OutputName, StoreDir, StorePath, modulo::Modulo,
};
use tk_store::conformance::file_nar;
use tk_store::{Error, Graph, Logs, Realisations, Root, Roots, SigCheck, Store, StoreExt, nar};

#[tokio::test]
async fn links_of_all_kinds_are_roots() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("root")).await;
    let samples: Vec<_> = (0..7).map(|i| sample(&format!("s{i}"), b"x")).collect();
    add_all(&store, &samples[..6]).await;
    let path = |i: usize| samples[i].info.path.clone();
    let full = |i: usize| store.dir().path(&path(i));
    let at = |name: &str| folder.path().join(name);
    let state = store.config().state.clone();

    // By the path in the store directory, into it, and by the real place.
    symlink(full(0), at("one")).unwrap();
    store.add_indirect_root(&at("x/../one")).await.unwrap();
    symlink(format!("{}/sub", full(1)), at("two")).unwrap();
    store.add_indirect_root(&at("two")).await.unwrap();
    symlink(store.real_path(&path(2)), at("three")).unwrap();
    store.add_indirect_root(&at("three")).await.unwrap();
    store.add_perm_root(&path(3), &at("four")).await.unwrap();
    symlink(full(4), state.join("profiles/five")).unwrap();
    fs::write(state.join("gcroots").join(path(5).as_str()), "").unwrap();
    // No roots: absent, not valid, a link to no link, a link elsewhere, a strange file.
    store.add_indirect_root(&at("none")).await.unwrap();
    symlink(full(6), state.join("gcroots/invalid")).unwrap();
    store.add_indirect_root(folder.path()).await.unwrap();
    symlink("/elsewhere", state.join("gcroots/elsewhere")).unwrap();
    fs::write(state.join("gcroots/notes"), "").unwrap();

    let expected = [
        (at("one"), 0),
        (at("two"), 1),
        (at("three"), 2),
        (at("four"), 3),
        (state.join("profiles/five"), 4),
        (state.join("gcroots").join(path(5).as_str()), 5),
    ];
    let expected = expected.map(|(link, i)| (link.to_str().unwrap().to_owned(), path(i)));
    assert_eq!(links(&store).await, BTreeSet::from(expected));
    fs::remove_file(at("one")).unwrap();
    assert_eq!(links(&store).await.len(), 5);
}

#[tokio::test]
async fn an_indirect_root_has_the_name_that_nix_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    store
        .add_indirect_root(Path::new("/home/me/result"))
        .await
        .unwrap();
    let auto = store.config().state.join("gcroots/auto");
    let name = Hash::digest(Algorithm::Sha1, b"/home/me/result");
    let name = tk_path::nix32::encode(name.as_bytes());
    let target = fs::read_link(auto.join(name)).unwrap();
    assert_eq!(target, Path::new("/home/me/result"));
    assert_eq!(auto.read_dir().unwrap().count(), 1);
}

#[tokio::test]
async fn a_permanent_root_spares_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("root")).await;
    let samples = [sample("a", b"a"), sample("b", b"b")];
    add_all(&store, &samples).await;
    let link = folder.path().join("deep/result");
    for sample in &samples {
        let path = &sample.info.path;
        store.add_perm_root(path, &link).await.unwrap();
        let target = fs::read_link(&link).unwrap();
        assert_eq!(target.to_str().unwrap(), store.dir().path(path));
    }
    let (file, other) = (folder.path().join("file"), folder.path().join("other"));
    fs::write(&file, "mine").unwrap();
    symlink("/mine", &other).unwrap();
    let inside = store.real_dir().join("result");
    for place in [&file, &other, &inside, Path::new("result")] {
        let path = &samples[0].info.path;
        let refused = store.add_perm_root(path, place).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert!(!inside.exists());
}

#[tokio::test]
async fn what_processes_use_is_a_root() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let samples = ["temp", "open", "mentioned", "idle"].map(|name| sample(name, b"x"));
    add_all(&store, &samples).await;
    let [temp, opened, mentioned, idle] = samples.each_ref().map(|s| s.info.path.clone());
    // What was added by this process is a temporary root of it, so let another one look.
    let other = folder.path().join("other");
    fs::create_dir_all(other.join("db")).unwrap();
    fs::create_dir_all(other.join("temproots")).unwrap();
    for file in ["db.sqlite", "schema"] {
        let from = store.config().state.join("db").join(file);
        let to = other.join("db").join(file);
        let mut copy = Command::new("cp");
        assert!(copy.args([from, to]).status().unwrap().success());
    }
    let wal = store.config().state.join("db/db.sqlite-wal");
    fs::copy(wal, other.join("db/db.sqlite-wal")).unwrap();
    let mut config = LocalConfig::chroot(folder.path());
    config.state = other;
    let store = LocalStore::open_existing(config).await.unwrap();
    assert!(store.info(&idle).await.unwrap().is_some());

    store.add_temp_root(&temp).await.unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "read x"])
        .env(
            "MENTIONED",
            format!("a:{}/bin:b", store.dir().path(&mentioned)),
        )
        .current_dir(store.real_path(&opened))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // The environment is there when the program runs, not when the process is made.
    let environ = format!("/proc/{}/environ", child.id());
    while !fs::read_to_string(&environ).is_ok_and(|text| text.contains("MENTIONED")) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let roots: BTreeSet<Root> = store.roots().await.unwrap().into_iter().collect();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    let pid = std::process::id();
    for (link, target) in [
        (format!("{{temp:{pid}}}"), temp),
        (format!("/proc/{}/cwd", child.id()), opened),
        (environ, mentioned),
    ] {
        let root = Root { link, target };
        assert!(roots.contains(&root), "{root:?} is not among {roots:?}");
    }
    assert!(roots.iter().all(|root| root.target != idle), "{roots:?}");
}

#[tokio::test]
async fn logs_of_all_kinds_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let path = |name: &str| StorePath::from_digest(&[3; 20], name).unwrap();
    let drvs = store.config().log.join("drvs");
    let split = |path: &StorePath| {
        let (first, rest) = path.as_str().split_at(2);
        fs::create_dir_all(drvs.join(first)).unwrap();
        drvs.join(first).join(rest)
    };
    let (plain, packed, old) = (path("plain.drv"), path("packed.drv"), path("old.drv"));
    fs::write(split(&plain), "plain").unwrap();
    store
        .add_build_log(&packed, nar::from_bytes("packed"))
        .await
        .unwrap();
    let file = format!("{}.bz2", split(&packed).display());
    fs::copy(&file, drvs.join(format!("{old}.bz2"))).unwrap();
    for (drv, text) in [(&plain, "plain"), (&packed, "packed"), (&old, "packed")] {
        assert_eq!(log(&store, drv).await.unwrap(), text.as_bytes(), "{drv}");
    }
    let whole = fs::read(&file).unwrap();
    assert!(whole.starts_with(b"BZh9"));
    // Cut off anywhere, it is an error and no shorter log.
    for cut in 1..whole.len() {
        fs::write(&file, &whole[..cut]).unwrap();
        let line = log(&store, &packed).await.unwrap_err().to_line();
        assert!(line.contains("packed.drv.bz2"), "{line}");
    }
    let left: Vec<_> = drvs.read_dir().unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn derivations_are_found_by_their_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (low, high) = two_derivations(store.dir());
    add_all_drvs(&store, &[&low, &high]).await;
    for drv in [&low, &high] {
        let path = drv.path(store.dir()).unwrap();
        let outputs = store.output_map(&path).await.unwrap();
        assert_eq!(outputs.len(), drv.outputs.len());
        for (name, output) in outputs {
            let output = output.unwrap();
            assert_eq!(
                drv.outputs[&name],
                DerivationOutput::InputAddressed(output.clone())
            );
            let derivers = Graph::valid_derivers(&store, &output).await.unwrap();
            assert_eq!(derivers, [path.clone()].into());
        }
    }
    // All at once, and what is in its place already.
    let other = open(&folder.path().join("other")).await;
    let all = [&low, &high].map(|drv| drv_sample(store.dir(), drv));
    for sample in &all {
        fs::copy(
            store.real_path(&sample.info.path),
            other.real_path(&sample.info.path),
        )
        .unwrap();
    }
    let infos = all.iter().rev().map(|s| s.info.clone()).collect();
    LocalStore::register(&other, infos).await.unwrap();
    let path = high.path(store.dir()).unwrap();
    assert_eq!(
        other.output_map(&path).await.unwrap(),
        store.output_map(&path).await.unwrap()
    );
}

#[tokio::test]
async fn derivations_that_lie_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (low, high) = two_derivations(store.dir());
    let dir = store.dir().clone();
    let text = String::from_utf8(high.to_aterm(&dir).unwrap()).unwrap();
    let no_drv = |content: &[u8]| {
        let nar = file_nar(content);
        let hash = NarHash::digest(&nar);
        let path = StorePath::from_digest(&[7; 20], "high.drv").unwrap();
        let info = PathInfo::new(path, hash, nar.len() as u64);
        common::Sample { info, nar }
    };
    let lies = [
        ("junk".to_owned(), "byte 0 of its file"),
        (String::new(), "its file is empty"),
        (text.replace("-high-dev", "-high-dex"), "-high-dex"),
        (text.replace("a builder", "another builder"), "-high"),
    ];
    refused(
        &store,
        &no_drv(text.as_bytes()),
        "-low.drv, which is not in",
    )
    .await;
    add_all_drvs(&store, &[&low]).await;
    for (content, words) in &lies {
        let sample = no_drv(content.as_bytes());
        refused(&store, &sample, words).await;
    }
    let folder_drv = sample("folder.drv", b"x");
    refused(&store, &folder_drv, "folder.drv").await;
    let left = store.all().await.unwrap();
    assert_eq!(left, [low.path(&dir).unwrap()].into());
    let left = store.real_dir().read_dir().unwrap().count();
    assert_eq!(
        left, 3,
        "beside it there are .links and the place for new content"
    );

    let store = open(&folder.path().join("other")).await;
    // One that lies takes along what refers to it, and nothing else.
    let mut lie = low.clone();
    lie.builder = "another".into();
    let mut lying = drv_sample(&dir, &lie);
    lying.info.path = low.path(&dir).unwrap();
    let [good, bad] = [sample("good", b"x"), drv_sample(&dir, &high)];
    let report = try_add(&store, &[good, lying, bad]).await;
    assert_eq!(report.added.len(), 1, "{report:?}");
    assert_eq!(report.failed.len(), 2, "{report:?}");
    // The truth can still be told.
    add_all_drvs(&store, &[&low, &high]).await;
}

#[tokio::test]
async fn realisations_without_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let drv = StorePath::from_digest(&[1; 20], "x.drv").unwrap();
    let output = OutputName::out();
    let value = UnkeyedRealisation::new(drv.clone());
    let id = DrvOutput { drv, output };
    let asked = store.realisation(&id).await;
    assert!(matches!(asked, Err(Error::Unsupported { .. })), "{asked:?}");
    let realisation = Realisation { id, value };
    let told = Realisations::register(&store, &realisation, &SigCheck::Skip).await;
    assert!(matches!(told, Err(Error::Unsupported { .. })), "{told:?}");
    let hash = Hash::digest(Algorithm::Sha256, b"");
    let id = legacy::LegacyDrvOutput {
        hash,
        output: OutputName::out(),
    };
    let asked = store.legacy_realisation(&id).await;
    assert!(matches!(asked, Err(Error::Unsupported { .. })), "{asked:?}");
}

#[tokio::test]
async fn read_only_stores_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = sample("a", b"a");
    let store = open(folder.path()).await;
    add_all(&store, std::slice::from_ref(&path)).await;
    drop(store);
    let mut config = LocalConfig::chroot(folder.path());
    config.read_only = true;
    let store = LocalStore::open(config).await.unwrap();
    let (path, link) = (&path.info.path, folder.path().join("link"));
    let drv = StorePath::from_digest(&[1; 20], "x.drv").unwrap();
    for refused in [
        store.add_temp_root(path).await,
        store.add_indirect_root(&link).await,
        store.add_perm_root(path, &link).await,
        store.add_build_log(&drv, nar::from_bytes("x")).await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    assert!(!link.exists());
    assert!(store.build_log(&drv).await.unwrap().is_none());
}

/// The roots that are links or files.
async fn links(store: &LocalStore) -> BTreeSet<(String, StorePath)> {
    let roots = store.roots().await.unwrap().into_iter();
    let files = roots.filter(|root| !root.link.starts_with("/proc") && root.link.starts_with('/'));
    files.map(|root| (root.link, root.target)).collect()
}

async fn log(store: &LocalStore, drv: &StorePath) -> Result<Vec<u8>, Error> {
    let log = store.build_log(drv).await?.expect("a log");
    let chunks: Vec<_> = log.try_collect().await?;
    Ok(chunks.concat())
}

async fn refused(store: &LocalStore, sample: &common::Sample, words: &str) {
    let report = try_add(store, std::slice::from_ref(sample)).await;
    let [(path, error)] = &report.failed[..] else {
        panic!("{report:?}");
    };
    assert_eq!(*path, sample.info.path);
    let line = error.to_line();
    assert!(line.contains(words), "{line}");
}

async fn add_all_drvs(store: &LocalStore, drvs: &[&Derivation]) {
    let samples: Vec<_> = drvs
        .iter()
        .map(|drv| drv_sample(store.dir(), drv))
        .collect();
    add_all(store, &samples).await;
}

fn drv_sample(dir: &StoreDir, drv: &Derivation) -> common::Sample {
    let text = drv.to_aterm(dir).unwrap();
    let nar = file_nar(&text);
    let path = drv.path(dir).unwrap();
    let mut info = PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64);
    info.references = drv.inputs.drvs.keys().cloned().collect();
    info.ca = Some(ContentAddress {
        method: Method::Text,
        hash: Hash::digest(Algorithm::Sha256, &text),
    });
    common::Sample { info, nar }
}

/// One that needs another one.
fn two_derivations(dir: &StoreDir) -> (Derivation, Derivation) {
    let out = OutputName::out();
    let dev = OutputName::parse("dev").unwrap();
    let mut modulo = Modulo::new(dir.clone());
    let mut low = derivation("low", &[&out]);
    low.fill_outputs(&modulo).unwrap();
    let path = low.path(dir).unwrap();
    modulo.add(path.clone(), &low).unwrap();
    let mut high = derivation("high", &[&out, &dev]);
    let outputs = InputOutputs {
        outputs: [out].into(),
        dynamic: BTreeMap::new(),
    };
    high.inputs.drvs.insert(path, outputs);
    high.fill_outputs(&modulo).unwrap();
    (low, high)
}

fn derivation(name: &str, outputs: &[&OutputName]) -> Derivation {
    let variables = outputs.iter().map(|o| (o.as_str().into(), "".into()));
    let env = variables.collect();
    let outputs = outputs
        .iter()
        .map(|o| ((*o).clone(), DerivationOutput::Deferred));
    Derivation {
        name: name.to_owned(),
        outputs: outputs.collect(),
        inputs: Inputs::default(),
        platform: "any".into(),
        builder: "a builder".into(),
        args: vec![],
        env,
    }
}
