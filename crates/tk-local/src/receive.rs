use crate::lock::Cancel;
use bytes::Bytes;
use std::{io, path::Path, sync::mpsc, thread};
use tk_nar::fs::{CaseHack, UnpackMetadata, UnpackOptions, Unpacker};
use tk_store::{ContentHasher, Error, NarCheck, NarStream, Result, nar::BlockingNar};

/// What looks at each byte of a NAR while it is unpacked.
pub(crate) trait NarObserver: Send {
    /// Takes the next bytes.
    fn update(&mut self, chunk: &[u8]) -> Result<()>;
}

impl NarObserver for ContentHasher {
    fn update(&mut self, chunk: &[u8]) -> Result<()> {
        ContentHasher::update(self, chunk)
    }
}

impl NarObserver for NarCheck {
    fn update(&mut self, chunk: &[u8]) -> Result<()> {
        NarCheck::update(self, chunk)
    }
}

/// Unpacks `nar` to `tree` while `watch` sees all of it; returns `watch` and the bytes.
///
/// `size` is what the NAR is said to be long, in bytes; if it is not small, `watch` gets a thread of
/// its own. An error of `watch` counts more than one of unpacking, which it explains.
pub(crate) fn receive<W: NarObserver>(
    nar: NarStream,
    mut watch: W,
    tree: &Path,
    size: Option<u64>,
    cancel: &Cancel,
) -> Result<(W, u64)> {
    let mut unpacking = Unpacking::new(nar, tree, cancel)?;
    if size.is_some_and(|size| size != 0 && size < WORTH_A_THREAD) {
        let bytes = unpacking.run(|chunk| watch.update(chunk).map(|()| true))?;
        return Ok((watch, bytes));
    }
    thread::scope(|scope| {
        let (send, chunks) = mpsc::sync_channel::<Bytes>(AHEAD);
        let watching = scope.spawn(move || {
            for chunk in chunks {
                watch.update(&chunk)?;
            }
            Ok(watch)
        });
        let unpacked = unpacking.run(|chunk| Ok(send.send(chunk.clone()).is_ok()));
        drop(send);
        let watched = watching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((watched?, unpacked?))
    })
}

/// A NAR that is being unpacked.
struct Unpacking<'a> {
    nar: BlockingNar,
    tree: &'a Path,
    cancel: &'a Cancel,
}

impl<'a> Unpacking<'a> {
    fn new(nar: NarStream, tree: &'a Path, cancel: &'a Cancel) -> Result<Self> {
        Ok(Unpacking {
            nar: BlockingNar::new(nar),
            tree,
            cancel,
        })
    }

    /// Unpacks all; `watch` sees each chunk first, and ends it all with `false`.
    fn run(&mut self, mut watch: impl FnMut(&Bytes) -> Result<bool>) -> Result<u64> {
        let mut options = UnpackOptions::default();
        options.case_hack = CaseHack::Off;
        options.metadata = UnpackMetadata::Canonical;
        let tree = self.tree;
        let failed = |e| {
            Error::io(
                format!("unpacking to {}", tree.display()),
                io::Error::other(e),
            )
        };
        let mut unpacker = Unpacker::new(tree, &options).map_err(failed)?;
        for chunk in &mut self.nar {
            self.cancel.check()?;
            let chunk = chunk?;
            if !watch(&chunk)? {
                break;
            }
            unpacker.feed(&chunk).map_err(failed)?;
        }
        // Then it is no fault of the NAR that it ended.
        self.cancel.check()?;
        unpacker.finish().map_err(failed)
    }
}

/// Bytes of a NAR from which on a second thread pays.
const WORTH_A_THREAD: u64 = 256 << 10;
/// Chunks that may wait between the threads.
const AHEAD: usize = 4;
