//! Looking after what a store holds: equal files are made one, and what is damaged is found and mended.

use crate::{Result, Store, log::LogSink};
use async_trait::async_trait;
use std::{fmt::Debug, sync::Arc};

/// Stores that look after themselves.
#[async_trait]
pub trait Maintain: Debug + Send + Sync {
    /// Makes equal files one.
    async fn optimise(&self, log: &dyn LogSink) -> Result<OptimiseReport>;

    /// Checks what is registered, and with `options` also what is in every file; mends what it can if it
    /// shall. What is wrong is told to `log` in Nix's words.
    async fn verify_store(
        &self,
        options: &StoreVerifyOptions,
        log: &dyn LogSink,
    ) -> Result<StoreVerifyReport>;
}

/// What [`Maintain::optimise`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OptimiseReport {
    /// Files that are the same as another one now.
    pub files_linked: u64,
    /// Their sizes together, in bytes.
    pub bytes_saved: u64,
    /// Files that could not be read or replaced; each was told as an error.
    pub failed: u64,
}

/// What [`Maintain::verify_store`] is to do.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StoreVerifyOptions {
    /// Whether only what is registered is checked, or the content of each path too.
    pub depth: VerifyDepth,
    /// Whether what is damaged is mended, and from where.
    pub repair: RepairSource,
    /// Whether modes, times, owners and extended attributes must be those that Nix gives. Nix does not
    /// look at them.
    pub metadata: MetadataCheck,
}

/// How much [`Maintain::verify_store`] reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VerifyDepth {
    /// Whether what is registered is there.
    #[default]
    Existence,
    /// Each file of each path, and what equal files are shared by.
    Contents,
}

/// Whether [`Maintain::verify_store`] looks at what Nix gives to all files alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MetadataCheck {
    /// It does not, as Nix.
    #[default]
    Skip,
    /// What differs is an error.
    Canonical,
}

/// Where [`Maintain::verify_store`] gets whole content from.
#[derive(Debug, Clone, Default)]
pub enum RepairSource {
    /// Nothing is mended.
    #[default]
    Nothing,
    /// From wherever the store fetches what it lacks; a daemon builds it again, too.
    Substituters,
    /// From these stores, the first that has it whole. Content must be exactly what is registered, so that
    /// it need not be signed.
    Stores(Vec<Arc<dyn Store>>),
}

impl RepairSource {
    /// Whether anything is to be mended.
    pub fn is_wanted(&self) -> bool {
        !matches!(self, RepairSource::Nothing)
    }
}

/// What [`Maintain::verify_store`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreVerifyReport {
    /// Paths whose registration, or whose content, was looked at; `None` if the store does not say.
    pub verified: Option<u64>,
    /// What is wrong, or was before it was mended.
    pub faults: Vec<StoreFault>,
    /// Whether errors are left.
    pub errors_left: bool,
}

/// One thing that is wrong with a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFault {
    /// What is damaged: a whole store path, or a file below `.links`. Empty where the store does not say.
    pub subject: String,
    /// What is wrong with it.
    pub kind: FaultKind,
    /// The same in a sentence, as Nix says it where Nix knows it.
    pub line: String,
    /// Whether it was mended.
    pub mended: bool,
}

/// What is wrong with a path or a file of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// It is registered and not there; nothing valid refers to it.
    Disappeared,
    /// It is registered and not there, and valid paths refer to it.
    DisappearedWithReferrers,
    /// Its content is not what is registered.
    Modified,
    /// It has files that no path can have, or could not be read.
    Unreadable,
    /// A file below `.links` is not what its name says.
    LinkModified,
    /// Its size is not registered.
    SizeUnknown,
    /// Its modes, times, owner or attributes are not those of a store.
    Metadata,
    /// The database has something that cannot be understood.
    Database,
    /// What the store did not tell more about.
    Other,
}

impl FaultKind {
    /// The name in reports, which stays.
    pub const fn name(self) -> &'static str {
        match self {
            FaultKind::Disappeared => "disappeared",
            FaultKind::DisappearedWithReferrers => "disappearedWithReferrers",
            FaultKind::Modified => "modified",
            FaultKind::Unreadable => "unreadable",
            FaultKind::LinkModified => "linkModified",
            FaultKind::SizeUnknown => "sizeUnknown",
            FaultKind::Metadata => "metadata",
            FaultKind::Database => "database",
            FaultKind::Other => "other",
        }
    }
}
