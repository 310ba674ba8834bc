use super::{
    Transport,
    timed::{SilenceLimit, Timed, silence},
};
use crate::{
    wire::{HandshakeError, Protocol, Request, WireError, WireReader, Writer, begins_with},
    worker::{WorkerProtocol, handshake::ServerHello},
};
use bytes::{Buf, Bytes};
use futures::{
    FutureExt,
    future::{Either, select},
};
use std::{
    any::Any,
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tk_store::{Error, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// A connection to a daemon, after the handshake.
///
/// It can be used again as long as [`Connection::is_clean`]: an operation that the daemon refused
/// leaves it so, one that was dropped or broke off in the middle does not.
pub struct Connection<P: Protocol = WorkerProtocol> {
    pub(crate) input: ConnectionInput<P>,
    pub(crate) output: ConnectionOutput<P>,
    pub(crate) flight: Flight,
    hello: ServerHello,
    /// How long the daemon may be silent where it owes an answer.
    pub(super) timeout: Option<Duration>,
    opened: Instant,
    /// Is dropped after both streams, since fields are dropped in order: it may hold the process behind
    /// them.
    guard: Option<Box<dyn Any + Send + Sync>>,
}

impl<P: Protocol> Connection<P> {
    /// Connects to what errors call `name`. The handshake, in which `protocol` may change, has still to
    /// come, and then [`Connection::shaken`].
    pub(crate) async fn connect(
        transport: &dyn Transport,
        name: &str,
        protocol: P,
    ) -> Result<Self> {
        let channel = transport.connect().await?;
        let (reading, writing) = (SilenceLimit::default(), SilenceLimit::default());
        let peer = ConnectionPeer(name.into());
        Ok(Connection {
            output: ConnectionOutput {
                writer: Writer::new(protocol.clone()),
                sink: Timed::new(channel.writer, writing.clone()),
                patience: writing,
                peer: peer.clone(),
            },
            input: ConnectionInput {
                reader: WireReader::new(Timed::new(channel.reader, reading.clone()), protocol),
                greeting: false,
                patience: reading,
                peer,
            },
            flight: Flight::default(),
            hello: ServerHello::default(),
            timeout: None,
            opened: Instant::now(),
            guard: channel.guard,
        })
    }

    /// Takes what the handshake came to. From now on the daemon may be silent for `timeout` only.
    pub(crate) async fn shaken(
        &mut self,
        outcome: Result<ServerHello, HandshakeError>,
        timeout: Option<Duration>,
    ) -> Result<()> {
        match outcome {
            Ok(hello) => self.hello = hello,
            Err(error) => return Err(self.input.not_shaken(error).await),
        }
        let protocol = self.input.reader.protocol().clone();
        self.output.writer.set_protocol(protocol);
        self.output.patience.set(timeout);
        (self.timeout, self.opened) = (timeout, Instant::now());
        Ok(())
    }

    /// What was agreed on.
    pub fn protocol(&self) -> &P {
        self.output.writer.protocol()
    }

    /// What the daemon said of itself.
    pub fn hello(&self) -> &ServerHello {
        &self.hello
    }

    /// When the handshake was over.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// What lives as long as the connection.
    pub(crate) fn guard(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.guard.as_deref()
    }

    /// Whether everything that was asked was answered to the last byte.
    pub fn is_clean(&self) -> bool {
        self.flight.is_clean()
    }

    /// Whether the daemon still keeps the connection open and has said nothing unasked, as far as
    /// can be told without waiting.
    pub fn is_alive(&mut self) -> bool {
        if self.input.greeting {
            return true;
        }
        self.is_clean()
            && self.input.reader.buffered() == 0
            && self.input.reader.at_end().now_or_never().is_none()
    }
}

impl<P: Protocol> std::fmt::Debug for Connection<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("to", &self.input.peer.0)
            .field("protocol", self.protocol())
            .field("clean", &self.is_clean())
            .finish()
    }
}

/// What `opening` gives, within `limit`; `name` is the far end, for errors.
pub(crate) async fn in_time<T>(
    name: &str,
    limit: Option<Duration>,
    opening: impl Future<Output = Result<T>>,
) -> Result<T> {
    let opened = within(limit, opening).await;
    opened.unwrap_or_else(|| Err(Error::io(format!("connecting to {name}"), silence(limit))))
}

pub(super) type ConnectionSource = Timed<Box<dyn AsyncRead + Send + Unpin>>;

/// What the daemon says.
pub(crate) struct ConnectionInput<P> {
    pub reader: WireReader<ConnectionSource, P>,
    /// Something was asked whose answer comes before that to the first request.
    pub greeting: bool,
    pub patience: SilenceLimit,
    pub peer: ConnectionPeer,
}

impl<P: Protocol> ConnectionInput<P> {
    /// Why there is no connection; what the peer says instead of the protocol is still in the reader.
    async fn not_shaken(&mut self, error: HandshakeError) -> Error {
        let begin = match &error {
            HandshakeError::Magic { number, .. } => Some(*number),
            _ => None,
        };
        let what = || format!("what {} says", self.peer.0);
        if (begin.is_some() || matches!(&error, HandshakeError::Wire(error) if error.is_end()))
            && let Some(text) = self.reader.foreign_text(begin).await
        {
            return Error::malformed(what(), begins_with(&text, P::NAME));
        }
        match error {
            HandshakeError::Wire(error) => self.peer.failed(error),
            HandshakeError::Refused(words) => self.peer.refused(words),
            error => Error::malformed(what(), error),
        }
    }
}

