//! What only some stores can do, a trait each, and [`Abilities`]: a store with those that it has.

use crate::{
    AddContent, AddSignatures, Describe, Error, Maintain, NarStream, Result, SigCheck, Store,
    derivation,
    log::{Level, LogSink},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use tk_narinfo::{
    build_result::{BuildResult, KeyedBuildResult},
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{BasicDerivation, ContentAddress, DerivedPath, OutputName, StorePath};

/// Stores that build, or have somebody who does.
///
/// Dropping a future gives the build up. What the builders write comes to `log` as it is written.
#[async_trait]
pub trait Build: Store {
    /// Builds or fetches what is not there yet. One result for each of `paths`, in the store's
    /// order; a build that fails is a result, not an error.
    async fn build(
        &self,
        paths: &[DerivedPath],
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<Vec<KeyedBuildResult>>;

    /// Builds the derivation `drv`, whose inputs are there and which itself need not be; `path`
    /// is what it would be called.
    ///
    /// # Errors
    /// [`Error::Refused`] for a user who is not trusted, unless the outputs are content-addressed.
    async fn build_derivation(
        &self,
        path: &StorePath,
        drv: &BasicDerivation,
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<BuildResult>;

    /// What would have to be built and fetched for `paths`. Nothing is changed.
    async fn missing(&self, paths: &[DerivedPath]) -> Result<Missing>;

    /// Makes `path` valid, by fetching it or by repairing what is broken.
    async fn ensure(&self, path: &StorePath, log: &dyn LogSink) -> Result<()>;
}

/// What is to be done with outputs that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BuildMode {
    /// They are left alone.
    #[default]
    Normal = 0,
    /// Those that are damaged are built again.
    Repair = 1,
    /// They are built again, and it is an error if they differ.
    Check = 2,
}

/// What is to be done before certain paths are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Derivations that would have to be built.
    pub build: BTreeSet<StorePath>,
    /// Paths that would be fetched from substituters.
    pub substitute: BTreeSet<StorePath>,
    /// Paths that nobody knows how to come by.
    pub unknown: BTreeSet<StorePath>,
    /// Bytes to fetch, compressed, as far as known.
    pub download_size: u64,
    /// Bytes of their NARs, as far as known.
    pub nar_size: u64,
}

/// Stores that keep their paths until nothing needs them: what is a root, and what a root refers
/// to, is never collected.
#[async_trait]
pub trait Roots: Store {
    /// Makes each of `paths` a root as long as this process (or this connection) lives. They need
    /// not be there. No path waits for a round trip of its own.
    async fn add_temp_roots(&self, paths: &BTreeSet<StorePath>) -> Result<()>;

    /// The same for one path.
    async fn add_temp_root(&self, path: &StorePath) -> Result<()> {
        self.add_temp_roots(&[path.clone()].into()).await
    }

    /// Makes a root of the link at `link`, which lies anywhere: a root as long as it is there and
    /// leads into the store.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `link` is not absolute.
    async fn add_indirect_root(&self, link: &Path) -> Result<()>;

    /// Makes `link` a link to `path`, and a root of it. A link that is there is replaced.
    async fn add_perm_root(&self, path: &StorePath, link: &Path) -> Result<()>;

    /// Takes the registration of `link` as an indirect root away, where the store can; whether there was one.
    /// Others find it stale at their next collection, once the link is gone.
    async fn forget_indirect_root(&self, link: &Path) -> Result<bool> {
        let _ = link;
        Ok(false)
    }

    /// All roots, with those of processes as far as they can be found out.
    async fn roots(&self) -> Result<Vec<Root>>;

    /// The same, with what could not be looked at, of which anything may be a root.
    async fn roots_and_unknown(&self) -> Result<(Vec<Root>, Vec<Error>)> {
        Ok((self.roots().await?, Vec::new()))
    }
}

/// Something that keeps a path from being collected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root {
    /// What keeps it: the place of a link, `{temp:PID}` or the like for a process, `{censored}` where
    /// the store does not want to say.
    pub link: String,
    /// The store path that it keeps, with all that the path refers to.
    pub target: StorePath,
}

/// Stores that can delete what nothing needs.
#[async_trait]
pub trait GarbageCollector: Store {
    /// Finds out what is alive or dead, and deletes if asked to.
    async fn collect_garbage(&self, options: &GcOptions, log: &dyn LogSink) -> Result<GcReport>;
}

/// What [`GarbageCollector::collect_garbage`] is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcOptions {
    /// Whether to tell or to delete, and of which paths.
    pub action: GcAction,
    /// Stop after so many bytes have been freed; `u64::MAX`: never.
    pub max_freed: u64,
    /// Delete the paths of [`GcAction::DeleteSpecific`] even if roots reach them. No daemon does that.
    pub ignore_liveness: bool,
    /// Delete those paths of [`GcAction::DeleteSpecific`] that are dead, and leave the others: otherwise none is
    /// deleted if one is alive. No daemon can do that.
    pub skip_live: bool,
    /// Keep what was registered after this moment, with all that it refers to. No daemon can do that.
    pub keep_newer_than: Option<SystemTime>,
}

