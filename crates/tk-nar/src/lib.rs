//! Reads, writes, lists, unpacks and indexes Nix archives (NAR): one state machine, no async runtime.
//!
//! - [`Decoder`] is the state machine; it is pushed bytes and gives [`Event`]s. [`SliceReader`], [`NarReader`],
//!   `AsyncReader` (feature `tokio`) and `StreamReader` (feature `stream`) pump it and agree on every verdict.
//! - [`Encoder`] writes archives and refuses what a decoder would.
//! - [`fs`] dumps trees as archives and unpacks archives as trees.
//! - [`Comparer`] tells where two archives differ.
//! - [`Listing`] tells what is in an archive, [`Index`] reads single members by seeking.
//!
//! # Security
//! Archives may be hostile: a malformed one gives a [`NarError`] with the byte offset, takes a small fixed amount of
//! memory, and makes nothing outside of the destination. No hash is verified here.

pub mod compare;
mod decode;
mod encode;
mod error;
pub mod fs;
pub mod grammar;
mod index;
mod listing;
mod read;

#[cfg(feature = "tokio")]
mod async_read;
#[cfg(feature = "stream")]
mod stream;

#[cfg(feature = "tokio")]
pub use async_read::AsyncReader;
pub use compare::{Comparer, Comparison, Difference, DifferenceKind, NodeType, Side};
pub use decode::{Decoder, Event, Fed, Validator};
pub use encode::{EncodeError, Encoder};
pub use error::{NarError, NarErrorKind};
pub use index::{Index, MemberError, MemberReader};
pub use listing::{Listing, ListingBuilder, ListingError, ListingNode, ListingStyle};
pub use read::{NarReader, SliceReader};
#[cfg(feature = "stream")]
pub use stream::StreamReader;
