//! Paths that are there already are added again.

mod common;

use common::{Sample, add_all, chain, open};
use futures::{StreamExt, stream};
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};
use tk_local::LocalStore;
use tk_narinfo::SecretKey;
use tk_path::StorePath;
use tk_store::{
    AddOptions, AddReport, Error, Existing, NarStream, SigCheck, Store, StoreExt, nar, verify,
};

#[tokio::test]
async fn replaces_what_is_damaged_and_what_is_known_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut samples = chain(4);
    add_all(&store, &samples).await;
    damage(&store, &samples[1].info.path);
    let info = store.require_info(&samples[1].info.path).await.unwrap();
    assert!(verify(&store, &info).await.is_err());
    add_all(&store, &samples).await;
    assert!(
        verify(&store, &info).await.is_err(),
        "nothing was asked for"
    );

    let key = SecretKey::generate("repair-1").unwrap();
    for sample in &mut samples {
        sample.info.sign(store.dir(), &key).unwrap();
    }
    let report = replace(&store, samples.iter().map(good)).await;
    assert_eq!(report.added.len(), 4, "{:?}", report.failed);
    for sample in &samples {
        let info = store.require_info(&sample.info.path).await.unwrap();
        assert_eq!(info.signatures.len(), 1);
        verify(&store, &info).await.unwrap();
    }
    assert_eq!(trees(&store), 4, "what was there is gone");
}

/// What was signed are the new references: with the old ones beside them no signature would hold.
#[tokio::test]
async fn references_are_replaced_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut samples = chain(3);
    add_all(&store, &samples).await;
    let [first, _, last] = &mut samples[..] else {
        panic!("three samples");
    };
    last.info.references = [first.info.path.clone()].into();
    let report = replace(&store, [good(last)]).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let info = store.require_info(&last.info.path).await.unwrap();
    assert_eq!(info.references, last.info.references);
}

#[tokio::test]
async fn what_fails_leaves_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(2);
    add_all(&store, &samples).await;
    let before = store.require_info(&samples[0].info.path).await.unwrap();
    let wrong = || nar::from_bytes(samples[1].nar.clone());
    let lie = (samples[0].info.clone(), wrong());
    let report = replace(&store, [lie]).await;
    assert!(
        matches!(report.failed[..], [(_, Error::Mismatch { .. })]),
        "{report:?}"
    );
    let after = store.require_info(&samples[0].info.path).await.unwrap();
    assert_eq!(after, before);
    verify(&store, &after).await.unwrap();
}

#[tokio::test]
async fn what_is_registered_and_gone_from_the_disk_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(1);
    add_all(&store, &samples).await;
    let path = &samples[0].info.path;
    tk_nar::fs::remove_tree(&real(&store, path)).unwrap();
    let report = replace(&store, samples.iter().map(good)).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let info = store.require_info(path).await.unwrap();
    verify(&store, &info).await.unwrap();
}

fn good(sample: &Sample) -> (tk_narinfo::PathInfo, NarStream) {
    (sample.info.clone(), nar::from_bytes(sample.nar.clone()))
}

async fn replace(
    store: &LocalStore,
    items: impl IntoIterator<Item = (tk_narinfo::PathInfo, NarStream)>,
) -> AddReport {
    let mut options = AddOptions::new(SigCheck::Skip);
    options.existing = Existing::Replace;
    let items: Vec<_> = items.into_iter().map(Ok).collect();
    store
        .add(stream::iter(items).boxed(), &options)
        .await
        .unwrap()
}

fn real(store: &LocalStore, path: &StorePath) -> PathBuf {
    store.real_dir().join(path.as_str())
}

/// Changes a file below `path`.
fn damage(store: &LocalStore, path: &StorePath) {
    let entries = fs::read_dir(real(store, path)).unwrap();
    let mut files = entries.map(|entry| entry.unwrap().path());
    let file = files.find(|p| p.symlink_metadata().unwrap().is_file());
    let file = file.expect("a sample has files");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "damaged").unwrap();
}

/// How many trees there are in the store directory, with those that have no name yet.
fn trees(store: &LocalStore) -> usize {
    let mut trees = 0;
    for entry in fs::read_dir(store.real_dir()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.contains("-tk-tmp-") {
            trees += fs::read_dir(entry.path()).unwrap().count()
        } else {
            trees += usize::from(!name.ends_with(".lock") && !name.starts_with('.'))
        }
    }
    trees
}
