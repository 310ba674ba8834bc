use crate::objects::NarInfos;
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{collections::BTreeSet, fmt, sync::Arc};
use tk_narinfo::{Compression, NarInfo, PathInfo};
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{AddItems, AddOptions, AddReport, NarStream, Result, Store};

/// Any store as if it answered with narinfos: a daemon, a store on disk.
///
/// Such a narinfo has an empty [`url`](NarInfo::url), for there is no file to fetch, and neither
/// hash nor size of one.
#[derive(Debug, Clone)]
pub struct StoreInfos(Arc<dyn Store>);

impl StoreInfos {
    /// The answers of `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        StoreInfos(store)
    }

    /// As [`NarInfos::narinfos`], of any store.
    pub fn ask<'a>(
        store: &'a dyn Store,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        let answers = store.each_info(paths);
        answers
            .map(|(path, info)| (path, info.map(|info| info.map(as_narinfo))))
            .boxed()
    }
}

fn as_narinfo(info: PathInfo) -> NarInfo {
    NarInfo::new(info, String::new(), Compression::None)
}

impl NarInfos for StoreInfos {
    fn narinfos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        StoreInfos::ask(&*self.0, paths)
    }
}

#[async_trait]
impl Store for StoreInfos {
    fn dir(&self) -> &StoreDir {
        self.0.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.0.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.0.infos(paths)
    }

    fn each_info<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<PathInfo>>)> {
        self.0.each_info(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.0.nar(path).await
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.0.add(items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.0.find(part).await
    }
}

impl fmt::Display for StoreInfos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
