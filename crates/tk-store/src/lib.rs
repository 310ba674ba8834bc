//! The [`Store`] trait, the closure walk, the copy engine and an in-memory store.
//!
//! A store is anything that holds store paths: a folder on disk, a daemon, a binary cache. All of
//! them answer the few questions of [`Store`]; what only some can do is a trait of its own
//! ([`AddContent`], [`AddSignatures`], [`Build`], [`Roots`], …; [`Abilities`] says which of them a
//! store has). [`copy`] moves closures between any two of
//! them and keeps the one invariant that matters to readers: *a path that is visible in the
//! destination has its content and its references there too*.
//!
//! ```
//! use std::{collections::BTreeSet, sync::Arc};
//! use tk_path::StorePath;
//! use tk_store::copy::{CopyOptions, plan};
//! use tk_store::{Result, SigCheck, Store};
//!
//! /// Copies `path`, and all it refers to, as far as it is missing.
//! async fn fetch(from: Arc<dyn Store>, to: &dyn Store, path: StorePath, check: SigCheck) -> Result<()> {
//!     let plan = plan(&*from, to, &BTreeSet::from([path]), &CopyOptions::new(check)).await?;
//!     println!("{} paths, {} bytes", plan.missing.len(), plan.nar_size());
//!     let report = plan.run(&from, to, Arc::new(())).await?;
//!     for (path, error) in &report.failed {
//!         println!("{path}: {error}");
//!     }
//!     Ok(())
//! }
//! ```
//!
//! [`SeveralStores`] reads from many stores as one, [`TreeStore`] shows files and folders as store
//! paths, [`conformance`] is the suite that every store passes.
//!
//! # Security
//! [`Store::add`] checks the NAR's hash, size and grammar before a path becomes visible, and signatures as
//! [`SigCheck`] demands. What [`Store::nar`] gives is not checked until somebody does: another store
//! that takes it, or [`verify()`].
//!
//! Nothing here prints, reads the environment or starts a runtime; futures run on the caller's
//! tokio runtime, blocking work on its blocking threads.

mod abilities;
mod add_schedule;
pub mod closure;
pub mod closure_graph;
mod compare;
#[cfg(feature = "conformance")]
pub mod conformance;
mod content;
pub mod copy;
pub mod derivation;
mod derivation_diff;
mod describe;
mod each_info;
mod error;
mod fetching;
pub mod lease;
pub mod log;
mod maintain;
mod memory;
pub mod mentions;
pub mod nar;
pub mod own_thread;
pub mod packages;
pub mod progress;
pub mod realisations;
pub mod reference;
mod registration;
mod several;
mod socket;
mod store;
mod tree;
mod verify;

pub use abilities::{
    Abilities, Build, BuildMode, ByteStream, ClientSettings, GarbageCollector, GcAction, GcOptions,
    GcReport, Graph, Logs, Missing, Realisations, Root, Roots, Sessions, SubstitutablePathInfo,
    Substitute,
};
pub use add_schedule::{AddId, AddSchedule, RequiredReferences, add_batches};
pub use closure::{Closure, closure, referrers_closure};
pub use closure_graph::ClosureGraph;
pub use compare::{Compared, compare};
pub use content::ContentHasher;
pub use derivation_diff::{DerivationChange, DerivationDiff, MAX_DIFF_PAIRS, diff_derivations};
pub use describe::{Describe, StoreDescription};
pub use error::{Error, Result, error_line};
pub use fetching::{Fetching, Sources};
pub use maintain::{
    FaultKind, Maintain, MetadataCheck, OptimiseReport, RepairSource, StoreFault,
    StoreVerifyOptions, StoreVerifyReport, VerifyDepth,
};
pub use memory::MemoryStore;
pub use nar::NarStream;
pub use own_thread::blocking;
pub use reference::{ReferenceError, StoreReference, StoreVariant};
pub use registration::{RegistrationReader, registration_text};
pub use several::SeveralStores;
pub use socket::SocketName;
pub use store::{
    AddContent, AddItem, AddItems, AddOptions, AddReport, AddSignatures, Existing, SigCheck, Store,
    StoreExt,
};
pub use tree::TreeStore;
pub use verify::{NarCheck, verify};
