//! The pump from a stream of `Bytes` into the decoder (feature `stream`).

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures_core::Stream;

use crate::decode::{Decoder, Event};
use crate::error::{NarError, NarErrorKind};

/// The events of an archive that arrives as chunks. Contents are borrowed from the chunks.
///
/// Takes chunks only as long as the archive needs more; what follows it in the last chunk is [`StreamReader::rest`].
/// Cancel safe: a dropped [`StreamReader::next_event`] loses nothing.
#[derive(Debug)]
pub struct StreamReader<S> {
    source: S,
    decoder: Decoder,
    chunk: Bytes,
    /// The bytes the last event is borrowed from.
    shown: Bytes,
}

impl<S, E> StreamReader<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    /// A reader of the archive that begins with the next chunk of `source`.
    pub fn new(source: S) -> Self {
        Self {
            source,
            decoder: Decoder::new(),
            chunk: Bytes::new(),
            shown: Bytes::new(),
        }
    }

    /// The next event; `None` after [`Event::End`]. A failed stream is [`NarErrorKind::Read`].
    pub async fn next_event(&mut self) -> Result<Option<Event<'_>>, NarError> {
        let raw = loop {
            let (consumed, raw) = self.decoder.step(&self.chunk)?;
            self.shown = self.chunk.clone();
            self.chunk = self.chunk.slice(consumed..);
            match raw {
                Some(raw) => break raw,
                None if self.decoder.is_done() => return Ok(None),
                None => self.chunk = self.next_chunk().await?,
            }
        };
        Ok(Some(raw.bind(&self.shown, self.decoder.held())))
    }

    /// Bytes of the archive taken so far; after the end, its length.
    pub fn offset(&self) -> u64 {
        self.decoder.offset()
    }

    /// What was not taken of the last chunk; after the end, what follows the archive there.
    pub fn rest(&self) -> &Bytes {
        &self.chunk
    }

    /// The stream, behind the chunk that [`StreamReader::rest`] belongs to.
    pub fn into_inner(self) -> S {
        self.source
    }

    async fn next_chunk(&mut self) -> Result<Bytes, NarError> {
        let source = &mut self.source;
        match poll_fn(|context| Pin::new(&mut *source).poll_next(context)).await {
            Some(Ok(chunk)) => Ok(chunk),
            Some(Err(error)) => {
                let kind = NarErrorKind::Read(io::Error::other(error));
                Err(NarError::new(self.decoder.offset(), kind))
            }
            None => Err(NarError::new(
                self.decoder.offset(),
                NarErrorKind::UnexpectedEnd,
            )),
        }
    }
}
