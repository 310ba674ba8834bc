//! The store of the user, whose builds go to other machines.

use crate::{RemoteConfig, graph::BuildGraph, realised::Realised, run};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{collections::BTreeSet, fmt, sync::Arc};
use tk_narinfo::{
    PathInfo,
    build_result::{BuildResult, KeyedBuildResult},
};
use tk_path::{BasicDerivation, DerivedPath, HashPart, StoreDir, StorePath};
use tk_store::{
    Abilities, AddItems, AddOptions, AddReport, Build, BuildMode, Error, Missing, NarStream,
    Result, Store, log::LogSink,
};

/// The user's store, as one that builds on other machines.
#[derive(Clone)]
pub struct RemoteBuilder {
    local: Abilities,
    config: Arc<RemoteConfig>,
}

impl RemoteBuilder {
    /// `local` has the derivations and gets the outputs. What it can fetch from substituters by its
    /// own ability to build is fetched.
    pub fn new(local: Abilities, config: RemoteConfig) -> Self {
        RemoteBuilder {
            local,
            config: Arc::new(config),
        }
    }

    /// The store, whose builds go to the machines.
    pub fn abilities(self) -> Abilities {
        let mut store = self.local.clone();
        store.build = Some(Arc::new(self));
        store
    }
}

#[async_trait]
impl Build for RemoteBuilder {
    /// Activities of several machines come in one log: their numbers are made new, and a build's
    /// start names its machine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other modes than [`BuildMode::Normal`]. What concerns single
    /// derivations, machines included, is a result.
    async fn build(
        &self,
        paths: &[DerivedPath],
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<Vec<KeyedBuildResult>> {
        if mode != BuildMode::Normal {
            let what = "builds on other machines only what is not there";
            return Err(self.local.unsupported(what));
        }
        run::run(&self.local, &self.config, paths, log).await
    }

    async fn build_derivation(
        &self,
        path: &StorePath,
        drv: &BasicDerivation,
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<BuildResult> {
        match &self.local.build {
            Some(build) => build.build_derivation(path, drv, mode, log).await,
            None => Err(self
                .local
                .unsupported("builds only derivations that it has")),
        }
    }

    async fn missing(&self, paths: &[DerivedPath]) -> Result<Missing> {
        if let Some(build) = &self.local.build {
            return build.missing(paths).await;
        }
        let realised = Realised::new(self.local.store.dir().clone());
        let graph = BuildGraph::of(&self.local, &realised, paths, &BTreeSet::new()).await?;
        Ok(Missing {
            build: graph.nodes.into_keys().collect(),
            ..Missing::default()
        })
    }

    async fn ensure(&self, path: &StorePath, log: &dyn LogSink) -> Result<()> {
        match &self.local.build {
            Some(build) => build.ensure(path, log).await,
            None => Err(Error::NotFound {
                path: path.clone(),
                store: self.local.store.to_string(),
            }),
        }
    }
}

#[async_trait]
impl Store for RemoteBuilder {
    fn dir(&self) -> &StoreDir {
        self.local.store.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.local.store.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.local.store.infos(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.local.store.nar(path).await
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.local.store.add(items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.local.store.find(part).await
    }
}

impl fmt::Display for RemoteBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.local.store.fmt(f)
    }
}

impl fmt::Debug for RemoteBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBuilder")
            .field("local", &self.local.store)
            .field("machines", &self.config.machines)
            .finish_non_exhaustive()
    }
}
