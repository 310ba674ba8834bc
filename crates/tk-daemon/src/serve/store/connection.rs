//! Connections to a server of the serve protocol, and a pool of them.

use crate::{
    client::{Channel, SilenceLimit, Timed, Transport},
    serve::{
        LATEST, Serve, ServeRequest,
        handshake::{self, ServeHandshakeError},
    },
    ssh::SshGuard,
    wire::{NarRead, WireError, WireReader, Writer, begins_with},
};
use bytes::{Buf, Bytes};
use futures::{FutureExt, StreamExt, future::try_join, stream};
use std::{
    any::Any,
    future::Future,
    io,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tk_path::StoreDir;
use tk_store::{
    Error, NarStream, Result,
    log::{Level, LogEvent, LogSink},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
};

/// What all connections of a store have in common.
#[derive(Debug, Clone)]
pub(super) struct ServeSettings {
    /// The store's URI, for errors.
    pub name: Arc<str>,
    pub dir: StoreDir,
    /// How long connecting may take, up to the end of the handshake.
    pub connect_timeout: Option<Duration>,
    /// How long the server may be silent where it owes an answer.
    pub timeout: Option<Duration>,
}

/// A connection, after the handshake.
///
/// An operation that does not end cleanly leaves it unclean, for good: the protocol has no way to
/// get over an error.
pub(super) struct ServeConnection {
    pub input: ServeInput,
    pub output: ServeOutput,
    clean: bool,
    guard: Option<Box<dyn Any + Send + Sync>>,
}

/// What the server says.
pub(super) struct ServeInput {
    pub reader: WireReader<Timed<Box<dyn AsyncRead + Send + Unpin>>, Serve>,
    pub patience: SilenceLimit,
    pub peer: ServePeer,
}

/// What is said to the server.
pub(super) struct ServeOutput {
    writer: Writer<Serve>,
    sink: Timed<Box<dyn AsyncWrite + Send + Unpin>>,
    pub peer: ServePeer,
}

impl ServeConnection {
    pub async fn open(transport: &dyn Transport, settings: &ServeSettings) -> Result<Self> {
        let opening = Self::open_slowly(transport, settings);
        let Some(limit) = settings.connect_timeout else {
            return opening.await;
        };
        match tokio::time::timeout(limit, opening).await {
            Ok(opened) => opened,
            Err(_) => {
                let text = format!("no connection within {} s", limit.as_secs_f32());
                let error = io::Error::new(io::ErrorKind::TimedOut, text);
                Err(Error::io(format!("connecting to {}", settings.name), error))
            }
        }
    }

    async fn open_slowly(transport: &dyn Transport, settings: &ServeSettings) -> Result<Self> {
        let Channel {
            reader,
            writer,
            guard,
        } = transport.connect().await?;
        let (reading, writing) = (SilenceLimit::default(), SilenceLimit::default());
        let protocol = Serve::new(settings.dir.clone(), LATEST);
        let mut reader = WireReader::new(Timed::new(reader, reading.clone()), protocol);
        let mut sink = Timed::new(writer, writing.clone());
        let peer = ServePeer(settings.name.clone());
        if let Err(error) = handshake::client(&mut reader, &mut sink, LATEST).await {
            return Err(peer.no_handshake(error, &mut reader).await);
        }
        reading.set(settings.timeout);
        writing.set(settings.timeout);
        Ok(ServeConnection {
            output: ServeOutput {
                writer: Writer::new(reader.protocol().clone()),
                sink,
                peer: peer.clone(),
            },
            input: ServeInput {
                reader,
                patience: reading,
                peer,
            },
            clean: true,
            guard,
        })
    }

    /// The version agreed on.
    pub fn protocol(&self) -> &Serve {
        self.input.reader.protocol()
    }

    /// To be called before anything is asked, and before [`ServeConnection::end`].
    pub fn begin(&mut self) {
        self.clean = false;
    }

    /// To be called when everything was answered.
    pub fn end(&mut self) {
        self.clean = true;
    }

    /// Whether it may be used once more.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Sends one request and waits for its reply.
    pub async fn call<Q: ServeRequest>(&mut self, request: &Q) -> Result<Q::Reply> {
        let mut replies = self.call_all(std::slice::from_ref(request)).await?;
        replies.pop().ok_or_else(|| self.input.peer.nothing())
    }

    /// Asks several things at once: written without waiting for the answers.
    pub async fn call_all<Q: ServeRequest>(&mut self, requests: &[Q]) -> Result<Vec<Q::Reply>> {
        self.begin();
        let (input, output) = (&mut self.input, &mut self.output);
        let write = async {
            for request in requests {
                output.request(request)?;
                output.flush_some().await?;
            }
            output.flush().await
        };
        let read = async {
            let mut replies = Vec::with_capacity(requests.len());
            for _ in requests {
                replies.push(input.reply().await?);
            }
            Ok(replies)
        };
        // Both at once: a server whose replies nobody takes would stop reading requests, and both ends
        // hang.
        let ((), replies) = try_join(write, read).await?;
        self.end();
        Ok(replies)
    }

    /// As [`ServeConnection::call`], for what may take as long as it wants; `log` gets what the far end
    /// writes to stderr meanwhile, if that is collected.
    pub async fn call_long<Q: ServeRequest>(
        &mut self,
        request: &Q,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        let patience = self.input.patience.clone();
        let limit = patience.get();
        // Before the request goes out, so that no line about it is missed.
        let mut lines = self.lines();
        patience.set(None);
        let reply = {
            let mut call = Box::pin(self.call(request));
            loop {
                tokio::select! {
                    biased;
                    reply = &mut call => break reply,
                    line = next_line(&mut lines) => log.event(line),
                }
            }
        };
        patience.set(limit);
        // Stderr has a way of its own: lines that were written before the reply may arrive after it.
        if let Some(guard) = self.ssh() {
            guard.caught_up().await;
        }
        while let Some(line) = next_line(&mut lines).now_or_never() {
            log.event(line);
        }
        reply
    }

    fn lines(&self) -> Option<broadcast::Receiver<String>> {
        self.ssh().map(SshGuard::lines)
    }

    fn ssh(&self) -> Option<&SshGuard> {
        self.guard.as_ref()?.downcast_ref()
    }

    /// Whether the server is still there and has said nothing unasked, as far as can be told
    /// without waiting.
    fn is_alive(&mut self) -> bool {
        self.clean
            && self.input.reader.buffered() == 0
            && self.input.reader.at_end().now_or_never().is_none()
    }
}

/// Waits for ever where there are none.
async fn next_line(lines: &mut Option<broadcast::Receiver<String>>) -> LogEvent {
    use broadcast::error::RecvError;
    while let Some(receiver) = lines {
        match receiver.recv().await {
            Ok(line) => return LogEvent::message(Level::Info, line),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => *lines = None,
        }
    }
    std::future::pending().await
}

impl ServeInput {
    pub async fn reply<T: crate::wire::Decode<Serve>>(&mut self) -> Result<T> {
        self.reader.message().await.map_err(|e| self.peer.failed(e))
    }
}

impl ServeOutput {
    /// Writes a request to the buffer; after an error nothing of it is there.
    pub fn request<Q: ServeRequest>(&mut self, request: &Q) -> Result<()> {
        request
            .write(&mut self.writer)
            .map_err(|e| self.peer.failed(e))
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
}

/// The name of the far end, for errors.
#[derive(Debug, Clone)]
pub(super) struct ServePeer(Arc<str>);

impl ServePeer {
    pub fn failed(&self, error: WireError) -> Error {
        let talking = || format!("talking to {}", self.0);
        match error {
            WireError::Io(_) | WireError::End { .. } => Error::io(talking(), error.into_io()),
            WireError::Unsupported { .. } => Error::Unsupported {
                store: self.0.to_string(),
                what: format!("cannot be asked that: {error}"),
            },
            error => Error::malformed(format!("what {} says", self.0), error),
        }
    }

    /// Why there is no connection; what the peer says instead of the protocol is still in `reader`.
    async fn no_handshake<R: AsyncRead + Unpin>(
        &self,
        error: ServeHandshakeError,
        reader: &mut WireReader<R, Serve>,
    ) -> Error {
        let begin = match &error {
            ServeHandshakeError::Magic(number) => Some(*number),
            _ => None,
        };
        if (begin.is_some() || matches!(&error, ServeHandshakeError::Wire(error) if error.is_end()))
            && let Some(text) = reader.foreign_text(begin, handshake::SERVER_MAGIC).await
        {
            let words = begins_with(&text, "serve");
            return Error::malformed(format!("what {} says", self.0), words);
        }
        match error {
            ServeHandshakeError::Wire(error) => self.failed(error),
            error => Error::malformed(format!("what {} says", self.0), error),
        }
    }

    pub fn nothing(&self) -> Error {
        self.failed(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

/// Connections to one server, a bounded number of them.
pub(super) struct ServePool {
    transport: Arc<dyn Transport>,
    settings: ServeSettings,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<ServeConnection>>,
}

impl ServePool {
    pub fn new(
        transport: Arc<dyn Transport>,
        settings: ServeSettings,
        connections: usize,
    ) -> Arc<Self> {
        let places = connections.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(ServePool {
            transport,
            settings,
            places: Arc::new(Semaphore::new(places)),
            idle: Mutex::default(),
        })
    }

    /// Lends a connection, once one is free: an idle one, or a new one.
    pub async fn get(self: &Arc<Self>) -> Result<ServeLease> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.map_err(|_| Error::invalid("the pool of connections was closed"))?;
        let mut connection = None;
        while connection.is_none() {
            let Some(mut idle) = self.idle().pop() else {
                break;
            };
            connection = idle.is_alive().then_some(idle);
        }
        let connection = match connection {
            Some(connection) => connection,
            None => ServeConnection::open(&*self.transport, &self.settings).await?,
        };
        Ok(ServeLease {
            connection: Some(connection),
            pool: self.clone(),
            _place: place,
        })
    }

    /// How many can be lent now.
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<ServeConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection on loan; dropping it gives it back, if it is clean.
pub(super) struct ServeLease {
    /// Some until it is dropped.
    connection: Option<ServeConnection>,
    pool: Arc<ServePool>,
    /// Goes after the connection was given back.
    _place: OwnedSemaphorePermit,
}

impl ServeLease {
    /// The raw NAR that the server sends next, checked to be one. The connection is given back at
    /// its end.
    pub fn into_nar(self) -> NarStream {
        let peer = self.input.peer.clone();
        let next = move |mut nar: NarRead<ServeNarLease>| {
            let peer = peer.clone();
            async move {
                let chunk = nar.next_chunk().await.map_err(|e| peer.failed(e))?;
                match chunk {
                    Some(chunk) => Ok(Some((chunk, nar))),
                    None => {
                        nar.into_inner().0.end();
                        Ok(None)
                    }
                }
            }
        };
        stream::try_unfold(NarRead::new(ServeNarLease(self)), next).boxed()
    }
}

impl Deref for ServeLease {
    type Target = ServeConnection;

    fn deref(&self) -> &ServeConnection {
        self.connection.as_ref().expect("there until dropped")
    }
}

impl DerefMut for ServeLease {
    fn deref_mut(&mut self) -> &mut ServeConnection {
        self.connection.as_mut().expect("there until dropped")
    }
}

impl Drop for ServeLease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(ServeConnection::is_clean) {
            self.pool.idle().push(connection);
        }
    }
}

/// The reader of a connection on loan.
struct ServeNarLease(ServeLease);

impl Deref for ServeNarLease {
    type Target = WireReader<Timed<Box<dyn AsyncRead + Send + Unpin>>, Serve>;

    fn deref(&self) -> &Self::Target {
        &self.0.input.reader
    }
}

impl DerefMut for ServeNarLease {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0.input.reader
    }
}

/// Bytes of requests that are collected before they are sent, if there are more to come.
const AHEAD: usize = 32 << 10;
/// Less data than this, in bytes, is sent together with what comes next.
const SMALL: usize = 4 << 10;
