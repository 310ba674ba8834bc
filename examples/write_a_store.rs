//! A store of your own: here one in front of another, which takes no path larger than a limit.
//! `tk_store::conformance` says whether a store keeps what all others rely on.

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, future::ready, stream::BoxStream};
use std::{collections::BTreeSet, fmt, sync::Mutex};
use tk_narinfo::PathInfo;
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{AddItems, AddOptions, AddReport, Error, MemoryStore, NarStream, Result, Store};

type Found = Result<(StorePath, Option<PathInfo>)>;

/// A store, and the most bytes that a path may have in it.
#[derive(Debug)]
pub struct LimitedStore(pub MemoryStore, pub u64);

#[async_trait]
impl Store for LimitedStore {
    fn dir(&self) -> &StoreDir {
        self.0.dir()
    }
    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.0.valid(paths).await
    }
    fn infos<'a>(&'a self, paths: BoxStream<'a, StorePath>) -> BoxStream<'a, Found> {
        self.0.infos(paths)
    }
    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.0.nar(path).await
    }
    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.0.find(part).await
    }
    /// A path that fails is in the report; what refers to it is refused by the store behind.
    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        let failed = Mutex::new(Vec::new());
        let small = items.try_filter(|(info, _)| {
            let fits = info.nar_size <= self.1;
            if !fits {
                let why = Error::invalid(format!("{} is larger than {} bytes", info.path, self.1));
                failed.lock().unwrap().push((info.path.clone(), why));
            }
            ready(fits)
        });
        let mut report = self.0.add(small.boxed(), options).await?;
        report.failed.extend(failed.into_inner().unwrap());
        Ok(report)
    }
}

impl fmt::Display for LimitedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, up to {} bytes", self.0, self.1)
    }
}

/// Runs the suite.
#[tokio::main]
pub async fn main() {
    let make = async || LimitedStore(MemoryStore::default(), 1 << 30);
    tk_store::conformance::run(make).await;
    println!("it is a store like any other");
}