impl GcOptions {
    /// Returns options that do `action` without a limit on the bytes to free.
    pub fn new(action: GcAction) -> Self {
        GcOptions {
            action,
            max_freed: u64::MAX,
            ignore_liveness: false,
            skip_live: false,
            keep_newer_than: None,
        }
    }
}

/// What a garbage collection tells or deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcAction {
    /// Tell what roots reach.
    ReturnLive,
    /// Tell what they do not.
    ReturnDead,
    /// Delete what they do not.
    DeleteDead,
    /// Delete these, if roots do not reach them.
    DeleteSpecific(BTreeSet<StorePath>),
}

/// What [`GarbageCollector::collect_garbage`] found or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// What is alive, is dead or was deleted. Whole paths, since not all that is deleted is a store path.
    pub paths: BTreeSet<String>,
    /// Bytes that were freed, or would be.
    pub bytes_freed: u64,
    /// What could not be deleted although it is dead: a sentence each.
    pub failed: Vec<String>,
}

/// Stores that know more about their paths than their metadata.
#[async_trait]
pub trait Graph: Store {
    /// Everything that is valid.
    async fn all_paths(&self) -> Result<BTreeSet<StorePath>>;

    /// The same, going on past entries that name no path: each of these with what is wrong.
    async fn all_readable(&self) -> Result<(BTreeSet<StorePath>, Vec<(String, Error)>)> {
        Ok((self.all_paths().await?, Vec::new()))
    }

    /// The valid paths that refer to `path`, with itself if it does.
    async fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>>;

    /// The valid derivations that have `path` as an output.
    async fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>>;

    /// The outputs of the derivation `drv`, each with its path as far as it is known.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the derivation is not there.
    async fn output_map(&self, drv: &StorePath) -> Result<BTreeMap<OutputName, Option<StorePath>>>;
}

/// Stores that keep what builders wrote.
#[async_trait]
pub trait Logs: Store {
    /// The log of the derivation `drv`, whatever it is compressed with; `None` if there is none.
    /// Bytes as the builder wrote them: not always text, and with the escape sequences of
    /// terminals.
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>>;

    /// Keeps `log` as the log of the derivation `drv`. If there is one it stays, which is no
    /// error.
    async fn add_build_log(&self, drv: &StorePath, log: ByteStream) -> Result<()>;
}

/// Plain bytes in order; the same type as that of a NAR.
pub type ByteStream = NarStream;

/// Stores that know what the outputs of content-addressed derivations turned out to be.
///
/// There are two forms, see [`realisation`](tk_narinfo::realisation); most stores know one.
///
/// # Errors
/// [`Error::Unsupported`] for the form that a store does not know.
#[async_trait]
pub trait Realisations: Store {
    /// What the output `id` turned out to be; `None` if that is not known.
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>>;

    /// Keeps `realisation`. One that is there with the same path gets its signatures.
    ///
    /// # Errors
    /// [`Error::Untrusted`] if `check` wants other signatures; [`Error::Refused`] when the output
    /// is known to be something else.
    async fn register(&self, realisation: &Realisation, check: &SigCheck) -> Result<()>;

    /// As [`Realisations::realisation`], in the older form.
    async fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>>;

    /// As [`Realisations::register`], in the older form.
    async fn register_legacy(
        &self,
        realisation: &legacy::LegacyRealisation,
        check: &SigCheck,
    ) -> Result<()>;
}

/// Stores that fetch from others what they lack.
#[async_trait]
pub trait Substitute: Debug + Send + Sync {
    /// Those of `paths` that are there, after those that were not were fetched from whoever has them.
    async fn valid_or_fetched(
        &self,
        paths: &BTreeSet<StorePath>,
        log: &dyn LogSink,
    ) -> Result<BTreeSet<StorePath>>;

    /// Those of `paths` that somebody has.
    async fn substitutable_paths(&self, paths: &BTreeSet<StorePath>)
    -> Result<BTreeSet<StorePath>>;

    /// What is known about those of `paths` that somebody has; each is asked about with the content
    /// address under which stores of another directory may have it.
    async fn substitutable_infos(
        &self,
        paths: &BTreeMap<StorePath, Option<ContentAddress>>,
    ) -> Result<BTreeMap<StorePath, SubstitutablePathInfo>>;
}

/// What is known about a path that could be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstitutablePathInfo {
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// The paths it needs.
    pub references: BTreeSet<StorePath>,
    /// Bytes to fetch; 0 if not known.
    pub download_size: u64,
    /// Bytes of its NAR; 0 if not known.
    pub nar_size: u64,
}

