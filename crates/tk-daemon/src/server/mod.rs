//! Any store behind the worker protocol, for Nix and for every other client of it.
//!
//! ```no_run
//! # async fn example(store: tk_store::Abilities) -> tk_store::Result<()> {
//! use tk_daemon::server::{Server, ServerConfig, bind};
//!
//! let server = Server::new(store, ServerConfig::default());
//! // The second takes the socket away at the end, unless it is another server's by then.
//! let (listener, _socket) = bind("/run/store.socket".as_ref(), 0o666).await?;
//! server.listen(vec![listener], std::future::pending()).await;
//! # Ok(()) }
//! ```
//!
//! Each connection is a thread that works on one request after the other (and a task where there are no more
//! threads). An operation that the
//! store cannot do, or that fails, is answered with an error, and the connection goes on. It ends
//! when the client breaks the protocol, or when data fails that was announced already.
//!
//! | | |
//! |---|---|
//! | no root is ever collected | stores without [`Roots`](tk_store::Roots) take temporary and indirect roots, and forget them |
//! | what is missing is fetched first | where the store can ([`Substitute`](tk_store::Substitute)); else no path is substitutable |
//! | nothing is built | unless the store [builds](tk_store::Build); outputs that are there need no building |
//!
//! # Security
//! - [`TrustRule`] decides by the credentials of the socket who is trusted. Everybody else cannot
//!   add paths without the signatures that the policy demands, cannot mark them as built here, and
//!   cannot repair, add build logs or make roots elsewhere than through links of their own.
//! - Requests are read within [`Limits`], and of large ones only a few at once. Data is never held as a whole.
//! - Places, large requests and the reading of NARs are shared out by user, and those who are trusted have their
//!   own: nobody who is silent, slow or greedy keeps others out. A connection that has kept the server waiting for
//!   [`ServerConfig::idle_limit`] ends when somebody waits for its place, and only then.
//! - A client that goes away ends what it asked for, and with it the locks of the store and its temporary roots.

mod activity;
mod adding;
mod building;
mod clients;
mod context;
mod events;
mod listen;
mod observe;
mod queries;
mod session;
mod settings;
mod signatures;
mod socket;
mod spool;
mod trust;
mod turns;
mod watch;

pub use crate::wire::Limits;
pub use listen::{SocketFile, bind};
pub use observe::{Observer, ServerEvent};
pub use trust::{SocketPeer, TrustRule};

use crate::worker::{Features, Trust, features};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tk_narinfo::{Policy, TrustedKeys};
use tk_store::{Abilities, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use turns::Turns;

/// What a server does beyond what its store can.
#[derive(Clone)]
#[non_exhaustive]
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
    /// Connections at once of clients who are trusted, and as many of others; more wait until one ends. One
    /// user who is not trusted gets three quarters of them at most.
    pub max_connections: usize,
    /// NARs that are read from the store at once for those who are trusted, and as many for others. To read
    /// one takes up to 200 descriptors.
    pub max_nars: usize,
    /// How long a client has for the handshake. After that it may be silent as long as nobody wants its place.
    pub handshake_timeout: Duration,
    /// How long a client has to send a request to its end, without the data that follows it, and to take a large
    /// answer.
    pub request_timeout: Duration,
    /// Who has kept the server waiting for so long makes room for those who wait for a place.
    pub idle_limit: Duration,
    /// How long running requests have when the server stops.
    pub grace: Duration,
    /// Where plain files larger than 1 MiB are kept until their length is known.
    pub spool: PathBuf,
    /// How large the requests of one connection may be, without the data that they carry.
    pub limits: Limits,
    /// Is told of connections and operations as they begin and end; by default nobody is.
    pub observer: Arc<dyn Observer>,
}

impl Default for ServerConfig {
    /// Trusts the own user only, and no key.
    fn default() -> Self {
        ServerConfig {
            trust: TrustRule::owner(),
            policy: Arc::new(Policy::new(TrustedKeys::default())),
            name: concat!("tk-store ", env!("CARGO_PKG_VERSION")).to_owned(),
            features: [features::REALISATION_WITH_PATH].into_iter().collect(),
            max_connections: 256,
            max_nars: 8,
            handshake_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(120),
            idle_limit: Duration::from_secs(60),
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
    /// The turns at reading NARs from the store; [`ServerConfig::max_nars`] says how many there are.
    nars: Arc<Turns>,
    /// At sending large requests.
    large: Arc<Turns>,
}

impl Server {
    /// A server of this store.
    pub fn new(abilities: Abilities, config: ServerConfig) -> Self {
        Server {
            abilities,
            nars: Turns::new(config.max_nars),
            large: Turns::new(LARGE_REQUESTS),
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
        self.serve_until(reader, writer, trust, None, stopping)
            .await
    }
}

/// Enough to ask for 200,000 paths at once with long names.
const LIMITS: Limits = Limits {
    string: 8 << 20,
    message: 96 << 20,
};
/// Requests of more than 256 KiB that are in memory at once, of those who are
/// trusted, and as many of others.
const LARGE_REQUESTS: usize = 4;
