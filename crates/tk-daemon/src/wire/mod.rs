//! The encoding that the worker and the serve protocol share.
//!
//! ```text
//! integer = 8 bytes, little endian; a smaller type refuses what it cannot hold
//! bool    = integer: 0 is false, everything else true; written as 0 or 1
//! string  = integer length, bytes, zeros up to a multiple of 8
//! list    = integer count, items          set = list, written sorted by bytes
//! map     = integer count, (key, value)*  written sorted by key
//! tuple   = its parts, one after another
//! framed  = ( integer length > 0, bytes without padding )* integer 0
//! ```
//!
//! | Value | As |
//! |---|---|
//! | time | integer, seconds since 1970, at most 2^63 - 1 |
//! | store path | string with the store directory in front; not necessarily clean when read |
//! | optional store path, content address | string; empty is absent |
//! | content address | `text:...` or `fixed:...` |
//! | signature | `name:base64` |
//! | output name, derived path | see [`values`](crate::values) |
//!
//! [`WireReader`] and [`Writer`] know what a [`Protocol`] is at: its version, its features, its store
//! directory. [`Encode`] and [`Decode`] are the one encoder and the one decoder of each type.
//!
//! # Security
//! The peer may be hostile. A [`WireReader`] enforces, before it allocates anything:
//!
//! | Limit | What for |
//! |---|---|
//! | [`Limits::string`] | the length of one string |
//! | [`Limits::message`] | what one message takes in memory: the bytes of its strings, and a fixed sum for every item, so that 2^60 empty strings do not pass either |
//! | named limits beside the decoders | texts that cannot be long: paths, names, log lines |
//!
//! Beyond that, memory grows only as bytes arrive. Padding that is not zero is refused, since Nix
//! does so. Nothing here limits time: whoever waits for a peer sets a timeout.

mod error;
mod foreign;
mod framed;
pub(crate) mod handshake;
mod nar;
mod read;
mod request;
mod write;

pub use error::WireError;
pub(crate) use foreign::begins_with;
pub use framed::{FRAME_END, FramedRead, MAX_FRAME, frames};
pub use handshake::{HandshakeError, Version};
pub use nar::NarRead;
pub(crate) use read::{Admission, Admitted, ITEM_COST};
pub use read::{CUT, Limits, WireReader};
pub use request::{Data, Operation, Request, Since};
pub(crate) use request::{by_version, field_by_field, operations, requests};
pub use write::Writer;

use std::{fmt::Debug, future::Future};
use tk_path::StoreDir;
use tokio::io::AsyncRead;

/// What both ends of a connection agreed on, as far as it decides how values are written.
pub trait Protocol: Clone + Debug + Send + Sync + 'static {
    /// Its name in errors: `worker`.
    const NAME: &'static str;

    /// The number that a server begins a connection with.
    const SERVER_MAGIC: u64;

    /// What can be asked.
    type Op: Operation<Self>;

    /// Whether there is what came then, going by what was agreed on.
    fn supports(&self, since: Since) -> bool;

    /// The directory of all store paths on the wire.
    fn store_dir(&self) -> &StoreDir;

    /// The version for error messages: `worker protocol 1.38`.
    fn describe(&self) -> String;

    /// Whether realisations have the form of Nix 2.35: keyed by the path of the derivation, without
    /// JSON.
    fn has_build_trace(&self) -> bool;
}

/// A value that can be written in protocol `P`.
pub trait Encode<P> {
    /// Appends the value.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] if the protocol at this version cannot say it. What was written
    /// by then is to be dropped; [`Writer::value`] does so.
    fn encode(&self, to: &mut Writer<P>) -> Result<(), WireError>;
}

/// A value that can be read in protocol `P`.
pub trait Decode<P>: Sized + Send {
    /// Takes the value off the front of `from`. After an error the reader is somewhere in the
    /// middle, and the connection of no use any more.
    fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, P>,
    ) -> impl Future<Output = Result<Self, WireError>> + Send;
}
