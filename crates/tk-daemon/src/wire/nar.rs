use super::{WireError, WireReader};
use bytes::Bytes;
use std::ops::DerefMut;
use tk_nar::{Decoder, Event};
use tokio::io::AsyncRead;

/// A NAR that stands in the stream as it is: only its own grammar tells where it ends.
///
/// `D` is a [`WireReader`], borrowed or owned through a smart pointer. Reading stops exactly behind the
/// archive. Before the reader is used for anything else, the NAR must be read to its end
/// ([`NarRead::drain`]).
#[derive(Debug)]
pub struct NarRead<D> {
    reader: D,
    decoder: Decoder,
}

impl<D> NarRead<D> {
    /// The archive that begins at the reader's next byte.
    pub fn new(reader: D) -> Self {
        NarRead {
            reader,
            decoder: Decoder::new(),
        }
    }

    /// Whether the archive is complete.
    pub fn is_ended(&self) -> bool {
        self.decoder.is_done()
    }

    /// Bytes of the archive that were taken.
    pub fn size(&self) -> u64 {
        self.decoder.offset()
    }

    /// The reader; of use only if [`NarRead::is_ended`].
    pub fn into_inner(self) -> D {
        self.reader
    }
}

impl<D, R, P> NarRead<D>
where
    D: DerefMut<Target = WireReader<R, P>>,
    R: AsyncRead + Unpin,
{
    /// The next bytes of the archive as they come, without copying; `None` at its end. All of them
    /// were found to be in order, but the hash is for the caller to check.
    ///
    /// # Errors
    /// [`WireError::Malformed`] with the offset in the archive.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, WireError> {
        if self.is_ended() {
            return Ok(None);
        }
        self.reader.need(1).await?;
        let length = archive_bytes(&mut self.decoder, self.reader.peek())
            .map_err(|error| self.reader.malformed(error))?;
        Ok(Some(self.reader.split(length)))
    }

    /// Passes over the rest of the archive.
    pub async fn drain(&mut self) -> Result<(), WireError> {
        while self.next_chunk().await?.is_some() {}
        Ok(())
    }
}

/// How many of the bytes belong to the archive.
fn archive_bytes(decoder: &mut Decoder, input: &[u8]) -> Result<usize, tk_nar::NarError> {
    let mut taken = 0;
    loop {
        let fed = decoder.feed(&input[taken..])?;
        taken += fed.consumed;
        if matches!(fed.event, None | Some(Event::End)) {
            return Ok(taken);
        }
    }
}