/// Stores that keep something for each client of a server.
pub trait Sessions: Debug + Send + Sync {
    /// The store for one client: temporary roots that are made through it end when the last part of it
    /// is dropped. What whoever does the work says meanwhile goes to `log`.
    fn session(&self, log: Arc<dyn LogSink>) -> Abilities;

    /// The same session, which works by these settings from now on; `None` if there is nothing that
    /// could.
    fn with_settings(&self, settings: &ClientSettings) -> Option<Abilities>;
}

/// How a client wants its builds done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientSettings {
    /// Keep the directories of builds that fail.
    pub keep_failed: bool,
    /// Go on with other builds when one fails.
    pub keep_going: bool,
    /// Build what cannot be fetched.
    pub try_fallback: bool,
    /// Up to which level to log.
    pub verbosity: Level,
    /// How many builds at the same time.
    pub max_build_jobs: u32,
    /// Seconds after which a silent build is ended; 0: never.
    pub max_silent_time: u64,
    /// Whether to send what builders print.
    pub verbose_build: bool,
    /// How many processors a build may use; 0: all.
    pub build_cores: u32,
    /// Whether to fetch what substituters have.
    pub use_substitutes: bool,
    /// Further settings by name.
    pub overrides: BTreeMap<String, String>,
}

/// As Nix without any configuration.
impl Default for ClientSettings {
    fn default() -> Self {
        ClientSettings {
            keep_failed: false,
            keep_going: false,
            try_fallback: false,
            verbosity: Level::Info,
            max_build_jobs: 1,
            max_silent_time: 0,
            verbose_build: true,
            build_cores: 0,
            use_substitutes: true,
            overrides: BTreeMap::new(),
        }
    }
}

/// A store with what it can do beyond [`Store`]; what it cannot is `None`.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// The store itself, which can do all that [`Store`] says.
    pub store: Arc<dyn Store>,
    /// Adds content under the path that it makes.
    pub content: Option<Arc<dyn AddContent>>,
    /// Adds signatures to paths that are there.
    pub signatures: Option<Arc<dyn AddSignatures>>,
    /// Builds derivations, and tells what would have to be built.
    pub build: Option<Arc<dyn Build>>,
    /// Makes and lists the roots that keep paths from being collected.
    pub roots: Option<Arc<dyn Roots>>,
    /// Deletes paths that no root reaches.
    pub gc: Option<Arc<dyn GarbageCollector>>,
    /// Tells all paths, who refers to what, and the outputs of derivations.
    pub graph: Option<Arc<dyn Graph>>,
    /// Keeps what builders wrote, and gives it back.
    pub logs: Option<Arc<dyn Logs>>,
    /// Tells and keeps what outputs of content-addressed derivations turned out to be.
    pub realisations: Option<Arc<dyn Realisations>>,
    /// Fetches from other stores what this one lacks.
    pub substitutes: Option<Arc<dyn Substitute>>,
    /// Makes equal files one, and checks or mends what is registered.
    pub maintenance: Option<Arc<dyn Maintain>>,
    /// Gives each client of a server a store of its own.
    pub sessions: Option<Arc<dyn Sessions>>,
    /// Tells what kind of store it is.
    pub description: Option<Arc<dyn Describe>>,
    /// Where the files of its paths lie on this machine, if they do.
    pub real_dir: Option<PathBuf>,
}

impl Abilities {
    /// `store` without any of them.
    pub fn of(store: Arc<dyn Store>) -> Self {
        Abilities {
            store,
            content: None,
            signatures: None,
            build: None,
            roots: None,
            gc: None,
            graph: None,
            logs: None,
            realisations: None,
            substitutes: None,
            maintenance: None,
            sessions: None,
            description: None,
            real_dir: None,
        }
    }

    /// The store for one client of a server: the same where nothing is kept for each.
    pub fn session(&self, log: Arc<dyn LogSink>) -> Abilities {
        match &self.sessions {
            Some(sessions) => sessions.session(log),
            None => self.clone(),
        }
    }

    /// The outputs of the derivation `drv`, with the paths that the store knows or, if it does not keep
    /// track of them, that can be told from the derivation and realisations.
    pub async fn output_map(
        &self,
        drv: &StorePath,
    ) -> Result<BTreeMap<OutputName, Option<StorePath>>> {
        match &self.graph {
            Some(graph) => graph.output_map(drv).await,
            None => derivation::output_map(&*self.store, drv, self.realisations.as_deref()).await,
        }
    }

    /// The error that this store cannot do `what`, the end of a sentence: `does not build`.
    pub fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            store: self.store.to_string(),
            what: what.to_owned(),
        }
    }
}
