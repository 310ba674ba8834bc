//! NARs on their way between stores: streams of `Bytes`, and the bridges to blocking code.

use crate::{Error, Result};
use bytes::{Buf, Bytes};
use futures::{
    StreamExt, TryStreamExt,
    stream::{AbortHandle, BoxStream},
};
use std::{future::Future, io, path::PathBuf};
use tk_nar::fs::{Dump, DumpOptions};
use tokio::{runtime::Handle, sync::mpsc};

/// The bytes of one NAR, in order. Nothing is opened before the first poll where the source allows
/// it.
pub type NarStream = BoxStream<'static, Result<Bytes>>;

/// A NAR that is at hand already.
pub fn from_bytes(nar: impl Into<Bytes>) -> NarStream {
    let nar = nar.into();
    futures::stream::once(async move { Ok(nar) }).boxed()
}

/// A NAR that `open` provides when it is first asked for.
pub fn lazy(open: impl Future<Output = Result<NarStream>> + Send + 'static) -> NarStream {
    futures::stream::once(open).try_flatten().boxed()
}

/// The NAR of the file, folder or link at `path`, read ahead on other threads within a window.
pub fn dump(path: PathBuf, options: DumpOptions) -> NarStream {
    lazy(async move {
        Ok(produce(move |send| {
            let reading = |e| Error::io(format!("reading {}", path.display()), io::Error::other(e));
            for chunk in Dump::new(&path, &options).map_err(reading)? {
                if !send(Bytes::from_owner(chunk.map_err(reading)?)) {
                    break;
                }
            }
            Ok(())
        }))
    })
}

/// Runs `produce` on a blocking thread; what it sends is the stream. The sender returns false when
/// nobody listens any more. An error of the producer ends the stream.
pub fn produce(
    produce: impl FnOnce(&mut dyn FnMut(Bytes) -> bool) -> Result<()> + Send + 'static,
) -> NarStream {
    let (send, receive) = mpsc::channel(WINDOW);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = produce(&mut |bytes| send.blocking_send(Ok(bytes)).is_ok()) {
            // Nobody left to tell is the reader's choice.
            let _ = send.blocking_send(Err(error));
        }
    });
    futures::stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|item| (item, receive))
    })
    .boxed()
}

/// `nar`, which ends when the guard is dropped, however long its source is silent. A thread that
/// reads it does not wait on when those who want the result have gone.
pub fn until_dropped(nar: NarStream) -> (NarStream, EndOnDrop) {
    let (nar, handle) = futures::stream::abortable(nar);
    (nar.boxed(), EndOnDrop(handle))
}

/// The guard of [`until_dropped`]: when it is dropped, its stream ends.
#[derive(Debug)]
pub struct EndOnDrop(AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A [`NarStream`] for blocking code: an iterator over its chunks, and a [`Read`](io::Read).
///
/// Made on the runtime, used on a blocking thread (`spawn_blocking`).
pub struct BlockingNar {
    handle: Handle,
    stream: NarStream,
    rest: Bytes,
    failed: Option<Error>,
}

impl BlockingNar {
    /// Wraps `stream`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(stream: NarStream) -> Self {
        BlockingNar {
            handle: Handle::current(),
            stream,
            rest: Bytes::new(),
            failed: None,
        }
    }

    /// The store's error behind an [`io::Error`] that reading gave, if there was one.
    pub fn take_error(&mut self) -> Option<Error> {
        self.failed.take()
    }
}

impl Iterator for BlockingNar {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.rest.is_empty() {
            return Some(Ok(std::mem::take(&mut self.rest)));
        }
        self.handle.block_on(self.stream.next())
    }
}

impl io::Read for BlockingNar {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.handle.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => {
                    let line = error.to_line();
                    self.failed = Some(error);
                    return Err(io::Error::other(line));
                }
            }
        }
        let n = out.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut out[..n]);
        Ok(n)
    }
}

/// Chunks that may wait between a producer and its reader.
const WINDOW: usize = 4;
