//! Any store of ours, between which and its caller things go wrong.

use super::steps::{Steps, Swap};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use tk_narinfo::{PathInfo, Signature};
use tk_path::{Algorithm, HashPart, Method, References, StoreDir, StorePath};
use tk_store::{
    Abilities, AddContent, AddItems, AddOptions, AddReport, AddSignatures, NarStream, Result, Store,
};

/// A store whose every answer, and every piece of every NAR, is one of `steps`.
#[derive(Debug, Clone)]
pub struct Breaking {
    store: Abilities,
    steps: Arc<Steps>,
}

impl Breaking {
    pub fn new(store: Abilities, steps: &Arc<Steps>) -> Arc<Self> {
        Arc::new(Breaking {
            store,
            steps: steps.clone(),
        })
    }

    fn inner(&self) -> &dyn Store {
        &*self.store.store
    }
}

#[async_trait]
impl Store for Breaking {
    fn dir(&self) -> &StoreDir {
        self.inner().dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.steps.step("asking which paths are valid").await?;
        self.inner().valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let infos = self.inner().infos(paths);
        self.steps.each("asking about a path", Swap::AtHand, infos)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.steps.step("opening a NAR").await?;
        let nar = self.inner().nar(path).await?;
        Ok(breaking_nar(nar, &self.steps))
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.steps.step("adding paths").await?;
        let items = self.steps.each("handing on a path", Swap::Always, items);
        let report = self.inner().add(items, options).await;
        self.steps.step("hearing what was added").await?;
        report
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.steps.step("finding a path").await?;
        self.inner().find(part).await
    }
}

#[async_trait]
impl AddContent for Breaking {
    async fn add_content(
        &self,
        name: &str,
        method: Method,
        algorithm: Algorithm,
        references: &References,
        nar: NarStream,
    ) -> Result<PathInfo> {
        self.steps.step("adding content").await?;
        let content = self.store.content.as_ref().expect("a store of content");
        let nar = breaking_nar(nar, &self.steps);
        let added = content.add_content(name, method, algorithm, references, nar);
        let info = added.await;
        self.steps
            .step("hearing what the content is called")
            .await?;
        info
    }
}

#[async_trait]
impl AddSignatures for Breaking {
    async fn add_all_signatures(
        &self,
        signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    ) -> Vec<(StorePath, Result<()>)> {
        let paths: Vec<_> = signatures.keys().cloned().collect();
        if let Err(error) = self.steps.step("adding signatures").await {
            return error.for_each(paths);
        }
        let signed = self.store.signatures.as_ref().expect("a store to sign in");
        let done = signed.add_all_signatures(signatures).await;
        match self.steps.step("hearing that it is signed").await {
            Ok(()) => done,
            Err(error) => error.for_each(paths),
        }
    }
}

impl fmt::Display for Breaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.inner(), f)
    }
}

/// `nar` in pieces, each of which is a step.
fn breaking_nar(nar: NarStream, steps: &Arc<Steps>) -> NarStream {
    let pieces = nar.map_ok(|chunk| stream::iter(pieces(chunk)).map(Ok));
    let pieces = pieces.try_flatten().boxed();
    steps.each("reading a NAR", Swap::Always, pieces)
}

/// A few pieces of `chunk`, of different sizes.
fn pieces(mut chunk: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    for part in [5, 2] {
        let piece = chunk.split_to(chunk.len() / part);
        pieces.extend((!piece.is_empty()).then_some(piece));
    }
    pieces.push(chunk);
    pieces
}
