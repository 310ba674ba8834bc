use super::{Decode, Protocol, WireError};
use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use std::{
    any::Any,
    fmt::{self, Debug, Display},
    future::poll_fn,
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tk_path::{StoreDir, StorePath};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Takes values off a byte stream, through a buffer of its own.
///
/// A value that is in the buffer already is read without waiting. Dropping a future of this type
/// loses at most the bytes that it had taken: the connection is then of no use any more.
pub struct WireReader<R, P> {
    inner: R,
    protocol: P,
    buffer: BytesMut,
    /// Bytes taken out of `buffer` since the beginning.
    position: u64,
    limits: Limits,
    /// What the message at hand may take, in bytes of memory, and what of it is left.
    whole: u64,
    left: u64,
    admission: Option<Arc<dyn Admission>>,
    /// What the message at hand was given by it.
    admitted: Option<Admitted>,
}

/// What a message waits for before it takes much memory: many peers at once may each keep within
/// [`Limits`], and all together not.
pub(crate) trait Admission: Debug + Send + Sync {
    /// Waits until there is memory. It is taken until the result is dropped.
    ///
    /// # Errors
    /// When there is none for too long.
    fn admit(&self) -> BoxFuture<'_, io::Result<Admitted>>;
}

/// Keeps the memory that [`Admission::admit`] granted taken, until it is dropped.
pub(crate) type Admitted = Box<dyn Any + Send + Sync>;

/// What a peer may claim, in bytes of memory. The protocol itself has no limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest string, in bytes; 16 MiB by default.
    pub string: u64,
    /// All of one message: a request, a reply, a message of the log.
    pub message: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            string: 16 << 20,
            message: 32 << 20,
        }
    }
}

impl<R, P> WireReader<R, P> {
    /// A reader at the beginning of `inner`.
    pub fn new(inner: R, protocol: P) -> Self {
        let limits = Limits::default();
        WireReader {
            inner,
            protocol,
            buffer: BytesMut::new(),
            position: 0,
            limits,
            whole: limits.message,
            left: limits.message,
            admission: None,
            admitted: None,
        }
    }

    /// The same, whose messages of more than [`FREE`] bytes wait for `admission`.
    pub(crate) fn with_admission(mut self, admission: Option<Arc<dyn Admission>>) -> Self {
        self.admission = admission;
        self
    }

    /// What large messages wait for.
    pub(crate) fn admission(&self) -> Option<Arc<dyn Admission>> {
        self.admission.clone()
    }

    /// Whether the message at hand, or what follows from it, takes much memory.
    pub(crate) fn is_admitted(&self) -> bool {
        self.admitted.is_some()
    }

    /// Says that the message at hand takes little memory any more.
    pub(crate) fn release(&mut self) {
        self.admitted = None;
    }

    /// Waits as for a large message, whatever its size: what follows from it is large.
    pub(crate) async fn admit(&mut self) -> Result<(), WireError> {
        if let (Some(admission), None) = (&self.admission, &self.admitted) {
            self.admitted = Some(admission.admit().await?);
        }
        Ok(())
    }

