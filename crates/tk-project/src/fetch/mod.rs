//! Sources fetched to be locked: which revision, and which content.

mod forge;
mod git;
mod local;

pub use forge::{AccessTokens, DownloadedFile, HttpDownload};

use crate::{
    lock::InputAttrs,
    source::{ArchiveTree, GitRevision, InputSourceError, WorkTree, folder_hash},
};
use std::path::PathBuf;
use tk_path::StoreDir;

/// How sources are fetched.
#[non_exhaustive]
pub struct FetchOptions<'a> {
    /// A folder for temporary files. Default: `/tmp`.
    pub scratch: PathBuf,
    /// The program git. Default: that of the path.
    pub git: PathBuf,
    /// The directory of the store. Default: `/nix/store`.
    pub store_dir: StoreDir,
    /// Who loads from servers; without one, nothing is loaded.
    pub http: Option<&'a dyn HttpDownload>,
    /// What is shown to servers.
    pub tokens: AccessTokens,
}

impl Default for FetchOptions<'_> {
    fn default() -> Self {
        FetchOptions {
            scratch: "/tmp".into(),
            git: "git".into(),
            store_dir: StoreDir::default(),
            http: None,
            tokens: AccessTokens::default(),
        }
    }
}

/// A source, and what it is exactly.
pub(crate) struct FetchedInput {
    /// With its hash.
    pub(crate) locked: InputAttrs,
    pub(crate) tree: FetchedTree,
}

/// The files of a source.
pub(crate) enum FetchedTree {
    Folder(PathBuf),
    Revision(GitRevision),
    WorkTree(WorkTree),
    Archive(ArchiveTree),
    /// One file, which is no flake.
    File,
}

/// Why a source could not be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// It could not be read.
    #[error(transparent)]
    Source(#[from] InputSourceError),
    /// It is of a kind that is not locked here, or is asked for in a way that makes no sense.
    #[error("{0}")]
    Unsupported(String),
    /// It is not what the reference says.
    #[error("the {name} of {url} is {found}, not {wanted}")]
    Mismatch {
        /// The attribute that differs.
        name: &'static str,
        /// The reference as a URL.
        url: String,
        /// What was found.
        found: String,
        /// What it was to be.
        wanted: String,
    },
}

impl FetchOptions<'_> {
    /// Fetches `reference` as it is now.
    pub(crate) fn fetch(&self, reference: &InputAttrs) -> Result<FetchedInput, FetchError> {
        let mut wanted = reference.clone();
        let dir = wanted.remove("dir");
        let mut fetched = match wanted.kind() {
            "path" => self.path(&wanted)?,
            "git" => self.git(&wanted)?,
            "tarball" => self.tarball(&wanted)?,
            "file" => self.file(&wanted)?,
            "github" | "gitlab" | "sourcehut" => self.forge(&wanted)?,
            "indirect" => {
                let id = reference.text("id").unwrap_or_default();
                let what = format!(
                    "'{id}' is a name of a registry, which is not asked here: give its URL"
                );
                return Err(FetchError::Unsupported(what));
            }
            kind => {
                let what = format!("inputs of the kind '{kind}' are not locked here");
                return Err(FetchError::Unsupported(what));
            }
        };
        for name in ["narHash", "rev", "revCount", "lastModified"] {
            if let (Some(wanted), Some(found)) = (wanted.get(name), fetched.locked.get(name))
                && wanted != found
            {
                return Err(FetchError::Mismatch {
                    name,
                    url: reference.to_url(),
                    found: found.to_string(),
                    wanted: wanted.to_string(),
                });
            }
        }
        if let Some(dir) = dir {
            fetched.locked.set("dir", dir);
        }
        Ok(fetched)
    }

    /// Fetches again what is locked already; it stays as it is. What the store has is taken from there.
    pub(crate) fn fetch_locked(&self, locked: &InputAttrs) -> Result<FetchedTree, FetchError> {
        if let Some(folder) = self.in_store(locked) {
            return Ok(FetchedTree::Folder(folder));
        }
        let fetched = self.fetch(locked)?;
        Ok(fetched.tree)
    }

    /// The path in the store, if it is there with the content that is locked.
    fn in_store(&self, locked: &InputAttrs) -> Option<PathBuf> {
        let folder = PathBuf::from(self.store_dir.path(&locked.store_path(&self.store_dir)?));
        let is_it = folder.is_dir()
            && folder_hash(&folder).is_ok_and(|hash| Some(hash) == locked.nar_hash());
        is_it.then_some(folder)
    }
}

impl FetchedTree {
    /// The content of the file at `path`, of at most `max` bytes; `None` if there is none.
    pub(crate) fn read(
        &mut self,
        path: &str,
        max: u64,
    ) -> Result<Option<Vec<u8>>, InputSourceError> {
        match self {
            FetchedTree::Folder(folder) => local::read_below(folder, path, max),
            FetchedTree::Revision(revision) => revision.read_file(path, max),
            FetchedTree::WorkTree(tree) => tree.root.read(path, max, &mut tree.contents),
            FetchedTree::Archive(archive) => archive.read_file(path, max),
            FetchedTree::File => Ok(None),
        }
    }
}
