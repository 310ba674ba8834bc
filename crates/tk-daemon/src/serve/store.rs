//! A store behind the serve protocol (`ssh://`): the client's side.

mod add;
mod build;
mod connection;

use crate::{
    client::Transport,
    serve::{
        Serve, ServeBuildOptions,
        commands::{DumpStorePath, PathInfos, QueryClosure, QueryPathInfos, QueryValidPaths},
    },
};
use async_trait::async_trait;
use connection::ServePool;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tk_narinfo::PathInfo;
use tk_path::{ContentAddress, HashPart, StoreDir, StorePath};
use tk_store::{
    Abilities, AddItems, AddOptions, AddReport, Describe, Error, NarStream, Result, Store,
    StoreDescription, SubstitutablePathInfo, Substitute, log::LogSink,
};

/// A store behind `nix-store --serve --write`, or another server of the serve protocol.
///
/// Opens connections as they are needed. Everything is asked in batches: what a question is about
/// goes out as one command, whatever the number of paths. What the protocol has no command for
/// ([`Store::find`], who refers to a path, roots) is [`Error::Unsupported`].
///
/// # Security
/// The server takes whatever it is sent: neither signatures nor contents are checked by it in a way
/// that could be told here. So all is checked before the last bytes of a NAR are sent.
pub struct ServeStore {
    config: Arc<ServeConfig>,
    pool: Arc<ServePool>,
}

/// How a server of the serve protocol is talked to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeConfig {
    /// The store's canonical URI, for `Display` and errors.
    pub uri: String,
    /// Its store directory, which the protocol does not tell.
    pub dir: StoreDir,
    /// Connections that are open at once.
    pub max_connections: usize,
    /// How long connecting may take, with all that ssh asks the user; `None` is for ever.
    pub connect_timeout: Option<Duration>,
    /// How long the server may be silent in the middle of a question, or take nothing of what it
    /// is sent; `None` is for ever. Builds are exempt.
    pub timeout: Option<Duration>,
    /// How it is to build.
    pub build: ServeBuildOptions,
}

impl ServeConfig {
    /// The server of the store `uri`, with `/nix/store` and Nix's one connection.
    pub fn new(uri: impl Into<String>) -> Self {
        ServeConfig {
            uri: uri.into(),
            dir: StoreDir::default(),
            max_connections: 1,
            connect_timeout: Some(Duration::from_secs(120)),
            timeout: Some(Duration::from_secs(300)),
            build: ServeBuildOptions::default(),
        }
    }
}

/// What is known of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeInfo {
    /// Both speak version 2 and this of the protocol.
    pub minor: u8,
    /// How long the shortest question took.
    pub latency: Duration,
}

#[async_trait]
impl Describe for ServeStore {
    async fn describe(&self) -> Result<StoreDescription> {
        let said = self.server_info().await?;
        Ok(StoreDescription {
            protocol: Some(format!("serve 2.{}", said.minor)),
            latency: Some(said.latency),
            ..StoreDescription::of("ssh")
        })
    }
}

impl ServeStore {
    /// The store that `transport` leads to. Connects when it is first asked something.
    pub fn new(transport: Arc<dyn Transport>, config: ServeConfig) -> Self {
        let config = Arc::new(config);
        let (connections, age) = (config.max_connections, Duration::MAX);
        ServeStore {
            pool: ServePool::new(transport, config.clone(), connections, age),
            config,
        }
    }

    /// How it is talked to.
    pub fn config(&self) -> &ServeConfig {
        &self.config
    }

    /// What the server speaks, and how far away it is.
    pub async fn server_info(&self) -> Result<ServeInfo> {
        let mut connection = self.pool.get().await?;
        let asked = Instant::now();
        connection.call(&which(BTreeSet::new(), false)).await?;
        Ok(ServeInfo {
            minor: connection.protocol().minor,
            latency: asked.elapsed(),
        })
    }

    /// All that `paths` need, in one question. With `outputs`, the outputs that are there of the
    /// derivations among them count too.
    ///
    /// # Errors
    /// When a path is absent the server ends the connection, with its reason on stderr.
    #[doc(hidden)]
    pub async fn closure(
        &self,
        paths: &BTreeSet<StorePath>,
        outputs: bool,
    ) -> Result<BTreeSet<StorePath>> {
        let request = QueryClosure {
            include_outputs: outputs,
            paths: paths.clone(),
        };
        self.pool.get().await?.call(&request).await
    }

    /// The store with all it can do.
    pub fn abilities(self: Arc<Self>) -> Abilities {
        Abilities {
            build: Some(self.clone()),
            substitutes: Some(self.clone()),
            description: Some(self.clone()),
            ..Abilities::of(self)
        }
    }

