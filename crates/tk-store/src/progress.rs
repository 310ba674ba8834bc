//! Watching what moves between stores.

use crate::NarStream;
use futures::StreamExt;
use std::{fmt::Debug, sync::Arc};
use tk_path::StorePath;

/// Somebody who watches a copy. Called from any thread, often: it must not block.
///
/// That a NAR was read says nothing of the destination: it may still be packed, on its way, or
/// wait for what it refers to. [`Progress::arrived`] and [`Progress::visible`] are about the
/// destination; these are what to show to somebody who waits.
pub trait Progress: Debug + Send + Sync {
    /// `path` begins to be read.
    fn started(&self, path: &StorePath) {
        let _ = path;
    }

    /// `bytes` more of some NAR were read.
    fn advanced(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The NAR of `path` was read to its end.
    fn finished(&self, path: &StorePath) {
        let _ = path;
    }

    /// The destination has got `bytes` more of some NAR, counted without compression. Nobody may
    /// see them yet. Where they are sent packed this is an estimate that is right at the end.
    fn arrived(&self, bytes: u64) {
        let _ = bytes;
    }

    /// `path` is in the destination, for all who read it. Told once for each path, also for one
    /// that turned out to be there already.
    fn visible(&self, path: &StorePath) {
        let _ = path;
    }
}

/// The watcher that does nothing, for copies that nobody watches.
impl Progress for () {}

/// `nar`, each chunk of which has arrived when it is taken: for stores that write what they take
/// at once.
pub fn arriving(nar: NarStream, progress: &Arc<dyn Progress>) -> NarStream {
    let progress = progress.clone();
    let tell = move |chunk: &crate::Result<bytes::Bytes>| {
        if let Ok(chunk) = chunk {
            progress.arrived(chunk.len() as u64);
        }
    };
    nar.inspect(tell).boxed()
}
