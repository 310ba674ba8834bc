use crate::objects::NarInfos;
use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use std::{collections::BTreeSet, fmt, sync::Arc};
use tk_narinfo::{Compression, NarInfo, PathInfo};
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{AddItems, AddOptions, AddReport, Error, NarStream, Result, Store, StoreExt};

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
        let batches = paths.ready_chunks(BATCH);
        let answers = batches.map(move |batch| ask_batch(store, batch));
        answers
            .buffer_unordered(BATCHES)
            .flat_map(stream::iter)
            .map(|(path, info)| (path, info.map(|info| info.map(as_narinfo))))
            .boxed()
    }
}

type Info = (StorePath, Result<Option<PathInfo>>);

/// An error in the stream of a store does not say which path it is about. So those that were left
/// unanswered are asked one by one.
async fn ask_batch(store: &dyn Store, batch: Vec<StorePath>) -> Vec<Info> {
    let mut open: BTreeSet<_> = batch.iter().cloned().collect();
    let mut answers = Vec::with_capacity(batch.len());
    let mut infos = store.infos(stream::iter(batch).boxed());
    while let Some(info) = infos.next().await {
        if let Ok((path, info)) = info
            && open.remove(&path)
        {
            answers.push((path, Ok(info)));
        }
    }
    let answered = !answers.is_empty();
    let mut failures = 0;
    let mut last = None;
    for path in open {
        // A store that is out of reach is not tried for each of a thousand paths.
        let out_of_reach = !answered && failures >= TRIES;
        if let Some(words) = last.as_ref().filter(|_| out_of_reach) {
            let error = Error::Refused {
                who: store.to_string(),
                words: String::clone(words),
            };
            answers.push((path, Err(error)));
            continue;
        }
        let info = store.info(&path).await;
        match &info {
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                last = Some(error.to_line());
            }
        }
        answers.push((path, info));
    }
    answers
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

/// Paths asked about in one stream.
const BATCH: usize = 256;

/// Such streams at once.
const BATCHES: usize = 4;

/// Failures in a row after which a store is taken to be out of reach.
const TRIES: usize = 3;
