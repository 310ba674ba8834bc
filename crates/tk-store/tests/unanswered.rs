//! Stores that stop in the midst of their answers: what they leave out is not known, not absent.

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{collections::BTreeSet, fmt, sync::Arc};
use tk_narinfo::PathInfo;
use tk_path::{HashPart, NarHash, StoreDir, StorePath};
use tk_store::conformance::file_nar;
use tk_store::{
    AddItems, AddOptions, AddReport, Closure, Error, MemoryStore, NarStream, Result, SigCheck,
    Store, StoreExt,
    closure::missing_closure,
    copy::{CopyOptions, plan},
    nar,
};

#[tokio::test]
async fn what_is_left_unanswered_is_not_absent() {
    let (store, path) = (silent().await, info().path);
    let words = |error: Error| assert!(error.to_line().contains("left unanswered"), "{error}");
    words(store.info(&path).await.unwrap_err());
    words(store.require_info(&path).await.unwrap_err());
    words(Closure::only(&store, [path.clone()]).await.unwrap_err());
    let empty = MemoryStore::default();
    let missing = missing_closure(&store, &empty, [path.clone()], &SigCheck::Skip);
    words(missing.await.unwrap_err());
    let answers: Vec<_> = store.infos_of([path].into()).collect().await;
    assert!(matches!(answers[..], [Err(_)]), "{answers:?}");
}

/// Nothing that nobody vouches for counts as copied.
#[tokio::test]
async fn a_path_that_is_in_no_report_is_not_added() {
    let (source, destination) = (full().await, silent().await);
    let skip = SigCheck::Skip;
    let nar = nar::from_bytes(file_nar(b""));
    let options = skip.clone().into();
    let added = destination.add_one(info(), nar, &options);
    assert!(added.await.is_err());
    let roots = BTreeSet::from([info().path]);
    let (source, to): (Arc<dyn Store>, _) = (Arc::new(source), MemoryStore::default());
    let plan = plan(&*source, &to, &roots, &CopyOptions::new(skip)).await;
    let report = plan.unwrap().run(&source, &destination, Arc::new(())).await;
    let report = report.unwrap();
    assert!(report.copied.is_empty(), "{report:?}");
    assert_eq!(report.failed.len(), 1, "{report:?}");
}

async fn full() -> MemoryStore {
    let store = MemoryStore::default();
    let nar = nar::from_bytes(file_nar(b""));
    let options = SigCheck::Skip.into();
    let added = store.add_one(info(), nar, &options);
    added.await.unwrap();
    store
}

async fn silent() -> Silent {
    Silent(full().await)
}

fn info() -> PathInfo {
    let path = StorePath::from_digest(&[7; 20], "path").unwrap();
    let nar = file_nar(b"");
    PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64)
}

/// Ends every list of answers before the first one.
#[derive(Debug)]
struct Silent(MemoryStore);

#[async_trait]
impl Store for Silent {
    fn dir(&self) -> &StoreDir {
        self.0.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.0.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        _: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        futures::stream::empty().boxed()
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.0.nar(path).await
    }

    async fn add(&self, _: AddItems<'_>, _: &AddOptions) -> Result<AddReport> {
        Ok(AddReport::default())
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.0.find(part).await
    }
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("silent://")
    }
}