    /// The same with other limits.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self.begin_message();
        self
    }

    /// What decides how values are read.
    pub fn protocol(&self) -> &P {
        &self.protocol
    }

    /// Reads what follows by another version, as after a handshake.
    pub fn set_protocol(&mut self, protocol: P) {
        self.protocol = protocol;
    }

    /// The limits of every message.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes taken since the beginning.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that came from the peer and were not taken yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The source, and what was read from it without being taken.
    pub fn into_parts(self) -> (R, Bytes) {
        (self.inner, self.buffer.freeze())
    }

    /// The source. Whoever reads from it misses what is buffered.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Gives the next message all of [`Limits::message`].
    pub fn begin_message(&mut self) {
        self.begin_message_of(self.limits.message);
    }

    /// Gives the next message `bytes` of memory: more than the default for a reply that is known to
    /// be long, such as all paths of a store.
    pub fn begin_message_of(&mut self, bytes: u64) {
        self.whole = bytes;
        self.left = bytes;
        self.release();
    }

    /// An error about what was read last.
    pub fn malformed(&self, what: impl Display) -> WireError {
        WireError::Malformed {
            offset: self.position,
            what: what.to_string(),
        }
    }

    /// An error about a number that breaks a limit.
    pub fn too_large(&self, what: &'static str, claimed: u64, limit: u64) -> WireError {
        WireError::TooLarge {
            offset: self.position,
            what,
            claimed,
            limit,
        }
    }

    /// Takes `bytes` of memory from what the message may use. Returns whether the message has become so
    /// large that [`admit`](Self::admit) has to follow; most are not, and a future for each would cost more
    /// than reading them.
    pub(crate) fn charge(&mut self, what: &'static str, bytes: u64) -> Result<bool, WireError> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return Err(self.too_large(what, bytes, self.left)),
        }
        Ok(self.whole - self.left > FREE)
    }
}

