//! Bytes that are made once and may be sent several times, also while they are being made.

use super::{failure::BodyFailed, send::BodyProgress};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};
use tk_store::{ByteStream, Error, Result};
use tokio::sync::watch;

/// A file without a name that grows.
pub(super) struct UploadSpool {
    file: Arc<File>,
    grown: watch::Sender<Grown>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Grown {
    /// Bytes that are there.
    size: u64,
    /// There will be no more.
    whole: bool,
}

/// What reads a [`UploadSpool`] from the start. When the spool is dropped before it is whole, reading
/// ends with an error.
#[derive(Clone)]
pub(super) struct SpoolReader {
    file: Arc<File>,
    grown: watch::Receiver<Grown>,
}

impl UploadSpool {
    /// An empty one in `folder`, or where the system keeps temporary files.
    pub(super) fn new(folder: Option<&Path>) -> io::Result<Self> {
        let file = match folder {
            Some(folder) => tempfile::tempfile_in(folder)?,
            None => tempfile::tempfile()?,
        };
        Ok(UploadSpool {
            file: Arc::new(file),
            grown: watch::Sender::default(),
        })
    }

    pub(super) fn reader(&self) -> SpoolReader {
        SpoolReader {
            file: self.file.clone(),
            grown: self.grown.subscribe(),
        }
    }

    /// Takes all of `body`. `what` is said when there is no room for it.
    pub(super) async fn fill(&self, mut body: ByteStream, what: &str) -> Result<()> {
        let mut size = 0;
        while let Some(chunk) = body.try_next().await? {
            let (file, length) = (self.file.clone(), chunk.len() as u64);
            crate::blocking(move || Ok(file.write_all_at(&chunk, size)))
                .await?
                .map_err(|e| Error::io(format!("keeping {what} while it is sent"), e))?;
            size += length;
            self.grown.send_modify(|grown| grown.size = size);
        }
        self.grown.send_modify(|grown| grown.whole = true);
        Ok(())
    }
}

impl SpoolReader {
    /// The size, if it is known already.
    pub(super) fn size(&self) -> Option<u64> {
        let grown = *self.grown.borrow();
        grown.whole.then_some(grown.size)
    }

    /// The size, when it is known.
    pub(super) async fn whole(&mut self) -> Result<u64, BodyFailed> {
        let grown = self.grown.wait_for(|grown| grown.whole).await;
        Ok(grown.map_err(|_| BodyFailed)?.size)
    }

    /// Everything from the start to the end that is yet to come.
    pub(super) fn stream(
        self,
        progress: Arc<BodyProgress>,
    ) -> impl Stream<Item = Result<Bytes, BodyFailed>> + Send + 'static {
        futures::stream::try_unfold((self, 0), move |(mut reader, at)| {
            let progress = progress.clone();
            async move {
                progress.waits();
                let chunk = reader.chunk(at).await?;
                progress.moved();
                let next = at + chunk.len() as u64;
                Ok((!chunk.is_empty()).then_some((chunk, (reader, next))))
            }
        })
    }

    /// What follows `at`; nothing at the end.
    async fn chunk(&mut self, at: u64) -> Result<Bytes, BodyFailed> {
        let there = self.grown.wait_for(|grown| grown.size > at || grown.whole);
        let size = there.await.map_err(|_| BodyFailed)?.size;
        let wanted = (size - at).min(CHUNK) as usize;
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let file = self.file.clone();
        let read = move || {
            let mut chunk = vec![0; wanted];
            file.read_exact_at(&mut chunk, at).map(|()| chunk.into())
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|_| BodyFailed)?.map_err(|_| BodyFailed)
    }
}

/// Bytes that are read at once.
const CHUNK: u64 = 256 << 10;
