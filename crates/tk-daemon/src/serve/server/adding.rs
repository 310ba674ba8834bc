//! Paths that the client sends.
//!
//! ```text
//! export stream = *( 1 NAR trailer ) 0        ; see ExportTrailer
//! ```

use super::{ServeSession, failed, malformed};
use crate::{serve::ExportTrailer, values::Done, wire::NarRead};
use bytes::Bytes;
use futures::{StreamExt, future::join};
use std::{
    fs::File,
    io::{self, Read, Seek, Write},
};
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hasher, NarHash};
use tk_store::{Error, NarStream, Result, SigCheck, StoreExt, nar};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

impl<R, W> ServeSession<'_, R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    /// Adds a path whose NAR is the next bytes, as many as its metadata says. They are all taken,
    /// whatever the store does with them.
    pub(super) async fn add(&mut self, mut info: PathInfo) -> Result<()> {
        if info.nar_size == 0 {
            return Err(malformed(format!("a NAR of 0 bytes for {}", info.path)));
        }
        info.ultimate = false;
        let mut left = info.nar_size;
        let (chunks, nar) = channel();
        let store = self.server.abilities.store.clone();
        let add = async move { store.add_one(info, nar, &SigCheck::Skip.into()).await };
        let reader = &mut self.reader;
        let read = async {
            while left > 0 {
                let chunk = reader.raw(left).await.map_err(failed)?;
                if chunk.is_empty() {
                    let text = format!("it ends {left} bytes before the end of a NAR");
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, text);
                    let error = Error::io(super::TALKING, error);
                    // Lest the store take what came for all.
                    let copy = Error::io(super::TALKING, io::ErrorKind::UnexpectedEof);
                    let _ = chunks.send(Err(copy)).await;
                    return Err(error);
                }
                left -= chunk.len() as u64;
                // The store has no use for it if it has the path.
                let _ = chunks.send(Ok(chunk)).await;
            }
            drop(chunks);
            Ok(())
        };
        let (added, read) = join(add, read).await;
        read.and(added)
    }

    /// Adds the paths of an export stream.
    pub(super) async fn import(&mut self) -> Result<()> {
        let more = |number| match number {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        while self
            .reader
            .tag("mark before an exported NAR", more)
            .await
            .map_err(failed)?
        {
            self.import_one().await?;
            self.reader.begin_message();
        }
        self.reply(&Done)
    }

    /// What the path is comes behind its NAR, which therefore waits in a file.
    async fn import_one(&mut self) -> Result<()> {
        let spooling = |e| Error::io("keeping a NAR in a temporary file", io::Error::other(e));
        let (chunks, mut spooled) = mpsc::channel::<Bytes>(WINDOW);
        let spool = tokio::task::spawn_blocking(move || {
            let mut file = tempfile::tempfile()?;
            let mut hasher = Hasher::new(Algorithm::Sha256);
            while let Some(chunk) = spooled.blocking_recv() {
                hasher.update(&chunk);
                file.write_all(&chunk)?;
            }
            file.rewind()?;
            io::Result::Ok((file, hasher))
        });
        let mut nar = NarRead::new(&mut self.reader);
        while let Some(chunk) = nar.next_chunk().await.map_err(failed)? {
            if chunks.send(chunk).await.is_err() {
                // It tells why below.
                break;
            }
        }
        drop(chunks);
        let (file, hasher) = spool.await.map_err(spooling_ended)?.map_err(spooling)?;
        let size = hasher.bytes();
        let hash = NarHash::try_from(hasher.finish()).expect("sha256 was asked for");
        let trailer: ExportTrailer = self.reader.message().await.map_err(failed)?;
        let mut info = PathInfo::new(trailer.path, hash, size);
        info.references = trailer.references;
        info.deriver = trailer.deriver;
        let store = &self.server.abilities.store;
        store
            .add_one(info, read_file(file), &SigCheck::Skip.into())
            .await
    }
}

/// A NAR that is sent chunk by chunk.
fn channel() -> (mpsc::Sender<Result<Bytes>>, NarStream) {
    let (send, receive) = mpsc::channel(WINDOW);
    let next = |mut receive: mpsc::Receiver<Result<Bytes>>| async {
        receive.recv().await.map(|chunk| (chunk, receive))
    };
    (send, futures::stream::unfold(receive, next).boxed())
}

fn read_file(mut file: File) -> NarStream {
    nar::produce(move |send| {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk);
            let read = read.map_err(|e| Error::io("reading a NAR from a temporary file", e))?;
            if read == 0 || !send(chunk.into()) {
                return Ok(());
            }
        }
    })
}

fn spooling_ended(error: tokio::task::JoinError) -> Error {
    Error::io("keeping a NAR in a temporary file", io::Error::other(error))
}

/// Chunks that may wait for the store.
const WINDOW: usize = 4;
/// Bytes that are read from a file at once.
const CHUNK: usize = 128 << 10;