impl<R: Debug, P: Debug> Debug for WireReader<R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("inner", &self.inner)
            .field("protocol", &self.protocol)
            .field("position", &self.position)
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Unpin, P> WireReader<R, P> {
    /// Reads an integer: 8 bytes, the lowest first.
    pub async fn u64(&mut self) -> Result<u64, WireError> {
        self.need(8).await?;
        self.position += 8;
        Ok(self.buffer.get_u64_le())
    }

    /// An integer of a smaller type; `what` names it if it does not fit.
    pub async fn int<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, WireError> {
        let number = self.u64().await?;
        T::try_from(number).map_err(|_| self.malformed(format_args!("{number} for {what}")))
    }

    /// A bool: every integer but 0 is true.
    pub async fn bool(&mut self) -> Result<bool, WireError> {
        Ok(self.u64().await? != 0)
    }

    /// Seconds since 1970, or microseconds: what Nix keeps in a signed integer and sends only from
    /// 0 up.
    pub async fn time(&mut self) -> Result<i64, WireError> {
        self.int("a time").await
    }

    /// An integer that must be one of those `known` maps to a value.
    pub async fn tag<T>(
        &mut self,
        what: &'static str,
        known: impl FnOnce(u64) -> Option<T>,
    ) -> Result<T, WireError> {
        let number = self.u64().await?;
        known(number).ok_or_else(|| self.malformed(format_args!("{number} is no {what}")))
    }

    /// The count of a list whose items each take at least `item` bytes of memory, which are charged
    /// for at once.
    pub async fn count(&mut self, what: &'static str, item: usize) -> Result<usize, WireError> {
        let count = self.u64().await?;
        let item = item as u64 + ITEM_COST;
        let left = count
            .checked_mul(item)
            .and_then(|cost| self.left.checked_sub(cost));
        match (left, usize::try_from(count)) {
            (Some(left), Ok(count)) => {
                if self.charge(what, self.left - left)? {
                    self.admit().await?;
                }
                Ok(count)
            }
            _ => Err(self.too_large(what, count, self.left / item)),
        }
    }

    /// Any bytes, as a string of the wire.
    pub async fn bytes(&mut self) -> Result<Bytes, WireError> {
        let length = self.length("a string", self.limits.string).await?;
        let bytes = self.take(length).await?;
        self.padding(length).await?;
        Ok(bytes)
    }

    /// A string that must be UTF-8.
    pub async fn string(&mut self) -> Result<String, WireError> {
        let limit = self.limits.string;
        self.parse("a string", limit, |text| Ok::<_, &str>(text.to_owned()))
            .await
    }

    /// A string of at most `limit` bytes that must be UTF-8, made into a value without a copy.
    pub async fn parse<T, E: Display>(
        &mut self,
        what: &'static str,
        limit: u64,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, WireError> {
        let length = self.length(what, limit).await?;
        let padded = length.next_multiple_of(8);
        if padded <= BUFFER {
            self.need(padded).await?;
            let (text, padding) = self.buffer[..padded].split_at(length);
            let zeros = padding.iter().all(|&byte| byte == 0);
            let parsed = parse_text(text, parse);
            self.skip(padded);
            return self.checked(what, zeros, parsed);
        }
        let text = self.take(length).await?;
        self.padding(length).await?;
        let parsed = parse_text(&text, parse);
        self.checked(what, true, parsed)
    }

    /// A string for people: what is not UTF-8 is replaced, and of more than `keep` bytes the rest
    /// is left out, marked by [`CUT`]. More than `refuse` bytes are an error.
    pub async fn text(
        &mut self,
        what: &'static str,
        keep: usize,
        refuse: u64,
    ) -> Result<String, WireError> {
        let length = self.u64().await?;
        if length > refuse {
            return Err(self.too_large(what, length, refuse));
        }
        let length = usize::try_from(length).map_err(|_| self.too_large(what, length, refuse))?;
        let kept = length.min(keep);
        if self.charge(what, kept as u64 + ITEM_COST)? {
            self.admit().await?;
        }
        let bytes = self.take(kept).await?;
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if kept < length {
            self.discard((length - kept) as u64).await?;
            text.push_str(CUT);
        }
        self.padding(length).await?;
        Ok(text)
    }

    /// Between 1 and `max` of the next bytes, as they come and without copying; none at the end of
    /// the stream. There is no padding, and the message is not charged.
    pub async fn raw(&mut self, max: u64) -> Result<Bytes, WireError> {
        if max == 0 || self.at_end().await? {
            return Ok(Bytes::new());
        }
        let length = usize::try_from(max).unwrap_or(usize::MAX);
        let length = length.min(self.buffer.len());
        self.position += length as u64;
        Ok(self.buffer.split_to(length).freeze())
    }

    /// Passes over `count` bytes.
    pub async fn discard(&mut self, mut count: u64) -> Result<(), WireError> {
        while count > 0 {
            self.need(1).await?;
            let passed = count.min(self.buffer.len() as u64);
            self.skip(passed as usize);
            count -= passed;
        }
        Ok(())
    }

    /// Whether the peer closed the connection and nothing is left; waits for the next byte.
    pub async fn at_end(&mut self) -> Result<bool, WireError> {
        Ok(self.buffer.is_empty() && poll_fn(|context| self.poll_fill(context)).await? == 0)
    }

    /// Polls for more bytes behind those in the buffer; 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < SPARE {
            self.buffer.reserve(BUFFER);
        }
        let read = pin!(self.inner.read_buf(&mut self.buffer));
        Poll::Ready(ready!(read.poll(context)))
    }

    /// What is in the buffer.
    pub(super) fn peek(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes the first `length` bytes of the buffer.
    pub(super) fn split(&mut self, length: usize) -> Bytes {
        self.position += length as u64;
        self.buffer.split_to(length).freeze()
    }

    /// Waits until `length` bytes are in the buffer.
    pub(super) async fn need(&mut self, length: usize) -> Result<(), WireError> {
        while self.buffer.len() < length {
            if poll_fn(|context| self.poll_fill(context)).await? == 0 {
                let offset = self.position + self.buffer.len() as u64;
                return Err(WireError::End { offset });
            }
        }
        Ok(())
    }

    /// Drops the first `length` bytes of the buffer.
    pub(super) fn skip(&mut self, length: usize) {
        self.position += length as u64;
        self.buffer.advance(length);
    }

    /// The length of a string, which is charged for.
    async fn length(&mut self, what: &'static str, limit: u64) -> Result<usize, WireError> {
        let length = self.u64().await?;
        if length > limit {
            return Err(self.too_large(what, length, limit));
        }
        if self.charge(what, length + ITEM_COST)? {
            self.admit().await?;
        }
        usize::try_from(length).map_err(|_| self.too_large(what, length, limit))
    }

    /// The next `length` bytes.
    async fn take(&mut self, length: usize) -> Result<Bytes, WireError> {
        if length <= BUFFER {
            self.need(length).await?;
            self.position += length as u64;
            return Ok(Bytes::copy_from_slice(&self.buffer.split_to(length)));
        }
        // Not through the buffer, which would stay that large.
        let mut long = Vec::with_capacity(BUFFER);
        while long.len() < length {
            if self.at_end().await? {
                let offset = self.position;
                return Err(WireError::End { offset });
            }
            let taken = (length - long.len()).min(self.buffer.len());
            long.extend_from_slice(&self.buffer[..taken]);
            self.skip(taken);
        }
        Ok(long.into())
    }

    async fn padding(&mut self, length: usize) -> Result<(), WireError> {
        let padding = length.next_multiple_of(8) - length;
        self.need(padding).await?;
        let zeros = self.buffer[..padding].iter().all(|&byte| byte == 0);
        self.skip(padding);
        if zeros { Ok(()) } else { Err(self.unpadded()) }
    }

    fn checked<T, E: Display>(
        &self,
        what: &'static str,
        zeros: bool,
        parsed: Result<T, Option<E>>,
    ) -> Result<T, WireError> {
        if !zeros {
            return Err(self.unpadded());
        }
        parsed.map_err(|error| match error {
            Some(error) => self.malformed(error),
            None => self.malformed(format_args!("{what} that is not UTF-8")),
        })
    }

    fn unpadded(&self) -> WireError {
        self.malformed("padding that is not zero")
    }
}

