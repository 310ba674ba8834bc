//! Nix binary caches: in a folder, over HTTP, in object storage; which caches have what; compression.
//!
//! | | |
//! |---|---|
//! | [`BinaryCache`] | a cache over anything that has named [`objects`]: [`FolderObjects`] (`file://`), `http` (feature `http`), `bucket` (S3, Google, Azure; feature `bucket`) |
//! | [`checker::Checker`] | which caches have which paths, or whole closures: all asked at once |
//! | [`compress`] | encoders and decoders of packed NARs, each behind a feature of its name |
//! | [`journal`] | what a push has sent, so that a killed one goes on where it stood |
//! | `disk_cache` | what caches said, kept in SQLite (feature `disk-cache`) |
//! | [`layout`] | the names of what is in a cache |
//! | [`observer`] | who hears of each request and retry |
//!
//! A cache is a [`Store`](tk_store::Store), so that [`tk_store::copy`] pushes to it and pulls from it.
//! With `default-features = false, features = ["http"]` a program checks caches without SQLite and
//! compression libraries.
//!
//! ```no_run
//! use futures::{StreamExt, stream};
//! use std::sync::Arc;
//! use tk_cache::{BinaryCache, BinaryCacheConfig, checker::Checker};
//! # async fn example(path: tk_path::StorePath) -> tk_store::Result<()> {
//! let cache = BinaryCache::open_folder("/srv/cache", BinaryCacheConfig::default()).await?;
//! let checker = Checker::new(vec![Arc::new(cache)]).closure(true);
//! let mut answers = checker.check(stream::iter([path]));
//! while let Some(checked) = answers.next().await {
//!     println!("{} is there: {}", checked.path, checked.is_present());
//! }
//! # Ok(()) }
//! ```
//!
//! # Security
//! What a cache says is a claim. Sizes, hashes and the grammar of a NAR are checked when a store takes
//! it, signatures where [`SigCheck`](tk_store::SigCheck) or a policy demands them. Nothing that a server claims is
//! allocated ahead. "Absent" is only what a cache said in so many words; that it could not be asked is an error.

mod binary_cache;
#[cfg(feature = "bucket")]
pub mod bucket;
pub mod checker;
pub mod compress;
mod debug_info;
#[cfg(feature = "disk-cache")]
pub mod disk_cache;
mod folder;
#[cfg(feature = "http")]
pub mod http;
pub mod journal;
pub mod layout;
#[cfg(feature = "http")]
mod limit;
mod narinfo_memory;
pub mod objects;
pub mod observer;
mod pack;
mod pool;
mod realisations;
#[cfg(feature = "http")]
mod sentence;
mod unpack;
mod warning;

pub use binary_cache::{BinaryCache, BinaryCacheConfig};
pub use folder::FolderObjects;
pub use warning::{CacheWarning, CacheWarnings};

use tk_store::blocking;
