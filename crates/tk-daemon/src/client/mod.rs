//! The client of the worker protocol: connections, what goes over them at once, and pools of them.
//!
//! # What a connection survives
//!
//! | | |
//! |---|---|
//! | the daemon refuses an operation | it is used again |
//! | a future or a stream was dropped before its end | it is closed |
//! | the daemon is silent for too long, hangs up, or says what is not in the protocol | it is closed |
//! | the data of an upload breaks off | it is closed, but for NARs with their metadata, which end on their own |

mod build_logs;
mod connection;
mod operations;
mod pool;
mod timed;
mod transport;

pub use build_logs::{BuildLogs, BuildTail};
pub(crate) use connection::{Connection, ConnectionInput, ConnectionOutput, in_time};
pub(crate) use operations::{WINDOW, is_long};
pub(crate) use pool::{ClientProtocol, ConnectionPool, DaemonLease};
pub use transport::{Channel, Transport};

#[cfg(test)]
mod tests;
