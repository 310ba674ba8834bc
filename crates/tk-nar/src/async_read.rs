//! The pump from tokio's `AsyncRead` into the decoder (feature `tokio`).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use crate::decode::Event;
use crate::error::NarError;
use crate::read::{Pump, ReadStep};

/// The events of an archive read from an async source; [`Reader`](crate::NarReader) with `await`.
///
/// Never reads a byte behind the root's `)`, which makes short reads: give it something buffered. Cancel safe: a
/// dropped [`AsyncReader::next_event`] loses nothing.
#[derive(Debug)]
pub struct AsyncReader<R> {
    source: R,
    pump: Pump,
}

impl<R: AsyncRead + Unpin> AsyncReader<R> {
    /// A reader of the archive that begins at the next byte of `source`.
    pub fn new(source: R) -> Self {
        Self {
            source,
            pump: Pump::new(),
        }
    }

    /// The next event; `None` after [`Event::End`].
    pub async fn next_event(&mut self) -> Result<Option<Event<'_>>, NarError> {
        let raw = loop {
            match self.pump.step()? {
                ReadStep::Event(raw) => break raw,
                ReadStep::Done => return Ok(None),
                ReadStep::More => {}
            }
            let (source, space) = (&mut self.source, self.pump.space());
            let count = poll_fn(|context| poll_read(Pin::new(source), context, space)).await;
            self.pump.filled(count)?;
        };
        Ok(Some(self.pump.bind(raw)))
    }

    /// Bytes of the archive taken so far; after the end, its length.
    pub fn offset(&self) -> u64 {
        self.pump.decoder.offset()
    }

    /// The source, at the first byte behind the archive if [`Event::End`] was given.
    pub fn into_inner(self) -> R {
        self.source
    }
}

fn poll_read(
    source: Pin<&mut impl AsyncRead>,
    context: &mut Context<'_>,
    into: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut into = ReadBuf::new(into);
    source
        .poll_read(context, &mut into)
        .map_ok(|()| into.filled().len())
}
