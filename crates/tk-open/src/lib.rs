//! Opens Nix stores of every kind by their URIs: the way in for programs that embed tk-store.
//!
//! [`open`] takes the URIs that `nix` takes, and [`OpenSettings`]: by default none, or what nix.conf,
//! the environment and the user's folders say (`OpenSettings::from_environment`). An [`OpenStore`] is any
//! store, with all that it can do.
//!
//! ```no_run
//! use tk_open::{OpenSettings, open};
//! # async fn example(path: tk_open::StorePath) -> Result<(), tk_open::OpenError> {
//! let cache = open("https://cache.nixos.org", &OpenSettings::default()).await?;
//! let found = cache.look_at_closure(&[path]).await;
//! println!("{} paths, {} absent", found.listed.narinfos.len(), found.absent.len());
//! # Ok(()) }
//! ```
//!
//! The common jobs are a call each: [`OpenStore::look_at_closure`] (is all of it in a cache?), [`push`],
//! [`push_folder`], [`pull`], [`nar_hash`], and all questions of [`Store`]. The `examples/` of this crate
//! are programs that do them. The crates below are here as modules: [`nar`], [`path`], [`narinfo`],
//! [`store`], [`cache`].
//!
//! # Features
//! All are on by default, and each brings its libraries: `http`, `bucket`, `daemon` (also over ssh), `local`,
//! `compression`, `disk-cache` (what caches said, remembered between runs), `environment`, `substituter`
//! (caches put into nix.conf). Caches in folders need none.
//!
//! # Security
//! With the default settings no login is sent to anybody. With those of the environment, netrc and the
//! credentials of clouds are used for the servers that they name. What is read from a store is checked as
//! far as its own crate says; signatures are the matter of who copies ([`SigCheck`]).

mod error;
mod jobs;
pub mod keys;
pub mod nix_conf;
mod open;
mod open_store;
#[cfg(feature = "local")]
mod served;
mod settings;
#[cfg(feature = "substituter")]
mod substituter;

pub use error::OpenError;
pub use jobs::{nar_hash, pull, push, push_folder};
#[cfg(feature = "http")]
pub use open::http_client;
#[cfg(feature = "local")]
pub use open::local_config;
pub use open::{
    AutoStore, OpenOptions, open, open_several, open_with, store_reference, take_store_dir,
    without_password,
};
pub use open_store::{ListedPaths, Looked, OpenStore};
#[cfg(feature = "local")]
pub use served::served;
pub use settings::{Environment, OpenMessage, OpenSettings};
#[cfg(feature = "substituter")]
pub use substituter::{CacheConfig, ConfiguredSubstituter, Substituter, configure};

pub use tk_cache as cache;
#[cfg(feature = "daemon")]
pub use tk_daemon as daemon;
#[cfg(feature = "local")]
pub use tk_local as local;
pub use tk_nar as nar;
pub use tk_narinfo as narinfo;
pub use tk_narinfo::{Policy, SecretKey};
pub use tk_path as path;
pub use tk_path::{StoreDir, StorePath};
pub use tk_store as store;
pub use tk_store::{
    SigCheck, Store, StoreExt,
    copy::{CopyOptions, CopyReport},
};

/// The program in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeProgram;