    /// Asks about paths that may repeat. One answer for each, in order.
    async fn ask(&self, asked: Vec<StorePath>) -> Result<Vec<(StorePath, Option<PathInfo>)>> {
        let distinct: BTreeSet<_> = asked.iter().cloned().collect();
        let requests: Vec<_> = batches(distinct, INFOS)
            .map(|paths| QueryPathInfos { paths })
            .collect();
        let mut connection = self.pool.get().await?;
        let replies = connection.call_all(&requests).await?;
        let protocol = connection.protocol().clone();
        drop(connection);
        let mut known = BTreeMap::new();
        for (request, PathInfos(infos)) in requests.iter().zip(replies) {
            for (path, info) in infos {
                // What nobody asked about is not believed.
                if request.paths.contains(&path) {
                    let info = info.with_path(path.clone());
                    let info = info.ok_or_else(|| self.no_hash(&path, &protocol))?;
                    known.insert(path, info);
                }
            }
        }
        let answer = |path: StorePath| {
            let info = known.get(&path).cloned();
            (path, info)
        };
        Ok(asked.into_iter().map(answer).collect())
    }

    fn no_hash(&self, path: &StorePath, protocol: &Serve) -> Error {
        let minor = protocol.minor;
        Error::malformed(
            format!("what {self} says of {path}"),
            format!("there is no NAR hash in it (serve protocol 2.{minor})"),
        )
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
}

#[async_trait]
impl Store for ServeStore {
    fn dir(&self) -> &StoreDir {
        &self.config.dir
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        if paths.is_empty() {
            return Ok(BTreeSet::new());
        }
        let requests = batches(paths.clone(), VALID).map(|paths| which(paths, false));
        let requests: Vec<_> = requests.collect();
        let replies = self.pool.get().await?.call_all(&requests).await?;
        let mut valid: BTreeSet<_> = replies.into_iter().flatten().collect();
        valid.retain(|path| paths.contains(path));
        Ok(valid)
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        // A connection is held only while a wave is asked, never between two answers.
        let waves = paths.ready_chunks(WAVE).then(|wave| self.ask(wave));
        let answers = waves.map_ok(|answers| stream::iter(answers).map(Ok));
        answers.try_flatten().boxed()
    }

    /// Asks whether the path is there and for its NAR at once. A path that is absent costs the
    /// connection, since the server ends.
    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        let mut connection = self.pool.get().await?;
        connection.flight.begin();
        let asked = which(BTreeSet::from([path.clone()]), false);
        connection.output.request(&asked)?;
        let path = path.clone();
        connection
            .output
            .request(&DumpStorePath { path: path.clone() })?;
        connection.output.flush().await?;
        let valid: BTreeSet<StorePath> = connection.input.reply().await?;
        if valid.contains(&path) {
            Ok(connection.into_nar())
        } else {
            Err(self.not_found(&path))
        }
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        add::add(self, items, options).await
    }

    /// The protocol has no command for it.
    async fn find(&self, _: &HashPart) -> Result<Option<StorePath>> {
        Err(self.unsupported("cannot look for paths by their hash part (the serve protocol)"))
    }
}

/// What others have of a path cannot be asked for in this protocol.
#[async_trait]
impl Substitute for ServeStore {
    async fn valid_or_fetched(
        &self,
        paths: &BTreeSet<StorePath>,
        log: &dyn LogSink,
    ) -> Result<BTreeSet<StorePath>> {
        let request = which(paths.clone(), true);
        let mut valid = self.pool.get().await?.call_long(&request, log).await?;
        valid.retain(|path| paths.contains(path));
        Ok(valid)
    }

    async fn substitutable_paths(&self, _: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        Err(self.cannot_ask())
    }

    async fn substitutable_infos(
        &self,
        _: &BTreeMap<StorePath, Option<ContentAddress>>,
    ) -> Result<BTreeMap<StorePath, SubstitutablePathInfo>> {
        Err(self.cannot_ask())
    }
}

impl ServeStore {
    fn cannot_ask(&self) -> Error {
        Error::Unsupported {
            store: self.to_string(),
            what: "does not tell what it could fetch; use ssh-ng://".to_owned(),
        }
    }
}

impl fmt::Display for ServeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.config.uri)
    }
}

impl fmt::Debug for ServeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeStore")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// Which of `paths` are valid; nothing is fetched or kept.
fn which(paths: BTreeSet<StorePath>, substitute: bool) -> QueryValidPaths {
    QueryValidPaths {
        lock: false,
        substitute,
        paths,
    }
}

/// `paths` in sets of at most `size`.
fn batches(paths: BTreeSet<StorePath>, size: usize) -> impl Iterator<Item = BTreeSet<StorePath>> {
    let mut paths = paths.into_iter();
    std::iter::from_fn(move || {
        let batch: BTreeSet<_> = paths.by_ref().take(size).collect();
        (!batch.is_empty()).then_some(batch)
    })
}

/// Paths in one QueryValidPaths: what a server may have to hold in memory.
const VALID: usize = 20_000;
/// Paths in one QueryPathInfos.
const INFOS: usize = 1000;
/// Paths whose metadata is asked for before the first answer is handed on.
const WAVE: usize = 16 * INFOS;
