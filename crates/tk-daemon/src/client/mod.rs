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
pub use connection::Connection;
pub(crate) use connection::{ConnectionInput, ConnectionOutput, in_time};
pub use operations::WINDOW;
pub(crate) use operations::is_long;
pub(crate) use pool::{ClientProtocol, ConnectionPool};
pub use pool::{ConnectionLease, DaemonLease};
pub use transport::{Channel, Transport};

#[cfg(test)]
mod tests;
