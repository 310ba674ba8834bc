//! How trees are dumped and unpacked.

use std::num::NonZeroUsize;

use super::{CaseHack, default_threads};

/// How to dump a tree.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DumpOptions {
    /// Whether to cut off the case hack's suffix. Default: off.
    pub case_hack: CaseHack,
    /// Threads that read ahead. Default: one a core, at most four. A tree that fits in one chunk starts none.
    pub threads: NonZeroUsize,
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self {
            case_hack: CaseHack::Off,
            threads: default_threads(),
        }
    }
}

/// How to unpack an archive.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnpackOptions {
    /// Whether to tell names apart that differ only in case. Default: off.
    pub case_hack: CaseHack,
    /// Modes and times. Default: canonical.
    pub metadata: UnpackMetadata,
    /// Threads that create files. Default: one a core, at most four. A small tree starts none.
    pub threads: NonZeroUsize,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self {
            case_hack: CaseHack::Off,
            metadata: UnpackMetadata::Canonical,
            threads: default_threads(),
        }
    }
}

/// Which modes and times unpacked files get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnpackMetadata {
    /// As in a Nix store: files 0444 or 0555, directories 0555, modification time 1 on everything.
    Canonical,
    /// As `nix-store --restore`: the process's umask decides (that command sets its own to 022), times are now;
    /// executables are executable for everybody.
    Plain,
}
