use crate::{
    client::{ConnectionPool, DaemonLease, Transport},
    store::infos::Infos,
    wire::Request,
    worker::{
        Features, LATEST, Trust, Version, WorkerProtocol,
        ops::{IsValidPath, QueryPathFromHashPart, QueryValidPaths, SetOptions},
    },
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tk_nar::fs::{CaseHack, DumpOptions};
use tk_narinfo::PathInfo;
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{
    Abilities, AddItems, AddOptions, AddReport, Describe, Error, NarStream, Result, Store,
    StoreDescription, log::LogSink, nar,
};

mod add;
mod build;
mod connect;
mod content;
mod graph;
mod infos;
mod logs;
mod maintain;
mod realisations;
mod roots;
mod sessions;
mod substitute;

/// A store behind a daemon that speaks the worker protocol, whatever the way to it.
///
/// Opens connections as they are needed. Metadata is asked for ahead of the answers, so that no
/// path waits for a round trip of its own.
pub struct DaemonStore {
    config: Arc<DaemonConfig>,
    transport: Arc<dyn Transport>,
    pool: Arc<ConnectionPool<WorkerProtocol>>,
    temp_roots: Arc<roots::DaemonTempRoots>,
}

/// How a daemon is talked to.
#[derive(Clone)]
#[non_exhaustive]
pub struct DaemonConfig {
    /// The store's canonical URI, for `Display` and errors.
    pub uri: String,
    /// The store directory, which the protocol does not tell; `/nix/store` by default.
    pub dir: StoreDir,
    /// Connections that are open at once, beside one for temporary roots.
    pub max_connections: usize,
    /// Connections over which one `add` sends at once, as far as they are free. A daemon hashes and
    /// unpacks with one thread a connection; over a network one connection fills the line.
    pub upload_connections: usize,
    /// After so long a connection is not used again.
    pub max_connection_age: Duration,
    /// How long connecting may take; `None` is for ever.
    pub connect_timeout: Option<Duration>,
    /// How long the daemon may be silent in the middle of a question, or take nothing of what it
    /// is sent; `None` is for ever. Builds and the like are exempt.
    pub timeout: Option<Duration>,
    /// Where the store's files can be read without the daemon.
    pub real: Option<PathBuf>,
    /// Where the daemon's build logs can be read.
    pub log_dir: Option<PathBuf>,
    /// Told to the daemon on each connection. `None`: it works by its own configuration.
    pub settings: Option<SetOptions>,
    /// The newest version of the protocol that is spoken.
    pub version: Version,
    /// Offered to the daemon.
    pub features: Features,
    /// Takes what the daemon says outside of builds.
    pub log: Arc<dyn LogSink>,
}

impl DaemonConfig {
    /// The daemon of the store `uri`, with `/nix/store` and no files at hand.
    pub fn new(uri: impl Into<String>) -> Self {
        DaemonConfig {
            uri: uri.into(),
            dir: StoreDir::default(),
            max_connections: 4,
            upload_connections: 1,
            max_connection_age: Duration::MAX,
            connect_timeout: Some(Duration::from_secs(30)),
            timeout: Some(Duration::from_secs(300)),
            real: None,
            log_dir: None,
            settings: None,
            version: LATEST,
            features: Features::all(),
            log: Arc::new(()),
        }
    }
}

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// The version of its Nix, if it tells (since 2.4).
    pub nix_version: Option<String>,
    /// The version of the protocol that both speak.
    pub version: Version,
    /// The features that both have.
    pub features: Features,
    /// Whether it trusts us, if it tells (since 2.15).
    pub trust: Option<Trust>,
    /// How long the shortest question took.
    pub latency: Duration,
}

#[async_trait]
impl Describe for DaemonStore {
    async fn describe(&self) -> Result<StoreDescription> {
        let said = self.server_info().await?;
        Ok(StoreDescription {
            version: said.nix_version,
            protocol: Some(format!("worker {}", said.version)),
            features: Some(said.features.iter().map(str::to_owned).collect()),
            trusted: said.trust.map(|trust| trust == Trust::Trusted),
            latency: Some(said.latency),
            ..StoreDescription::of("daemon")
        })
    }
}

impl DaemonStore {
    /// The store that `transport` leads to. Connects when it is first asked something.
    pub fn new(transport: Arc<dyn Transport>, config: DaemonConfig) -> Self {
        DaemonStore::with_roots(transport, config, Arc::default())
    }

    fn with_roots(
        transport: Arc<dyn Transport>,
        config: DaemonConfig,
        temp_roots: Arc<roots::DaemonTempRoots>,
    ) -> Self {
        let config = Arc::new(config);
        let (connections, age) = (config.max_connections, config.max_connection_age);
        DaemonStore {
            pool: ConnectionPool::new(transport.clone(), config.clone(), connections, age),
            transport,
            temp_roots,
            config,
        }
    }

    /// How it is talked to.
    pub fn config(&self) -> &DaemonConfig {
        &self.config
    }

    /// Lends a connection, for what has no method here.
    #[doc(hidden)]
    pub async fn connection(&self) -> Result<DaemonLease> {
        self.pool.get().await
    }

