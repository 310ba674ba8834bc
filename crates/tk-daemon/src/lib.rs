//! The languages that Nix's daemon speaks, from both ends: the worker protocol (`unix://`,
//! `ssh-ng://`) and the serve protocol (`ssh://`), as messages, clients, stores and servers.
//!
//! Nothing here prints, reads the environment or starts a runtime.

pub mod client;
pub mod serve;
pub mod server;
pub mod ssh;
mod store;
mod unix;
pub mod values;
pub mod wire;
pub mod worker;

pub use store::{DaemonConfig, DaemonStore, ServerInfo};
pub use unix::UnixTransport;
