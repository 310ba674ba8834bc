//! The serve protocol: what clients and `nix-store --serve` say to each other (`ssh://`).
//!
//! A connection begins with a [`handshake`]. Then the client sends [`commands`], each a number and its
//! arguments, and the server replies. There is no log: that goes to the server's stderr, and an error
//! outside of a build ends the connection. So does the end of input, between two commands.
//! The encoding is that of [`wire`](crate::wire), the values are those of [`values`](crate::values) and
//! these, which depend on the version:
//!
//! | Type | Layout |
//! |---|---|
//! | [`ServePathInfo`] | optional deriver, set of references, download size (the NAR size again; readers ignore it), NAR size; from 2.4 on: NAR hash as `sha256:<nix32>` or empty, optional content address, set of signatures |
//! | [`ServeBuildOptions`] | max silent time, build timeout; from 2.2 on max log size; from 2.3 on number of repeats, bool enforce determinism; from 2.7 on bool keep failed |
//! | [`BuildResult`](tk_narinfo::build_result::BuildResult) | status, error; from 2.3 on times built, bool not deterministic, start, stop; from 2.6 on outputs |
//! | [`DerivedPath`](tk_path::DerivedPath) | the older form |
//! | realisations | from 2.8 on the new form |
//! | [`ExportTrailer`] | `0x4558494e`, path, set of references, optional deriver, 0 (or 1 and a string that is ignored) |
//!
//! Note the NAR hash: nix32 with prefix here, hex without in
//! [`AddToStoreNar`](commands::AddToStoreNar).
//!
//! **Versions.** Nix speaks 2.8 since 2.35, 2.7 since 2.4, 2.5 before; 2.5 is the least that clients
//! take. The layouts here go back to 2.1.

#[doc(hidden)]
pub mod commands;
#[doc(hidden)]
pub mod handshake;
mod server;
mod store;
mod values;

#[doc(hidden)]
pub use commands::Command;
pub use server::ServeServer;
pub use store::{ServeConfig, ServeInfo, ServeStore};
pub use values::ServeBuildOptions;
#[doc(hidden)]
pub use values::{ExportTrailer, ServePathInfo};

use crate::wire::{Protocol, Since};
use tk_path::StoreDir;

/// What a connection speaks: decides the layout of every value on it.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// The directory of all store paths.
    pub dir: StoreDir,
    /// The version is 2 and this.
    pub minor: u8,
}

impl Serve {
    /// A connection at version 2.`minor`.
    pub fn new(dir: StoreDir, minor: u8) -> Self {
        Serve { dir, minor }
    }

    /// Whether the version is 2.`minor` or later.
    pub fn at_least(&self, minor: u8) -> bool {
        self.minor >= minor
    }
}

impl Protocol for Serve {
    const NAME: &'static str = "serve";
    const SERVER_MAGIC: u64 = 0x5452_eecb;
    type Op = Command;

    fn supports(&self, since: Since) -> bool {
        matches!(since, Since::Minor(minor) if self.at_least(minor))
    }

    fn store_dir(&self) -> &StoreDir {
        &self.dir
    }

    fn describe(&self) -> String {
        format!("serve protocol 2.{}", self.minor)
    }

    fn has_build_trace(&self) -> bool {
        self.at_least(8)
    }
}

/// The newest minor version.
#[doc(hidden)]
pub const LATEST: u8 = 8;

/// The oldest minor version that connections are made with.
pub(crate) const MINIMUM: u8 = 5;
