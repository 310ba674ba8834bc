//! For the messages of the protocols.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};
use tk_daemon::wire::{Decode, Encode, Protocol, WireError, WireReader, Writer};
use tokio::io::{AsyncRead, ReadBuf};

/// Decodes one value from the front of `input`, which comes at once or byte by byte.
pub fn decode<P: Protocol, T: Decode<P>>(
    protocol: &P,
    input: &[u8],
    bytewise: bool,
) -> Result<T, WireError> {
    let source = Source {
        rest: input,
        bytewise,
    };
    let mut reader = WireReader::new(source, protocol.clone());
    now(reader.message())
}

/// Encodes what was decoded by the same protocol.
pub fn encode<P: Protocol>(protocol: &P, value: &impl Encode<P>) -> Vec<u8> {
    let mut writer = Writer::new(protocol.clone());
    writer.value(value).expect("it was read by this version");
    writer.take().to_vec()
}

/// The result of a future that has nothing to wait for.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits, though all is there"),
    }
}

struct Source<'a> {
    rest: &'a [u8],
    bytewise: bool,
}

impl AsyncRead for Source<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = if self.bytewise { 1 } else { usize::MAX };
        let count = self.rest.len().min(out.remaining()).min(most);
        let (piece, rest) = self.rest.split_at(count);
        out.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}