/// What is said to the daemon.
pub(crate) struct ConnectionOutput<P> {
    pub writer: Writer<P>,
    pub sink: Timed<Box<dyn AsyncWrite + Send + Unpin>>,
    patience: SilenceLimit,
    pub peer: ConnectionPeer,
}

impl<P: Protocol> ConnectionOutput<P> {
    /// Writes a request to the buffer; after an error nothing of it is there.
    pub fn request<Q: Request<P>>(&mut self, request: &Q) -> Result<()> {
        let written = request.write(&mut self.writer);
        written.map_err(|e| self.peer.failed(e))
    }

    /// Sends what is in the buffer, and flushes the stream.
    pub async fn flush(&mut self) -> Result<()> {
        let mut bytes = self.writer.take();
        let sent = async {
            self.sink.write_all_buf(&mut bytes).await?;
            self.sink.flush().await
        };
        sent.await.map_err(|e| self.peer.failed(e.into()))
    }

    /// What `future` gives; sends the buffer if it has to be waited for.
    pub async fn wait_for<T>(&mut self, future: impl Future<Output = T> + Unpin) -> Result<T> {
        let mut future = future;
        match (&mut future).now_or_never() {
            Some(ready) => Ok(ready),
            None => {
                self.flush().await?;
                Ok(future.await)
            }
        }
    }

    /// Sends the buffer once it is worth it.
    pub async fn flush_some(&mut self) -> Result<()> {
        match self.writer.len() {
            0..AHEAD => Ok(()),
            _ => self.flush().await,
        }
    }

    /// Sends the buffer and `bytes`; few bytes go into the buffer.
    pub async fn bytes(&mut self, bytes: Bytes) -> Result<()> {
        if bytes.len() < SMALL {
            self.writer.raw(&bytes);
            return self.flush_some().await;
        }
        let mut both = self.writer.take().freeze().chain(bytes);
        let sent = self.sink.write_all_buf(&mut both).await;
        sent.map_err(|e| self.peer.failed(e.into()))
    }
}

/// Counts what was asked and not answered.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    owed: AtomicUsize,
    broken: AtomicBool,
}

impl Flight {
    pub fn begin(&self) {
        self.owed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.owed.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn fail(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub fn is_clean(&self) -> bool {
        self.owed.load(Ordering::Relaxed) == 0 && !self.broken.load(Ordering::Relaxed)
    }

    /// Writes and reads at once: neither direction waits for the other.
    pub(super) async fn drive(
        &self,
        write: impl Future<Output = Result<(), Stop>>,
        read: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let outcome = match select(pin!(read), pin!(write)).await {
            // Answered before all was written: what is missing never is.
            Either::Left((Ok(()), _)) => {
                self.fail();
                return Ok(());
            }
            Either::Left((Err(error), _)) => Err(error),
            Either::Right((Ok(()), read)) => read.await,
            Either::Right((Err(Stop::Source(error)), _)) => Err(error),
            Either::Right((Err(Stop::Peer(error)), read)) => {
                // What it said before it hung up tells more than that it hung up.
                match timeout(LAST_WORDS, read).await {
                    Ok(Ok(())) => {
                        self.fail();
                        return Ok(());
                    }
                    Ok(Err(words)) if matches!(words, Error::Refused { .. }) => Err(words),
                    _ => Err(error),
                }
            }
            Either::Right((Err(Stop::Deaf), read)) => read.await,
        };
        outcome.inspect_err(|_| self.fail())
    }
}

/// Why the writing half of [`Flight::drive`] stopped before its end.
pub(super) enum Stop {
    /// What was to be sent could not be had.
    Source(Error),
    /// The daemon takes nothing more.
    Peer(Error),
    /// Nobody reads answers any more; the one who did knows why.
    Deaf,
}

/// The name of the far end, for errors.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionPeer(Arc<str>);

impl ConnectionPeer {
    pub fn failed(&self, error: WireError) -> Error {
        match error {
            WireError::Io(_) | WireError::End { .. } => {
                Error::io(format!("talking to {}", self.0), error.into_io())
            }
            WireError::Unsupported { what, protocol } => Error::Unsupported {
                store: self.0.to_string(),
                what: format!("cannot be asked for that: {protocol} has no way to say {what}"),
            },
            error => Error::malformed(format!("what {} says", self.0), error),
        }
    }

    pub fn refused(&self, words: String) -> Error {
        Error::Refused {
            who: self.0.to_string(),
            words,
        }
    }

    pub fn silent(&self, limit: Option<Duration>) -> Error {
        self.failed(silence(limit).into())
    }

    pub fn nothing(&self) -> Error {
        self.failed(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

/// `None` when `limit` has passed before `future` was ready.
pub(super) async fn within<T>(
    limit: Option<Duration>,
    future: impl Future<Output = T>,
) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

/// Bytes of requests that are collected before they are sent, if there are more to come.
pub(super) const AHEAD: usize = 32 << 10;
/// Less data than this, in bytes, is sent together with what comes next.
const SMALL: usize = 4 << 10;
/// How long to listen to a daemon that takes nothing more.
const LAST_WORDS: Duration = Duration::from_secs(2);
