//! Building on other machines without nix: the store of the user is the source of what is built and
//! the place where the outputs end up, the [machines](crate::machines) only build.
//!
//! ```text
//! what is wanted → fetch what substituters have → derivations whose outputs are not there, and
//! theirs → each one whose inputs are there: a machine that fits and has a free slot → its inputs
//! there → build → outputs back, checked → those that waited for it
//! ```
//! Two ways lead to an output. A builder that trusts the account gets the closure of the inputs and
//! builds the one derivation (`BuildDerivation`). One that does not takes only what proves itself:
//! derivations, sources, what a key that it trusts has signed. It gets the closure of the
//! derivation, and builds by itself what is missing of the inputs (`BuildPathsWithResults`).
//! Derivations whose outputs are known only when they are built (`ca-derivations`) go to machines that
//! have that feature. What a machine says that they turned out to be is checked, and told to the store
//! of the user. If that keeps no such things, or no machine fits, it builds them itself; and always
//! those that are impure.
//!
//! A builder that is lost in the middle, or that turns inputs down, is followed by another that
//! fits. So is one that falls silent: while nothing is heard of it, it is asked whether it is there
//! ([`MachineTimeouts`]), and lost when it does not answer. A build that fails has failed: it is not tried
//! elsewhere.
//!
//! # Security
//! A machine is believed that its output is what the derivation makes, as anybody is who builds.
//! Not believed is what can be checked: that it is the output that the derivation says or, where it
//! says none, a path that follows from its content by the derivation's own method; that content
//! is what hash, size and content address say; that references lead only to what went into the
//! build. Only then is it added, without asking for signatures: [`SigCheck::Skip`] is
//! said for exactly those paths.

mod graph;
mod job;
mod log;
mod pick;
mod realised;
mod run;
mod silence;

pub(crate) use graph::BuildGraph;
pub(crate) use realised::Realised;

use crate::{machines::Machine, slots::Slots};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};
use tk_narinfo::{
    PathInfo, SecretKey,
    build_result::{BuildResult, KeyedBuildResult},
};
use tk_path::{BasicDerivation, DerivedPath, HashPart, StoreDir, StorePath};
#[cfg(doc)]
use tk_store::SigCheck;
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

/// How to build on other machines.
#[derive(Clone)]
pub struct RemoteConfig {
    /// The machines that may be asked to build.
    pub machines: Vec<Machine>,
    /// The way to them.
    pub connect: Arc<dyn Connect>,
    /// Which of their slots are held.
    pub slots: Slots,
    /// Whether other builds go on when one fails.
    pub keep_going: bool,
    /// Whether a builder may fetch inputs from substituters of its own instead of getting them from here.
    pub builders_substitute: bool,
    /// Keys that sign the outputs, for a store here that does not trust the user.
    pub sign: Vec<Arc<SecretKey>>,
    /// How long machines are waited for.
    pub patience: MachineTimeouts,
}

/// How long machines are waited for that say nothing. As long as one answers, its builds may be as
/// quiet as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineTimeouts {
    /// After so long without a sign of life in the middle of a build or a copy a machine is asked
    /// whether it is still there.
    pub silence: Duration,
    /// How long its answer may take. It is asked three times, then it is lost.
    pub answer: Duration,
    /// How long connecting may take, with all that ssh asks the user.
    pub connect: Duration,
}

impl Default for MachineTimeouts {
    /// 30 s, 20 s and 120 s.
    fn default() -> Self {
        MachineTimeouts {
            silence: Duration::from_secs(30),
            answer: Duration::from_secs(20),
            connect: Duration::from_secs(120),
        }
    }
}

/// Opens the stores of machines.
#[async_trait]
pub trait Connect: Send + Sync {
    /// The store of `machine`, which has answered. Over it go up to `connections` things at once.
    async fn connect(&self, machine: &Machine, connections: usize) -> Result<Connected>;
}

/// The store of a machine.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The store of the machine, opened.
    pub store: Abilities,
    /// The version of its Nix, if it tells.
    pub nix_version: Option<String>,
    /// The protocol and its version, such as `worker 1.38`.
    pub protocol: Option<String>,
    /// Whether it trusts the account, if it tells.
    pub trusted: Option<bool>,
    /// How long the shortest question took, if it was asked one.
    pub latency: Option<Duration>,
}

/// What became of asking a machine, by [`probe`].
#[derive(Debug)]
pub struct Probe {
    /// The machine that was asked.
    pub machine: Machine,
    /// The store that the machine opened, or why it could not be reached.
    pub answer: Result<Connected>,
    /// Its slots that nobody here holds. What others than this machine build there is not
    /// known: no protocol tells.
    pub free_slots: Option<u32>,
}

/// Asks all machines at once whether they are there, and waits for the slowest, but not for longer than
/// `limit`.
pub async fn probe(
    machines: &[Machine],
    connect: &dyn Connect,
    slots: &Slots,
    limit: Duration,
) -> Vec<Probe> {
    let asked = machines.iter().map(|machine| async {
        Probe {
            answer: pick::connect_within(limit, connect, machine, 1).await,
            free_slots: slots.free(machine).ok(),
            machine: machine.clone(),
        }
    });
    futures::future::join_all(asked).await
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
        let realised = realised::Realised::new(self.local.store.dir().clone());
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
