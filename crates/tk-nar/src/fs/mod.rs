//! Trees on disk: dump them as archives, unpack archives as trees.
//!
//! All names are opened relative to an open directory and never through a symlink, so that a tree that changes under
//! the walk cannot lead it elsewhere.

mod block;
mod descriptors;
mod dump;
mod encode_batch;
mod error;
mod link;
mod make;
mod names;
mod options;
mod pool;
mod remove;
mod unpack;
mod unpack_tree;
mod walk;

pub use block::Chunk;
pub use descriptors::{descriptors, trees_at_once};
pub use dump::{Dump, dump};
pub use error::{DumpError, UnpackError};
pub use link::replace_link;
pub use options::{DumpOptions, UnpackMetadata, UnpackOptions};
pub use remove::{remove_tree, remove_tree_counted};
pub use unpack::{Unpacker, unpack, unpack_from};

use std::num::NonZeroUsize;

/// Whether names that differ only in the case of ASCII letters are told apart by a suffix, as Nix does on file systems
/// that ignore case (the default on macOS).
///
/// Unpacking appends `~nix~case~hack~N` to the second and further such names of a directory; dumping cuts it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CaseHack {
    /// Names stay as they are.
    #[default]
    Off,
    /// Names get and lose the suffix. Takes memory for the names of the open directories.
    On,
}

pub(crate) const CASE_HACK_SUFFIX: &[u8] = b"~nix~case~hack~";

/// One thread a core, but no more than four: more only wait for each other inside the kernel.
fn default_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    cores.min(NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN))
}
