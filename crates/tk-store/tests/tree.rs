//! Files as store paths, without a store that holds them.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};
use tempfile::TempDir;
use tk_nar::fs::DumpOptions;
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Method, References, StorePath};
use tk_store::{
    AddContent, Error, MemoryStore, Result, SigCheck, Store, StoreExt, TreeStore,
    copy::{CopyOptions, plan},
    nar,
};

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a"), "one").unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    // Mentioning a path makes no reference, as in `add`.
    let mention = format!("/nix/store/{}-x", "0".repeat(32));
    fs::write(folder.path().join("b/c"), mention).unwrap();
    folder
}

async fn read(trees: &mut TreeStore, file: &Path, name: &str) -> Result<PathInfo> {
    let how = (Method::Nar, Algorithm::Sha256);
    let options = DumpOptions::default();
    let progress = Arc::new(());
    let read = trees.read(file.to_owned(), options, name, how, progress);
    read.await
}

/// What of `roots` could not be copied to `dst`.
async fn push(trees: TreeStore, dst: &MemoryStore, roots: &[StorePath]) -> Vec<Error> {
    let src: Arc<dyn Store> = Arc::new(trees);
    let roots = roots.iter().cloned().collect();
    let plan = plan(&*src, dst, &roots, &CopyOptions::new(SigCheck::Skip)).await;
    let report = plan.unwrap().run(&src, dst, Arc::new(())).await.unwrap();
    report.failed.into_iter().map(|(_, error)| error).collect()
}

async fn add(store: &MemoryStore, file: &Path, name: &str) -> PathInfo {
    let nar = nar::dump(file.to_owned(), DumpOptions::default());
    let (method, none) = (Method::Nar, References::default());
    let added = store.add_content(name, method, Algorithm::Sha256, &none, nar);
    added.await.unwrap()
}

#[tokio::test]
async fn a_tree_is_the_path_that_adding_it_makes() {
    let folder = folder();
    let behind = Arc::new(MemoryStore::default());
    let other = add(&behind, &folder.path().join("a"), "other").await;
    let mut trees = TreeStore::new(behind.clone());
    let tree = read(&mut trees, folder.path(), "tree").await.unwrap();
    assert_eq!(trees.file(&tree.path), Some(folder.path()));
    assert_eq!(
        add(&MemoryStore::default(), folder.path(), "tree").await,
        tree
    );
    let absent: StorePath = format!("{}-x", "0".repeat(32)).parse().unwrap();

    // One store to those who ask, whichever has the path.
    let all = BTreeSet::from([tree.path.clone(), other.path.clone(), absent.clone()]);
    let there = BTreeSet::from([tree.path.clone(), other.path.clone()]);
    assert_eq!(trees.valid(&all).await.unwrap(), there);
    let infos: BTreeMap<_, _> = trees.infos_of(all).try_collect().await.unwrap();
    let expected = [
        (tree.path.clone(), Some(tree.clone())),
        (other.path.clone(), Some(other.clone())),
        (absent, None),
    ];
    assert_eq!(infos, BTreeMap::from(expected));
    let part = tree.path.to_hash_part();
    assert_eq!(trees.find(&part).await.unwrap().as_ref(), Some(&tree.path));
    let options = SigCheck::Skip.into();
    let refused = trees.add(stream::empty().boxed(), &options).await;
    assert!(matches!(refused, Err(Error::Unsupported { .. })));

    let dst = MemoryStore::default();
    let roots = [tree.path.clone(), other.path.clone()];
    let failed = push(trees, &dst, &roots).await;
    assert!(failed.is_empty(), "{failed:?}");
    for info in [&tree, &other] {
        assert_eq!(dst.require_info(&info.path).await.unwrap(), *info);
        let nar: Vec<Bytes> = dst
            .nar(&info.path)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(nar.concat().len() as u64, info.nar_size);
    }
    assert!(
        behind.info(&tree.path).await.unwrap().is_none(),
        "nothing is kept"
    );
}

#[tokio::test]
async fn a_tree_that_changes_in_between_is_refused() {
    for content in ["two", "longer", ""] {
        let folder = folder();
        let mut trees = TreeStore::new(Arc::new(MemoryStore::default()));
        let tree = read(&mut trees, folder.path(), "tree").await.unwrap();
        fs::write(folder.path().join("a"), content).unwrap();
        let dst = MemoryStore::default();
        let failed = push(trees, &dst, std::slice::from_ref(&tree.path)).await;
        assert!(
            matches!(&failed[..], [Error::Mismatch { .. }]),
            "{failed:?}"
        );
        assert!(dst.info(&tree.path).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_no_tree() {
    let folder = folder();
    let mut trees = TreeStore::new(Arc::new(MemoryStore::default()));
    let absent = folder.path().join("absent");
    assert!(read(&mut trees, &absent, "x").await.is_err());
    assert!(read(&mut trees, folder.path(), "no name").await.is_err());
}
