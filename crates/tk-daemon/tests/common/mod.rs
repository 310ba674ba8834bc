//! What the tests of the messages share.
#![allow(dead_code, reason = "each test uses its part")]

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tk_daemon::wire::{Decode, Encode, Protocol, WireError, WireReader, Writer};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes that come at once, or one by one with pauses.
#[derive(Debug)]
pub struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    slow: bool,
    pause: bool,
}

impl Pieces {
    pub fn new(bytes: impl Into<Vec<u8>>, slow: bool) -> Self {
        Pieces {
            bytes: bytes.into(),
            at: 0,
            slow,
            pause: false,
        }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pause = self.slow && !self.pause;
        if self.pause {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = if self.slow { 1 } else { usize::MAX };
        let end = self.bytes.len().min(self.at + most.min(out.remaining()));
        out.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

pub fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

pub fn encode<P: Protocol>(
    protocol: &P,
    value: &(impl Encode<P> + ?Sized),
) -> Result<Vec<u8>, WireError> {
    let mut writer = Writer::new(protocol.clone());
    writer.value(value)?;
    Ok(writer.take().to_vec())
}

/// Decodes one message, which must be all there is.
pub fn decode<P: Protocol, T: Decode<P>>(
    protocol: &P,
    bytes: &[u8],
    slow: bool,
) -> Result<T, WireError> {
    let mut reader = WireReader::new(Pieces::new(bytes, slow), protocol.clone());
    run(async {
        let value = reader.message().await?;
        if reader.at_end().await? {
            Ok(value)
        } else {
            Err(reader.malformed("something is left over"))
        }
    })
}

/// Integers as they are on the wire.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
