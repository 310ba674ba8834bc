//! Nix binary caches: their layout, caches in folders, and compression.
//!
//! [`FolderCache`] is a [`Store`](tk_store::Store) for `file://` caches, which Nix reads and
//! writes too. [`compress`] has the encoders and decoders of NARs, [`layout`] the names of what is
//! in a cache; both are of use without a folder.

mod add;
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
pub mod objects;
pub mod observer;
mod pack;
mod pool;
mod realisations;
pub mod remote;
#[cfg(feature = "http")]
mod sentence;
mod unpack;
mod warning;

pub use folder::{FolderCache, FolderConfig};
pub use remote::{RemoteCache, RemoteConfig};
pub use warning::{CacheWarning, CacheWarnings};

use tk_store::Error;

/// Runs `work` on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> tk_store::Result<T> + Send + 'static,
) -> tk_store::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => {
            let error = std::io::Error::other(error);
            Err(Error::io("waiting for a thread", error))
        }
    }
}