    /// Asks the daemon one thing; every operation that carries no data can be asked like this.
    #[doc(hidden)]
    pub async fn call<Q: Request<WorkerProtocol>>(&self, request: &Q) -> Result<Q::Reply> {
        self.call_logged(request, self.log()).await
    }

    /// As [`DaemonStore::call`], with what the daemon says meanwhile.
    pub(crate) async fn call_logged<Q: Request<WorkerProtocol>>(
        &self,
        request: &Q,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        self.pool.get().await?.call(request, log).await
    }

    /// Who the daemon is, and how far away.
    pub async fn server_info(&self) -> Result<ServerInfo> {
        let mut connection = self.pool.get().await?;
        // The first answer brings that to the options with it.
        let nothing = QueryValidPaths {
            paths: BTreeSet::new(),
            substitute: false,
        };
        connection.call(&nothing, self.log()).await?;
        let asked = Instant::now();
        connection.call(&nothing, self.log()).await?;
        let latency = asked.elapsed();
        let (hello, protocol) = (connection.hello(), connection.protocol());
        Ok(ServerInfo {
            nix_version: hello.nix_version.clone(),
            version: protocol.version,
            features: protocol.features.clone(),
            trust: hello.trust,
            latency,
        })
    }

    /// The store with all it can do.
    pub fn abilities(self: Arc<Self>) -> Abilities {
        Abilities {
            content: Some(self.clone()),
            signatures: Some(self.clone()),
            build: Some(self.clone()),
            roots: Some(self.clone()),
            gc: Some(self.clone()),
            graph: Some(self.clone()),
            logs: Some(self.clone()),
            realisations: Some(self.clone()),
            substitutes: Some(self.clone()),
            maintenance: Some(self.clone()),
            sessions: Some(self.clone()),
            description: Some(self.clone()),
            real_dir: self.config.real.clone(),
            store: self,
        }
    }

    fn log(&self) -> &dyn LogSink {
        &*self.config.log
    }

    fn not_found(&self, path: &StorePath) -> Error {
        Error::NotFound {
            path: path.clone(),
            store: self.to_string(),
        }
    }

    fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported {
            store: self.to_string(),
            what: what.into(),
        }
    }

    /// `error`, or that `path` is absent, if it is a refusal of something that needs the path.
    async fn or_not_found(&self, error: Error, path: &StorePath) -> Error {
        if !matches!(error, Error::Refused { .. }) {
            return error;
        }
        match self.call(&IsValidPath { path: path.clone() }).await {
            Ok(false) => self.not_found(path),
            _ => error,
        }
    }

    /// As [`DaemonStore::or_not_found`] for each of `results`, with one question for all.
    async fn tell_absent(&self, results: &mut [(StorePath, Result<()>)]) {
        let refused = |result: &Result<()>| matches!(result, Err(Error::Refused { .. }));
        let paths = results.iter().filter(|(_, result)| refused(result));
        let paths: BTreeSet<_> = paths.map(|(path, _)| path.clone()).collect();
        if paths.is_empty() {
            return;
        }
        // What cannot be asked keeps the daemon's own words.
        let Ok(valid) = self.valid(&paths).await else {
            return;
        };
        for (path, result) in results {
            if paths.contains(path) && !valid.contains(path) {
                *result = Err(self.not_found(path));
            }
        }
    }

    /// Where the content of `path` can be read without the daemon, if it can.
    async fn file(&self, path: &StorePath) -> Option<PathBuf> {
        let file = self.config.real.as_ref()?.join(path.as_str());
        let there = tokio::fs::symlink_metadata(&file).await.is_ok();
        there.then_some(file)
    }
}

#[async_trait]
impl Store for DaemonStore {
    fn dir(&self) -> &StoreDir {
        &self.config.dir
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        if paths.is_empty() {
            return Ok(BTreeSet::new());
        }
        let request = QueryValidPaths {
            paths: paths.clone(),
            substitute: false,
        };
        let mut valid = self.call(&request).await?;
        // A daemon that names what nobody asked about is not believed.
        valid.retain(|path| paths.contains(path));
        Ok(valid)
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        Box::pin(Infos::new(self, paths))
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        if self.config.real.is_some() {
            if !self.call(&IsValidPath { path: path.clone() }).await? {
                return Err(self.not_found(path));
            }
            if let Some(file) = self.file(path).await {
                let mut options = DumpOptions::default();
                options.case_hack = CaseHack::Off;
                return Ok(nar::dump(file, options));
            }
        }
        let lease = self.pool.get().await?;
        let nar = lease.nar(path, self.log()).await?;
        nar.ok_or_else(|| self.not_found(path))
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        add::add(self, items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let request = QueryPathFromHashPart { part: *part };
        let found = self.call(&request).await?;
        Ok(found.filter(|path| path.hash_part() == part.as_str()))
    }
}

impl fmt::Display for DaemonStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.config.uri)
    }
}

impl fmt::Debug for DaemonStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonStore")
            .field("uri", &self.config.uri)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DaemonConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonConfig")
            .field("uri", &self.uri)
            .field("dir", &self.dir)
            .field("max_connections", &self.max_connections)
            .field("real", &self.real)
            .finish_non_exhaustive()
    }
}