impl<R: AsyncRead + Unpin + Send, P: Protocol> WireReader<R, P> {
    /// The store directory of the protocol.
    pub fn dir(&self) -> &StoreDir {
        self.protocol.store_dir()
    }

    /// A value, as a part of the message at hand.
    pub async fn value<T: Decode<P>>(&mut self) -> Result<T, WireError> {
        T::decode(self).await
    }

    /// A value that is a message of its own: the limits start afresh.
    pub async fn message<T: Decode<P>>(&mut self) -> Result<T, WireError> {
        self.begin_message();
        T::decode(self).await
    }

    /// Reads a string that must be the whole path of something in the protocol's store directory.
    pub async fn path(&mut self) -> Result<StorePath, WireError> {
        let dir = self.dir().clone();
        self.parse("a store path", MAX_PATH, |text| dir.parse(text))
            .await
    }

    /// A store path, or none for the empty string.
    pub async fn optional_path(&mut self) -> Result<Option<StorePath>, WireError> {
        let dir = self.dir().clone();
        let parse = |text: &str| match text {
            "" => Ok(None),
            text => dir.parse(text).map(Some),
        };
        self.parse("a store path", MAX_PATH, parse).await
    }
}

/// `None` stands for a text that is not UTF-8.
fn parse_text<T, E>(text: &[u8], parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Option<E>> {
    parse(std::str::from_utf8(text).map_err(|_| None)?).map_err(Some)
}

/// Bytes that a reader asks its source for at once.
const BUFFER: usize = 64 << 10;

/// What every string and every item of a list costs of [`Limits::message`] beside its bytes: the
/// allocations and the nodes of trees that hold it.
pub(crate) const ITEM_COST: u64 = 64;

/// What a message takes without asking [`Admission`].
const FREE: u64 = 256 << 10;

/// Follows a text that was cut.
pub const CUT: &str = " [...]";

/// The longest text of a store path: names have 211 bytes, but nobody limits the store directory
/// nor what is cleaned away.
const MAX_PATH: u64 = 4096;

/// With less room than this a new buffer is begun, rather than asking the source for crumbs.
const SPARE: usize = 8 << 10;
