//! The languages that Nix's daemon speaks, from both ends: the worker protocol (`unix://`,
//! `ssh-ng://`) and the serve protocol (`ssh://`), as messages, clients, stores and servers.
//!
//! | | |
//! |---|---|
//! | [`DaemonStore`] | a daemon as a store, over any transport: [`UnixTransport`], [`ssh`] |
//! | [`serve`] | the same with the older serve protocol, and its server |
//! | [`server`] | any store behind the worker protocol, for Nix and for all other clients |
//! | [`client`] | ways to a daemon, and the tails of the logs of its builds |
//!
//! ```no_run
//! use std::sync::Arc;
//! use tk_daemon::{DaemonConfig, DaemonStore, UnixTransport};
//! use tk_store::StoreExt;
//! # async fn example(path: tk_path::StorePath) -> tk_store::Result<()> {
//! let socket = "/nix/var/nix/daemon-socket/socket";
//! let config = DaemonConfig::new(format!("unix://{socket}"));
//! let daemon = DaemonStore::new(Arc::new(UnixTransport::new(socket)), config);
//! println!("Nix {:?}", daemon.server_info().await?.nix_version);
//! println!("it has the path: {}", daemon.info(&path).await?.is_some());
//! # Ok(()) }
//! ```
//!
//! # Security
//! What the other side sends is read within limits: a length or a count that it claims costs nothing.
//! Texts may hold anything: who shows them calls [`tk_store::log::escape_controls`]. A NAR that comes out of a
//! daemon is checked by the store that takes it.
//!
//! Nothing here prints, reads the environment or starts a runtime.

pub mod client;
pub mod serve;
pub mod server;
pub mod ssh;
mod store;
mod unix;
#[doc(hidden)]
pub mod values;
#[doc(hidden)]
pub mod wire;
#[doc(hidden)]
pub mod worker;

pub use store::{DaemonConfig, DaemonStore, ServerInfo};
pub use unix::UnixTransport;
pub use worker::{Features, Trust, Version};
