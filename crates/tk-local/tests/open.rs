//! Opening stores that are there, that are not, and that are broken.

mod common;

use common::{add_all, chain, open, sample, try_add};
use futures::TryStreamExt;
use std::{collections::BTreeMap, fs, path::Path, time::SystemTime};
use tk_local::{LocalConfig, LocalStore};
use tk_path::{Algorithm, ContentAddress, Method, References};
use tk_store::{AddContent, AddSignatures, Error, Store, StoreExt, nar};

#[tokio::test]
async fn what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = LocalConfig::chroot(folder.path().join("none"));
    let mut read_only = config.clone();
    read_only.read_only = true;
    for opened in [
        LocalStore::open_existing(config).await,
        LocalStore::open(read_only).await,
    ] {
        let line = opened.unwrap_err().to_line();
        assert!(line.contains("there is no Nix store in"), "{line}");
        assert!(line.contains("none"), "{line}");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_broken_is_one_line() {
    for (file, content, words) in [
        ("nix", "a file", "creating the folder"),
        ("nix/var/nix/db/schema", "9", "has schema 9, older"),
        ("nix/var/nix/db/schema", "11", "has schema 11, newer"),
        ("nix/var/nix/db/schema", "?", "is not a number"),
        (
            "nix/var/nix/db/db.sqlite",
            "not a database, and long enough",
            "not a database",
        ),
        ("nix/var/nix/db/big-lock/folder", "", "opening"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        let line = LocalStore::open(LocalConfig::chroot(folder.path())).await;
        let line = line.unwrap_err().to_line();
        assert!(
            line.contains(words) && !line.contains('\n'),
            "{file}: {line}"
        );
        assert!(
            line.contains(folder.path().to_str().unwrap()),
            "{file}: {line}"
        );
    }
}

#[tokio::test]
async fn read_only_reads_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let samples = chain(4);
    let store = open(folder.path()).await;
    add_all(&store, &samples).await;
    drop(store);
    let before = listing(folder.path());

    let mut config = LocalConfig::chroot(folder.path());
    config.read_only = true;
    let store = LocalStore::open(config).await.unwrap();
    for sample in &samples {
        let info = store.require_info(&sample.info.path).await.unwrap();
        assert_eq!(info.references, sample.info.references);
        let nar: Vec<_> = store
            .nar(&info.path)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(nar.concat(), sample.nar);
    }
    let new = sample("new", b"new");
    let items = futures::stream::iter([Ok((new.info.clone(), nar::from_bytes(new.nar.clone())))]);
    let added = store
        .add(Box::pin(items), &tk_store::SigCheck::Skip.into())
        .await;
    let content = nar::from_bytes(new.nar.clone());
    let references = References::default();
    let content = store
        .add_content("new", Method::Nar, Algorithm::Sha256, &references, content)
        .await;
    let signed = store
        .add_signatures(&samples[0].info.path, &Default::default())
        .await;
    for refused in [added.map(drop), content.map(drop), signed] {
        assert!(
            matches!(refused, Err(Error::Unsupported { .. })),
            "{refused:?}"
        );
    }
    drop(store);
    assert_eq!(listing(folder.path()), before);
}

#[tokio::test]
async fn register_needs_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (here, gone) = (sample("here", b"here"), sample("gone", b"gone"));
    let real = store.real_path(&here.info.path);
    tk_nar::fs::unpack(&here.nar[..], &real, &Default::default()).unwrap();
    let line = store
        .register(vec![here.info.clone(), gone.info.clone()])
        .await;
    let line = line.unwrap_err().to_line();
    assert!(line.contains(gone.info.path.as_str()), "{line}");
    assert!(store.all().await.unwrap().is_empty());
    store.register(vec![here.info.clone()]).await.unwrap();
    tk_store::verify(&store, &here.info).await.unwrap();
}

/// Also where nobody asks for signatures, a content address must make the path.
#[tokio::test]
async fn an_address_of_another_path() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut lie = sample("lie", b"lie");
    lie.info.ca = Some(ContentAddress {
        method: Method::Nar,
        hash: lie.info.nar_hash.into(),
    });
    let report = try_add(&store, &[lie]).await;
    let [(_, Error::Invalid { what })] = &report.failed[..] else {
        panic!("{report:?}");
    };
    assert!(what.contains("implies another store path"), "{what}");
    assert!(store.all().await.unwrap().is_empty());
}

/// Content that lies in the way of a path, from a process that was killed, is replaced.
#[tokio::test]
async fn left_overs_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let samples = chain(3);
    for (i, sample) in samples.iter().enumerate() {
        let real = store.real_path(&sample.info.path);
        match i {
            0 => fs::write(real, "half of a file").unwrap(),
            1 => fs::create_dir_all(real.join("half/of/a/folder")).unwrap(),
            _ => std::os::unix::fs::symlink("/etc", real).unwrap(),
        }
    }
    add_all(&store, &samples).await;
    for sample in &samples {
        tk_store::verify(&store, &sample.info).await.unwrap();
    }
    assert!(Path::new("/etc").exists());
}

/// What is dropped half-way leaves nothing but what was finished.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_half_way() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let samples = chain(40);
    for delay in [0, 1, 3, 9, 20] {
        let delay = std::time::Duration::from_millis(delay);
        let adding = tokio::time::timeout(delay, try_add(&store, &samples));
        let _ = adding.await;
        for path in store.all().await.unwrap() {
            let info = store.require_info(&path).await.unwrap();
            tk_store::verify(&store, &info).await.unwrap();
        }
    }
    add_all(&store, &samples).await;
}

/// Every file with its size and time.
fn listing(folder: &Path) -> BTreeMap<String, (u64, SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            files.extend(listing(&path));
        }
        let name = path.to_str().unwrap().to_owned();
        files.insert(name, (meta.len(), meta.modified().unwrap()));
    }
    files
}

/// Several first users of a store make it once, and none of them fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn first_users_at_once() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let config = LocalConfig::chroot(folder.path());
        let opened = (0..8).map(|_| tokio::spawn(LocalStore::open(config.clone())));
        for opened in opened.collect::<Vec<_>>() {
            opened.await.unwrap().unwrap();
        }
        let state = folder.path().join("nix/var/nix/db");
        assert_eq!(fs::read_to_string(state.join("schema")).unwrap(), "10");
        assert!(!state.join("schema.new").exists());
    }
}
