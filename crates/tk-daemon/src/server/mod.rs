//! Any store behind the worker protocol, for Nix and for every other client of it.
//!
//! ```no_run
//! # async fn example(store: tk_store::Abilities) -> tk_store::Result<()> {
//! use tk_daemon::server::{Server, ServerConfig, bind};
//!
//! let server = Server::new(store, ServerConfig::default());
//! let listener = bind("/run/store.socket".as_ref(), 0o666).await?;
//! server.listen(vec![listener], std::future::pending()).await;
//! # Ok(()) }
//! ```
//!
//! Each connection is a task that works on one request after the other. An operation that the
//! store cannot do, or that fails, is answered with an error, and the connection goes on. It ends
//! when the client breaks the protocol, or when data fails that was announced already.
//!
//! | | |
//! |---|---|
//! | no root is ever collected | stores without [`Roots`](tk_store::Roots) take temporary and indirect roots, and forget them |
//! | nothing is fetched | no path is substitutable; what is not there has to be built |
//! | nothing is built | unless the store [builds](tk_store::Build); outputs that are there need no building |
//!
//! # Security
//! - [`TrustRule`] decides by the credentials of the socket who is trusted. Everybody else cannot
//!   add paths without the signatures that the policy demands, cannot mark them as built here, and
//!   cannot repair, add build logs or make roots elsewhere than through links of their own.
//! - Requests are read within [`Limits`], data is never held as a whole, connections are counted.
//! - A client that goes away ends what it asked for, and with it the locks of the store.

mod adding;
mod building;
mod context;
mod events;
mod listen;
mod observe;
mod queries;
mod session;
mod spool;
mod trust;
mod watch;

pub use listen::bind;
pub use observe::{Observer, ServerEvent};
pub use trust::{Peer, TrustRule};

use crate::{
    wire::Limits,
    worker::{Features, Trust, features},
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tk_narinfo::{Policy, TrustedKeys};
use tk_store::{Abilities, Result};
use tokio::io::{AsyncRead, AsyncWrite};

/// What a server does beyond what its store can.
#[derive(Clone)]
pub struct ServerConfig {
    /// Who is trusted among those that come through a socket.
    pub trust: TrustRule,
    /// What is demanded of the paths that others add, or that are added without
    /// `--no-check-sigs`.
    pub policy: Arc<Policy>,
    /// What the server calls itself in the handshake, where Nix says its version.
    pub name: String,
    /// What is offered beside the version.
    pub features: Features,
    /// Connections at once; more wait until one ends.
    pub max_connections: usize,
    /// How long a client has for the handshake. After that it may be silent as long as it likes.
    pub handshake_timeout: Duration,
    /// How long running requests have when the server stops.
    pub grace: Duration,
    /// Where plain files larger than 1 MiB are kept until their length is known.
    pub spool: PathBuf,
    /// How large the requests of one connection may be, without the data that they carry.
    pub limits: Limits,
    /// Takes what happens.
    pub observer: Arc<dyn Observer>,
}

impl Default for ServerConfig {
    /// Trusts the own user only, and no key.
    fn default() -> Self {
        ServerConfig {
            trust: TrustRule::owner(),
            policy: Arc::new(Policy {
                keys: TrustedKeys::default(),
                threshold: 1,
            }),
            name: concat!("tk-store ", env!("CARGO_PKG_VERSION")).to_owned(),
            features: [features::REALISATION_WITH_PATH].into_iter().collect(),
            max_connections: 256,
            handshake_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            spool: "/tmp".into(),
            limits: LIMITS,
            observer: Arc::new(()),
        }
    }
}

/// Serves a store. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    pub(crate) abilities: Abilities,
    pub(crate) config: Arc<ServerConfig>,
}

impl Server {
    /// A server of this store.
    pub fn new(abilities: Abilities, config: ServerConfig) -> Self {
        Server {
            abilities,
            config: Arc::new(config),
        }
    }

    /// Serves one client until it closes the connection.
    ///
    /// # Errors
    /// When the client breaks the protocol or the connection fails.
    pub async fn serve<R, W>(&self, reader: R, writer: W, trust: Trust) -> Result<()>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        // Never told to stop.
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        self.serve_until(reader, writer, trust, (1, None), stopping)
            .await
    }

    /// As [`Server::serve`], until `stop` is done: then the running request has
    /// [`ServerConfig::grace`].
    pub async fn serve_with_stop<R, W>(
        &self,
        reader: R,
        writer: W,
        trust: Trust,
        stop: impl Future<Output = ()>,
    ) -> Result<()>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let (stopped, stopping) = tokio::sync::watch::channel(false);
        let serve = self.serve_until(reader, writer, trust, (1, None), stopping);
        tokio::pin!(serve);
        tokio::select! {
            ended = &mut serve => return ended,
            () = stop => drop(stopped.send(true)),
        }
        let ended = tokio::time::timeout(self.config.grace, serve).await;
        ended.unwrap_or(Ok(()))
    }
}

/// Enough to ask for 50,000 paths at once; less than clients take, since everybody can connect.
const LIMITS: Limits = Limits {
    string: 8 << 20,
    message: 16 << 20,
};
