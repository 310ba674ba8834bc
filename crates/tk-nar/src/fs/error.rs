//! Why a tree could not be dumped or unpacked.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::error::NarError;

/// Why a tree could not be dumped. Names the file at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The file system refused.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The action that failed, such as `open` or `list`.
        doing: &'static str,
        /// The path that it was tried on; empty if there is none.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file got longer, shorter or replaced while it was read.
    #[error("{} changed while it was being read", .path.display())]
    Changed {
        /// The file that changed.
        path: PathBuf,
    },
    /// Archives hold regular files, directories and symlinks only.
    #[error("{} is {kind}; only regular files, directories and symlinks can be archived", .path.display())]
    Unsupported {
        /// The file that cannot be archived.
        path: PathBuf,
        /// What the file is instead, such as `a socket`.
        kind: &'static str,
    },
    /// More than 64 nodes inside each other.
    #[error("{} is nested more than 64 deep", .path.display())]
    TooDeep {
        /// The directory that is too deep.
        path: PathBuf,
    },
    /// A symlink no archive can hold.
    #[error("the target of the link {} {why}", .path.display())]
    Target {
        /// The path of the symlink itself.
        path: PathBuf,
        /// What is wrong with its target.
        why: &'static str,
    },
    /// Two names of a directory are the same without the case hack's suffix.
    #[error("in {}, '{}' and '{}' are the same name once the case hack's suffix is cut off", .path.display(), .first.escape_ascii(), .second.escape_ascii())]
    CaseCollision {
        /// The directory that holds both names.
        path: PathBuf,
        /// One of the two names as they are on disk.
        first: Vec<u8>,
        /// The other name as it is on disk.
        second: Vec<u8>,
    },
    /// Nothing is left of a name once the case hack's suffix is cut off.
    #[error("nothing is left of the name of {} once the case hack's suffix is cut off", .path.display())]
    EmptyName {
        /// The file whose name is empty in the archive.
        path: PathBuf,
    },
    /// A reading thread ended unexpectedly.
    #[error("a thread that read the tree failed")]
    Thread,
    /// The archive could not be written to where [`dump`](super::dump()) was to write it.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

impl DumpError {
    pub(super) fn io(doing: &'static str, path: PathBuf, error: Errno) -> Self {
        DumpError::Io {
            doing,
            path,
            source: error.into(),
        }
    }
}

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The archive is malformed or could not be read.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// Nothing is ever overwritten.
    #[error("{} exists already; unpacking makes it anew", .path.display())]
    Exists {
        /// The destination that was there already.
        path: PathBuf,
    },
    /// The file system refused: disk full, no permission, and so on.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The action that failed, such as `create the link`.
        doing: &'static str,
        /// The path that it was tried on.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A name equals the one that the case hack gave to another entry.
    #[error("{} collides with a name made by the case hack", .path.display())]
    CaseCollision {
        /// The path of the entry whose name is taken.
        path: PathBuf,
    },
    /// Unpacking failed before and was continued, or one of its threads died.
    #[error("unpacking failed before")]
    Failed,
}

impl UnpackError {
    pub(super) fn io(doing: &'static str, path: PathBuf, error: Errno) -> Self {
        UnpackError::Io {
            doing,
            path,
            source: error.into(),
        }
    }
}
