use super::{WireError, WireReader};
use bytes::Bytes;
use std::{
    io,
    ops::DerefMut,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};

/// The data of one framed stream: what is in its chunks, up to the empty one at the end.
///
/// `D` is a [`WireReader`], borrowed or owned through a smart pointer. Reading stops exactly behind the
/// empty chunk. Before the reader is used for anything else, the stream must be read to its end
/// ([`FramedRead::drain`]).
#[derive(Debug)]
pub struct FramedRead<D> {
    reader: D,
    /// Bytes of the chunk at hand that were not taken yet.
    left: u64,
    ended: bool,
}

impl<D> FramedRead<D> {
    /// The framed stream that begins at the reader's next byte.
    pub fn new(reader: D) -> Self {
        FramedRead {
            reader,
            left: 0,
            ended: false,
        }
    }

    /// Whether the empty chunk was read.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The reader; of use only if [`FramedRead::is_ended`].
    pub fn into_inner(self) -> D {
        self.reader
    }
}

impl<D, R, P> FramedRead<D>
where
    D: DerefMut<Target = WireReader<R, P>>,
    R: AsyncRead + Unpin,
{
    /// The next data as it comes, without copying; `None` at the end.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, WireError> {
        if !self.begin_chunk().await? {
            return Ok(None);
        }
        let bytes = self.reader.raw(self.left).await?;
        if bytes.is_empty() {
            let offset = self.reader.position();
            return Err(WireError::End { offset });
        }
        self.left -= bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Passes over the rest, and returns how many bytes of data that was. A peer that sends without
    /// end keeps this busy, in constant memory.
    pub async fn drain(&mut self) -> Result<u64, WireError> {
        let mut passed = 0;
        while self.begin_chunk().await? {
            self.reader.discard(self.left).await?;
            passed += std::mem::take(&mut self.left);
        }
        Ok(passed)
    }

    /// Goes to data; false at the end.
    async fn begin_chunk(&mut self) -> Result<bool, WireError> {
        if self.left == 0 && !self.ended {
            self.left = u64::from(self.reader.int::<u32>("the length of a chunk").await?);
            self.ended = self.left == 0;
        }
        Ok(!self.ended)
    }
}

/// For a reader of what is in the stream, such as another [`WireReader`].
impl<D, R, P> AsyncRead for FramedRead<D>
where
    D: DerefMut<Target = WireReader<R, P>> + Unpin,
    R: AsyncRead + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while this.left == 0 {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_need(context, 8))?;
            let header: [u8; 8] = this.reader.split(8)[..].try_into().unwrap_or_default();
            this.left = u64::from_le_bytes(header);
            this.ended = this.left == 0;
            if this.left > u64::from(u32::MAX) {
                let error = this
                    .reader
                    .malformed(format_args!("{} for the length of a chunk", this.left));
                return Poll::Ready(Err(error.into_io()));
            }
        }
        ready!(this.poll_need(context, 1))?;
        let length = out.remaining().min(this.reader.buffered());
        let length = length.min(usize::try_from(this.left).unwrap_or(usize::MAX));
        out.put_slice(&this.reader.peek()[..length]);
        this.reader.skip(length);
        this.left -= length as u64;
        Poll::Ready(Ok(()))
    }
}

impl<D, R, P> FramedRead<D>
where
    D: DerefMut<Target = WireReader<R, P>>,
    R: AsyncRead + Unpin,
{
    fn poll_need(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<()>> {
        while self.reader.buffered() < length {
            if ready!(self.reader.poll_fill(context))? == 0 {
                let offset = self.reader.position() + self.reader.buffered() as u64;
                return Poll::Ready(Err(WireError::End { offset }.into_io()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// `data` as chunks of at most [`MAX_FRAME`] bytes: for each its header, then its bytes. None for
/// no data, since an empty chunk would be the end.
pub fn frames(data: Bytes) -> impl Iterator<Item = ([u8; 8], Bytes)> {
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let chunk = rest.split_to(rest.len().min(MAX_FRAME));
        Some((frame_header(chunk.len()), chunk))
    })
}

/// What stands before a chunk of `length` bytes.
fn frame_header(length: usize) -> [u8; 8] {
    (length as u64).to_le_bytes()
}

/// What stands behind the last chunk.
pub const FRAME_END: [u8; 8] = [0; 8];

/// The largest chunk that is written. Readers of Nix take up to 2^32 - 1, and allocate it at once.
pub const MAX_FRAME: usize = 1 << 20;
