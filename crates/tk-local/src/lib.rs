//! A Nix store on disk without Nix, in Nix's own format.
//!
//! [`LocalStore`] opens, or makes, a store such as Nix keeps below `/nix` or, as a chroot store,
//! in any folder: content in `<root>/nix/store`, an SQLite database of schema 10 and the locks in
//! `<root>/nix/var/nix`. Real Nix opens what this makes, and the other way round, also at the
//! same time: every lock that Nix takes to add a path is taken here.
//!
//! ```no_run
//! # async fn example() -> tk_store::Result<()> {
//! use tk_local::{LocalConfig, LocalStore};
//! use tk_store::Store;
//!
//! let store = LocalStore::open(LocalConfig::chroot("/var/lib/app/store")).await?;
//! println!("{store} holds {} paths", store.all().await?.len());
//! # Ok(()) }
//! ```
//!
//! # What holds whenever a process is killed
//! - A path that is registered has its whole, verified content under its name.
//! - What is not registered is no obstacle: content without a row is replaced when the path is
//!   added again, temporary folders are removed by the next process that adds.
//!
//! # Left to Nix
//! Schemas older than 10, and making the tables of realisations, which are used where they are.

mod abilities;
mod add;
mod canonical;
mod config;
mod db;
mod derivations;
mod found_roots;
mod gc;
mod gcroots;
mod inner;
mod links;
mod load;
mod lock;
mod logs;
mod optimise;
mod place;
pub mod profiles;
mod receive;
mod recover;
mod roots;
mod runtime_roots;
mod schema;
mod store;
mod telling;
mod verify;

pub use config::{Durability, LocalConfig};
pub use load::LoadReport;
pub use recover::{PathTruth, RecoverOptions, RecoverReport, RecoverWrite, ScanPaths};
pub use store::LocalStore;
