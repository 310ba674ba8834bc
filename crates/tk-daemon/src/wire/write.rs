use super::{Encode, Protocol, WireError};
use bytes::{BufMut, BytesMut};
use std::fmt::{Display, Write};
use tk_path::StorePath;

/// Collects values as bytes, for the caller to send.
#[derive(Debug)]
pub struct Writer<P> {
    protocol: P,
    buffer: BytesMut,
}

impl<P> Writer<P> {
    /// Returns a writer that has nothing to send yet and writes values as `protocol` has them.
    pub fn new(protocol: P) -> Self {
        Writer {
            protocol,
            buffer: BytesMut::new(),
        }
    }

    /// What decides how values are written.
    pub fn protocol(&self) -> &P {
        &self.protocol
    }

    /// Writes what follows by another version, as after a handshake.
    pub fn set_protocol(&mut self, protocol: P) {
        self.protocol = protocol;
    }

    /// Bytes written and not taken.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes what was written.
    pub fn take(&mut self) -> BytesMut {
        self.buffer.split()
    }

    /// What was written and not taken.
    pub fn written(&self) -> &[u8] {
        &self.buffer
    }

    /// Drops all but the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.buffer.truncate(length);
    }

    /// A value. After an error nothing of it is left.
    pub fn value<T: Encode<P> + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        let start = self.len();
        value.encode(self).inspect_err(|_| self.truncate(start))
    }

    /// Writes an integer: 8 bytes, the lowest first.
    pub fn u64(&mut self, number: u64) {
        self.buffer.put_u64_le(number);
    }

    /// Writes a bool as the integer 1 or 0.
    pub fn bool(&mut self, value: bool) {
        self.u64(value.into());
    }

    /// The count of a list.
    pub fn count(&mut self, count: usize) {
        self.u64(count as u64);
    }

    /// Any bytes, as a string of the wire.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.buffer.extend_from_slice(bytes);
        self.pad(bytes.len());
    }

    /// Writes a text as a string of the wire: length, bytes, and zeros up to a multiple of 8.
    pub fn string(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// The text of a value, written in place.
    pub fn display(&mut self, value: impl Display) {
        let start = self.len();
        self.u64(0);
        // Memory takes everything.
        let _ = write!(self.buffer, "{value}");
        let length = self.len() - start - 8;
        self.buffer[start..start + 8].copy_from_slice(&(length as u64).to_le_bytes());
        self.pad(length);
    }

    /// Bytes as they are, without length and padding.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn pad(&mut self, length: usize) {
        self.buffer
            .put_bytes(0, length.next_multiple_of(8) - length);
    }
}

impl<P: Protocol> Writer<P> {
    /// Writes a store path as a string, with the store directory in front.
    pub fn path(&mut self, path: &StorePath) {
        let dir = self.protocol.store_dir().clone();
        self.display(dir.display(path));
    }

    /// A store path, or the empty string.
    pub fn optional_path(&mut self, path: Option<&StorePath>) {
        match path {
            Some(path) => self.path(path),
            None => self.string(""),
        }
    }

    /// Seconds since 1970.
    ///
    /// # Errors
    /// Before 1970: readers refuse that.
    pub fn time(&mut self, time: i64) -> Result<(), WireError> {
        let number =
            u64::try_from(time).map_err(|_| self.unsupported(format_args!("the time {time}")))?;
        self.u64(number);
        Ok(())
    }

    /// The error about something that this protocol cannot say.
    pub fn unsupported(&self, what: impl Display) -> WireError {
        WireError::Unsupported {
            what: what.to_string(),
            protocol: self.protocol.describe(),
        }
    }
}
