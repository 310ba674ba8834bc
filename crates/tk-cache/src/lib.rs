//! Nix binary caches: their layout, caches in folders, and compression.
//!
//! [`FolderCache`] is a [`Store`](tk_store::Store) for `file://` caches, which Nix reads and
//! writes too. [`compress`] has the encoders and decoders of NARs, [`layout`] the names of what is
//! in a cache; both are of use without a folder.

mod add;
pub mod compress;
#[cfg(feature = "disk-cache")]
pub mod disk_cache;
mod folder;
pub mod journal;
pub mod layout;
pub mod objects;

pub use folder::{FolderCache, FolderConfig};
