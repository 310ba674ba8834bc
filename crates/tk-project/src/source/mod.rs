//! The sources of inputs as trees, read without running anything of theirs.
//!
//! # Security
//! Nothing is unpacked to disk: an archive is spooled to one file without a name, and its entries are looked up there.
//! Git is run to read objects and names, never to fetch, and nothing that the configuration of a repository names is
//! run: no filter, hook or monitor. Repositories that git takes for somebody else's are not read.

mod archive;
mod git;
mod git_stand_in;
mod hash;
mod sparse;
mod tree;
mod work_tree;

pub(crate) use archive::{ArchiveTree, SingleFolder};
pub(crate) use git::{GitCheckout, GitRevision, Submodules};
pub(crate) use hash::{flat_hash, flat_hash_of, folder_hash};
pub(crate) use work_tree::WorkTree;

use std::{fs::File, io, path::Path};

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputSourceError {
    /// It is not here.
    #[error("{0}")]
    NotAtHand(String),
    /// It is here, but in a form that is not read here, or that Nix has no form for.
    #[error("{0}")]
    Unsupported(String),
    /// To read it failed: nothing is known of it.
    #[error("{doing}: {source}")]
    Failed {
        /// What was tried on what.
        doing: String,
        /// What the system says of it.
        source: io::Error,
    },
}

impl InputSourceError {
    pub(crate) fn failed(doing: impl Into<String>, source: io::Error) -> InputSourceError {
        let doing = doing.into();
        InputSourceError::Failed { doing, source }
    }

    /// The error of something that is not there, or that cannot be read.
    pub(crate) fn of(doing: &str, path: &Path, source: io::Error) -> InputSourceError {
        let path = path.display();
        if source.kind() == io::ErrorKind::NotFound {
            InputSourceError::NotAtHand(format!("there is no {path}"))
        } else {
            InputSourceError::failed(format!("{doing} {path}"), source)
        }
    }
}

/// A file to read; nothing else, such as a pipe, is opened.
pub(crate) fn open_file(path: &Path) -> Result<File, InputSourceError> {
    let of = |e| InputSourceError::of("reading", path, e);
    if !path.metadata().map_err(of)?.is_file() {
        let what = format!("{} is not a file", path.display());
        return Err(InputSourceError::Unsupported(what));
    }
    File::open(path).map_err(of)
}

/// The most things in a source: nixpkgs has a hundredth of it.
const MAX_ENTRIES: usize = 5_000_000;
