use super::{
    Transport,
    timed::{SilenceLimit, Timed, silence},
};
use crate::{
    wire::{Decode, FRAME_END, NarRead, WireError, WireReader, Writer, begins_with, frames},
    worker::{
        Capabilities, Features, Version, WorkerProtocol, features,
        handshake::{self, HandshakeError, ServerHello},
        log::{Message, RemoteError},
        ops::{AddToStoreNar, Data, IsValidPath, NarFromPath, Op, Request, SetOptions},
    },
};
use bytes::{Buf, Bytes};
use futures::{
    FutureExt, Stream, StreamExt,
    future::{Either, select},
};
use std::{
    any::Any,
    future::Future,
    io,
    ops::{Deref, DerefMut},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tk_path::{StoreDir, StorePath};
use tk_store::{Error, NarStream, Result, log::LogSink};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

/// A connection to a daemon, after the handshake.
///
/// It can be used again as long as [`Connection::is_clean`]: an operation that the daemon refused
/// leaves it so, one that was dropped or broke off in the middle does not.
pub struct Connection {
    input: DaemonInput,
    output: DaemonOutput,
    flight: Flight,
    hello: ServerHello,
    settings: Arc<ConnectionSettings>,
    opened: Instant,
    /// Is dropped after both streams, since fields are dropped in order: it may hold the process behind
    /// them.
    _guard: Option<Box<dyn Any + Send + Sync>>,
}

/// What all connections of a store have in common.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Who is at the far end, for errors: a store's URI.
    pub name: Arc<str>,
    /// The store directory, which the protocol does not tell.
    pub dir: StoreDir,
    /// The newest version that is spoken.
    pub version: Version,
    /// Offered to the daemon.
    pub features: Features,
    /// Sent before the first operation, unless the daemon wants none.
    pub options: Option<SetOptions>,
    /// How long the daemon may be silent where it owes an answer, or take nothing of what it is
    /// sent; builds and other long work are exempt.
    pub timeout: Option<Duration>,
    /// How long connecting may take, up to the end of the handshake.
    pub connect_timeout: Option<Duration>,
}

impl Connection {
    /// Connects, agrees on a version, and sets the options.
    pub async fn open(
        transport: &dyn Transport,
        settings: Arc<ConnectionSettings>,
        log: &dyn LogSink,
    ) -> Result<Connection> {
        let limit = settings.connect_timeout;
        let name = settings.name.clone();
        match within(limit, Connection::open_slowly(transport, settings, log)).await {
            Some(opened) => opened,
            None => Err(Error::io(format!("connecting to {name}"), silence(limit))),
        }
    }

    async fn open_slowly(
        transport: &dyn Transport,
        settings: Arc<ConnectionSettings>,
        log: &dyn LogSink,
    ) -> Result<Connection> {
        let channel = transport.connect().await?;
        let (reading, writing) = (SilenceLimit::default(), SilenceLimit::default());
        let protocol = WorkerProtocol::new(settings.dir.clone(), Version::minor(0));
        let mut reader: WireReader<ConnectionSource, _> =
            WireReader::new(Timed::new(channel.reader, reading.clone()), protocol);
        let mut sink: ConnectionSink = Timed::new(channel.writer, writing.clone());
        let peer = DaemonPeer(settings.name.clone());
        let offered = Capabilities {
            version: settings.version,
            features: settings.features.clone(),
        };
        let shaken = handshake::client(&mut reader, &mut sink, &offered, log).await;
        let hello = match shaken {
            Ok(hello) => hello,
            Err(error) => return Err(peer.not_shaken(error, &mut reader).await),
        };
        let protocol = reader.protocol().clone();
        writing.set(settings.timeout);
        let mut connection = Connection {
            input: DaemonInput {
                reader,
                greeting: false,
                patience: reading,
                peer: peer.clone(),
            },
            output: DaemonOutput {
                writer: Writer::new(protocol),
                sink,
                peer,
            },
            flight: Flight::default(),
            hello,
            settings,
            opened: Instant::now(),
            _guard: channel.guard,
        };
        connection.greet()?;
        Ok(connection)
    }

    /// Writes the options ahead: the answer is read with that of the first operation.
    fn greet(&mut self) -> Result<()> {
        let settings = self.settings.clone();
        let wanted = !self.protocol().has(features::DISABLE_SET_OPTIONS);
        if let Some(options) = settings.options.as_ref().filter(|_| wanted) {
            self.output.request(options)?;
            self.input.greeting = true;
        }
        Ok(())
    }

    /// The version and features agreed on.
    pub fn protocol(&self) -> &WorkerProtocol {
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

    /// Asks one thing and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the daemon's words, after which the connection is still clean;
    /// [`Error::Unsupported`] when the daemon does not know this operation; others when the
    /// connection failed.
    pub async fn call<Q: Request>(&mut self, request: &Q, log: &dyn LogSink) -> Result<Q::Reply> {
        let limit = self.patience_for(Q::OP);
        self.transmit(request, None, limit, log).await
    }

    /// As [`Connection::call`], for what may take as long as a build does although others of its kind
    /// do not.
    pub(crate) async fn call_slowly<Q: Request>(
        &mut self,
        request: &Q,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        self.transmit(request, None, None, log).await
    }

    /// As [`Connection::call`], with the framed data that follows the request. Both directions are
    /// served at once, so that a daemon which says no while it is sent data is heard.
    ///
    /// # Errors
    /// The error of `data`, if it has one; the connection is then broken, so that the daemon does
    /// not take a part for the whole.
    pub async fn upload<Q: Request>(
        &mut self,
        request: &Q,
        data: impl Stream<Item = Result<Bytes>> + Send,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        let mut data = pin!(data);
        let limit = self.patience_for(Q::OP);
        self.transmit(request, Some(&mut data), limit, log).await
    }

    async fn transmit<Q: Request>(
        &mut self,
        request: &Q,
        mut data: Option<UploadChunks<'_>>,
        limit: Option<Duration>,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        self.output.request(request)?;
        let transfer = Q::data(self.protocol());
        self.flight.begin();
        let Connection {
            input,
            output,
            flight,
            ..
        } = self;
        let patience = input.patience.clone();
        // While data goes out the daemon owes no word. `write` sets the limit when all of it was sent.
        patience.set(limit.filter(|_| data.is_none()));
        let mut answer = None;
        // The daemon asks for each piece, so writing and reading take turns here instead of running at
        // once.
        if let (Data::Pulled, Some(data)) = (transfer, &mut data) {
            let fed = async {
                output.flush().await?;
                let answer = input.feed::<Q::Reply>(output, *data, log).await?;
                flight.end();
                Ok(answer)
            };
            return fed.await.inspect_err(|_| flight.fail())?;
        }
        let read = async {
            answer = Some(input.answer::<Q::Reply>(Q::OP, log).await?);
            flight.end();
            Ok(())
        };
        let write = async {
            output.flush().await.map_err(Stop::Peer)?;
            if let Some(data) = data {
                output.send(transfer, data).await?;
            }
            patience.set(limit);
            Ok(())
        };
        flight.drive(write, read).await?;
        answer.unwrap_or_else(|| Err(self.output.peer.nothing()))
    }

    /// Asks many things on this one connection: requests are written ahead, up to [`WINDOW`] of
    /// them, while answers are read. Waits for `requests` without holding anything back, so that
    /// what is asked may depend on what was answered. `answered` gets every answer, in order, with
    /// what came with its request; a refusal of one leaves the others.
    ///
    /// # Errors
    /// When the connection failed; what was not answered by then never is.
    pub async fn pipeline<T: Send, Q: Request + Send>(
        &mut self,
        requests: impl Stream<Item = (T, Q)> + Send,
        log: &dyn LogSink,
        mut answered: impl FnMut(T, Result<Q::Reply>) + Send,
    ) -> Result<()> {
        let limit = self.patience_for(Q::OP);
        let Connection {
            input,
            output,
            flight,
            ..
        } = self;
        input.patience.set(limit);
        let (tags, mut open) = mpsc::channel::<(T, Result<()>)>(WINDOW);
        let flying = &*flight;
        let write = async {
            let mut requests = pin!(requests);
            let tags = tags;
            loop {
                let next = output.next(&mut requests).await.map_err(Stop::Peer)?;
                let Some((tag, request)) = next else { break };
                // Answers carry no name: they are matched by order. So each request needs its place in
                // the queue of tags, also one that cannot be written and gets no answer.
                let place = output.place(&tags, None).await?;
                let written = output.request(&request);
                if written.is_ok() {
                    flying.begin();
                }
                place.send((tag, written));
                if output.writer.len() >= AHEAD {
                    output.flush().await.map_err(Stop::Peer)?;
                }
            }
            output.flush().await.map_err(Stop::Peer)
        };
        let read = async {
            while let Some((tag, written)) = open.recv().await {
                let answer = match written {
                    Ok(()) => {
                        let answer = input.answer::<Q::Reply>(Q::OP, log).await?;
                        flying.end();
                        answer
                    }
                    Err(error) => Err(error),
                };
                answered(tag, answer);
            }
            Ok(())
        };
        flying.drive(write, read).await
    }

    /// Sends many NARs with their metadata, each an operation of its own, written ahead like
    /// [`Connection::pipeline`]. A NAR that breaks off (its stream gives an error) ends its own
    /// operation, which the daemon then refuses, and no other.
    ///
    /// `answered` gets for each, in order, its tag and what became of it: the stream's error if
    /// it had one, else the daemon's answer.
    pub(crate) async fn upload_many<T: Send>(
        &mut self,
        mut uploads: impl Stream<Item = (T, AddToStoreNar, NarStream)> + Send + Unpin,
        log: &dyn LogSink,
        mut answered: impl FnMut(T, Result<()>) + Send,
    ) -> Result<()> {
        let limit = self.patience_for(Op::AddToStoreNar);
        let Connection {
            input,
            output,
            flight,
            ..
        } = self;
        // The daemon may say nothing while a NAR goes out. Silence is limited by `place` instead, and by
        // `patience` once all was sent.
        input.patience.set(None);
        let patience = input.patience.clone();
        let (tags, mut open) = mpsc::channel::<PendingUpload<T>>(UPLOADS);
        let answers = &AtomicUsize::new(0);
        let flying = &*flight;
        let write = async {
            let tags = tags;
            let mut begun = 0;
            loop {
                let next = output.next(&mut uploads).await.map_err(Stop::Peer)?;
                let Some((tag, request, nar)) = next else {
                    break;
                };
                let place = output.place(&tags, limit).await?;
                let failure = UploadFailure::default();
                let written = output.request(&request);
                let sent = written.is_ok();
                if sent {
                    flying.begin();
                }
                begun += 1;
                place.send((tag, written, failure.clone()));
                if sent {
                    // An answer before the end of the NAR means that the daemon does not want the rest.
                    let answered = || answers.load(Ordering::Relaxed) >= begun;
                    output.send_one(nar, answered, &failure).await?;
                }
            }
            output.flush().await.map_err(Stop::Peer)?;
            patience.set(limit);
            Ok(())
        };
        let read = async {
            while let Some((tag, written, failure)) = open.recv().await {
                let answer = match written {
                    Ok(()) => {
                        let answer = input.answer::<()>(Op::AddToStoreNar, log).await?;
                        flying.end();
                        answer
                    }
                    Err(error) => Err(error),
                };
                answers.fetch_add(1, Ordering::Relaxed);
                answered(tag, failure.take().map_or(answer, Err));
            }
            Ok(())
        };
        flying.drive(write, read).await
    }

    /// Up to the first byte of a NAR; false, and the connection of no use, if there is none.
    async fn begin_nar(&mut self, path: &StorePath, log: &dyn LogSink) -> Result<bool> {
        self.input.patience.set(self.settings.timeout);
        let path = path.clone();
        self.output.request(&IsValidPath { path: path.clone() })?;
        self.flight.begin();
        self.output.request(&NarFromPath { path })?;
        self.flight.begin();
        self.output.flush().await?;
        if !self.input.answer(Op::IsValidPath, log).await?? {
            return Ok(false);
        }
        self.flight.end();
        // This one stays owed until the NAR was read to its end: before that the connection is not clean.
        self.input.answer::<()>(Op::NarFromPath, log).await??;
        Ok(true)
    }

    /// Waits at most as long as that operation may be silent.
    fn patience_for(&self, op: Op) -> Option<Duration> {
        self.settings.timeout.filter(|_| !is_long(op))
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("to", &self.settings.name)
            .field("protocol", self.protocol())
            .field("clean", &self.is_clean())
            .finish()
    }
}

/// The NAR of `path`, from the connection that `lease` lends; the lease goes when the NAR ends.
/// `None` if the path is not valid.
///
/// Whether it is valid is asked in the same breath: a daemon asked for the NAR of a path that is
/// not breaks the connection off.
pub(crate) async fn nar<L>(
    mut lease: L,
    path: &StorePath,
    log: &dyn LogSink,
) -> Result<Option<NarStream>>
where
    L: DerefMut<Target = Connection> + Send + Unpin + 'static,
{
    let began = lease.begin_nar(path, log).await;
    if !began.inspect_err(|_| lease.flight.fail())? {
        return Ok(None);
    }
    let peer = lease.output.peer.clone();
    let nar = NarRead::new(NarLease(lease));
    let next = move |nar: Option<NarRead<NarLease<L>>>| {
        let peer = peer.clone();
        async move {
            let Some(mut nar) = nar else { return Ok(None) };
            let chunk = nar.next_chunk().await.map_err(|e| peer.failed(e))?;
            let rest = if nar.is_ended() {
                nar.into_inner().0.flight.end();
                None
            } else {
                Some(nar)
            };
            Ok(Some((chunk.unwrap_or_default(), rest)))
        }
    };
    Ok(Some(futures::stream::try_unfold(Some(nar), next).boxed()))
}

/// A connection whose reader is in the middle of a NAR.
struct NarLease<L>(L);

impl<L: Deref<Target = Connection>> Deref for NarLease<L> {
    type Target = WireReader<ConnectionSource, WorkerProtocol>;

    fn deref(&self) -> &Self::Target {
        &self.0.input.reader
    }
}

impl<L: DerefMut<Target = Connection>> DerefMut for NarLease<L> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0.input.reader
    }
}

type ConnectionSource = Timed<Box<dyn AsyncRead + Send + Unpin>>;
type ConnectionSink = Timed<Box<dyn AsyncWrite + Send + Unpin>>;
type UploadChunks<'a> = &'a mut (dyn Stream<Item = Result<Bytes>> + Send + Unpin);
/// An upload that waits for its answer; whether its request could be written, and why its data
/// broke off.
type PendingUpload<T> = (T, Result<()>, UploadFailure);

/// What the daemon says.
struct DaemonInput {
    reader: WireReader<ConnectionSource, WorkerProtocol>,
    /// The options were sent and not answered yet.
    greeting: bool,
    patience: SilenceLimit,
    peer: DaemonPeer,
}

impl DaemonInput {
    /// Reads up to the end of an operation's log. The outer error is that of the connection.
    async fn wait(&mut self, log: &dyn LogSink) -> Result<Result<(), RemoteError>> {
        if self.greeting {
            let greeted = self.wait_once(log).await?;
            greeted.map_err(|e| self.peer.refused(e))?;
            self.greeting = false;
        }
        self.wait_once(log).await
    }

    async fn wait_once(&mut self, log: &dyn LogSink) -> Result<Result<(), RemoteError>> {
        loop {
            match self.message(log).await? {
                None => {}
                Some(Message::Last) => return Ok(Ok(())),
                Some(Message::Error(error)) => return Ok(Err(error)),
                Some(other) => return Err(self.unexpected(&other)),
            }
        }
    }

    /// The next message that is not for the log.
    async fn message(&mut self, log: &dyn LogSink) -> Result<Option<Message>> {
        match self.reader.message().await {
            Ok(Message::Log(event)) => {
                log.event(event);
                Ok(None)
            }
            Ok(message) => Ok(Some(message)),
            Err(error) => Err(self.peer.failed(error)),
        }
    }

    /// Reads the log and the reply. The outer error is that of the connection, the inner one the
    /// daemon's refusal.
    async fn answer<T: Decode<WorkerProtocol>>(
        &mut self,
        op: Op,
        log: &dyn LogSink,
    ) -> Result<Result<T>> {
        match self.wait(log).await? {
            Ok(()) => self.reply(op).await.map(Ok),
            Err(refusal) => Ok(Err(self.peer.refused(refusal))),
        }
    }

    async fn reply<T: Decode<WorkerProtocol>>(&mut self, op: Op) -> Result<T> {
        match op {
            Op::QueryAllValidPaths => self.reader.begin_message_of(ALL_PATHS),
            Op::QueryValidPaths | Op::QuerySubstitutablePaths | Op::QueryMissing => {
                self.reader.begin_message_of(MANY_PATHS);
            }
            _ => self.reader.begin_message(),
        }
        let reply = self.reader.value::<T>().await;
        reply.map_err(|e| self.peer.failed(e))
    }

    /// As [`DaemonInput::answer`], where the daemon asks for the data piece by piece.
    async fn feed<T: Decode<WorkerProtocol>>(
        &mut self,
        output: &mut DaemonOutput,
        data: UploadChunks<'_>,
        log: &dyn LogSink,
    ) -> Result<Result<T>> {
        let mut rest = Bytes::new();
        if self.greeting {
            let greeted = self.wait_once(log).await?;
            greeted.map_err(|e| self.peer.refused(e))?;
            self.greeting = false;
        }
        loop {
            match self.message(log).await? {
                None => {}
                Some(Message::Last) => return self.reply(Op::AddToStoreNar).await.map(Ok),
                Some(Message::Error(error)) => return Ok(Err(self.peer.refused(error))),
                Some(Message::Read(wanted)) => {
                    // An empty piece would mean the end of the data, so empty chunks are passed over.
                    while rest.is_empty() {
                        match data.next().await {
                            Some(chunk) => rest = chunk?,
                            None => break,
                        }
                    }
                    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                    let piece = rest.split_to(rest.len().min(wanted));
                    output.writer.bytes(&piece);
                    output.flush().await?;
                }
                Some(other) => return Err(self.unexpected(&other)),
            }
        }
    }

    fn unexpected(&self, message: &Message) -> Error {
        let what = match message {
            Message::Read(_) => "it asks for data where it gets none",
            _ => "it sends data where none was asked for",
        };
        self.peer.failed(self.reader.malformed(what))
    }
}

/// What is said to the daemon.
struct DaemonOutput {
    writer: Writer<WorkerProtocol>,
    sink: ConnectionSink,
    peer: DaemonPeer,
}

impl DaemonOutput {
    /// Writes a request to the buffer; after an error nothing of it is there.
    fn request<Q: Request>(&mut self, request: &Q) -> Result<()> {
        let written = request.write(&mut self.writer);
        written.map_err(|e| self.peer.failed(e))
    }

    /// Sends what is in the buffer, and flushes the stream.
    async fn flush(&mut self) -> Result<()> {
        let mut bytes = self.writer.take();
        let sent = async {
            self.sink.write_all_buf(&mut bytes).await?;
            self.sink.flush().await
        };
        sent.await.map_err(|e| self.peer.failed(e.into()))
    }

    /// The next item; sends the buffer if that has to be waited for.
    async fn next<S: Stream + Unpin>(&mut self, items: &mut S) -> Result<Option<S::Item>> {
        match items.next().now_or_never() {
            Some(next) => Ok(next),
            None => {
                self.flush().await?;
                Ok(items.next().await)
            }
        }
    }

    /// Room for one more open request; sends the buffer if that has to be waited for.
    async fn place<'a, T>(
        &mut self,
        tags: &'a mpsc::Sender<T>,
        limit: Option<Duration>,
    ) -> Result<mpsc::Permit<'a, T>, Stop> {
        if let Ok(place) = tags.try_reserve() {
            return Ok(place);
        }
        self.flush().await.map_err(Stop::Peer)?;
        match within(limit, tags.reserve()).await {
            Some(place) => place.map_err(|_| Stop::Deaf),
            None => Err(Stop::Peer(self.peer.silent(limit))),
        }
    }

    /// Sends the buffer once it is worth it.
    async fn flush_some(&mut self) -> Result<()> {
        match self.writer.len() {
            0..AHEAD => Ok(()),
            _ => self.flush().await,
        }
    }

    /// Sends all of `data`.
    async fn send(&mut self, transfer: Data, data: UploadChunks<'_>) -> Result<(), Stop> {
        while let Some(chunk) = data.next().await {
            let chunk = chunk.map_err(Stop::Source)?;
            let sent = match transfer {
                Data::Framed => self.frame(chunk).await,
                _ => self.bytes(chunk).await,
            };
            sent.map_err(Stop::Peer)?;
        }
        if transfer == Data::Framed {
            self.writer.raw(&FRAME_END);
        }
        self.flush().await.map_err(Stop::Peer)
    }

    /// Sends a NAR as frames, and the end of them whatever happens to the NAR; stops early where
    /// the daemon has `answered`.
    async fn send_one(
        &mut self,
        mut nar: NarStream,
        answered: impl Fn() -> bool,
        failure: &UploadFailure,
    ) -> Result<(), Stop> {
        while !answered() {
            match self.next(&mut nar).await.map_err(Stop::Peer)? {
                None => break,
                Some(Ok(chunk)) => self.frame(chunk).await.map_err(Stop::Peer)?,
                Some(Err(error)) => {
                    failure.set(error);
                    break;
                }
            }
        }
        self.writer.raw(&FRAME_END);
        self.flush_some().await.map_err(Stop::Peer)
    }

    async fn frame(&mut self, chunk: Bytes) -> Result<()> {
        for (header, bytes) in frames(chunk) {
            self.writer.raw(&header);
            self.bytes(bytes).await?;
        }
        Ok(())
    }

    /// Sends the buffer and `bytes`; few bytes go into the buffer.
    async fn bytes(&mut self, bytes: Bytes) -> Result<()> {
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
struct Flight {
    owed: AtomicUsize,
    broken: AtomicBool,
}

impl Flight {
    fn begin(&self) {
        self.owed.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.owed.fetch_sub(1, Ordering::Relaxed);
    }

    fn fail(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    fn is_clean(&self) -> bool {
        self.owed.load(Ordering::Relaxed) == 0 && !self.broken.load(Ordering::Relaxed)
    }

    /// Writes and reads at once: neither direction waits for the other.
    async fn drive(
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
enum Stop {
    /// What was to be sent could not be had.
    Source(Error),
    /// The daemon takes nothing more.
    Peer(Error),
    /// Nobody reads answers any more; the one who did knows why.
    Deaf,
}

/// Why the data of an upload broke off.
#[derive(Clone, Default)]
struct UploadFailure(Arc<std::sync::Mutex<Option<Error>>>);

impl UploadFailure {
    fn set(&self, error: Error) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
    }

    fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

/// The name of the far end, for errors.
#[derive(Clone)]
struct DaemonPeer(Arc<str>);

impl DaemonPeer {
    fn failed(&self, error: WireError) -> Error {
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

    fn refused(&self, error: RemoteError) -> Error {
        Error::Refused {
            who: self.0.to_string(),
            words: error.plain(),
        }
    }

    /// Why there is no connection; what the peer says instead of the protocol is still in `reader`.
    async fn not_shaken(
        &self,
        error: HandshakeError,
        reader: &mut WireReader<ConnectionSource, WorkerProtocol>,
    ) -> Error {
        let begin = match &error {
            HandshakeError::Magic(number) => Some(*number),
            _ => None,
        };
        if (begin.is_some() || matches!(&error, HandshakeError::Wire(error) if error.is_end()))
            && let Some(text) = reader.foreign_text(begin, handshake::SERVER_MAGIC).await
        {
            let words = begins_with(&text, "worker");
            return Error::malformed(format!("what {} says", self.0), words);
        }
        match error {
            HandshakeError::Wire(error) if error.is_bare_end() => Error::io(
                format!("talking to {}", self.0),
                io::Error::new(io::ErrorKind::UnexpectedEof, NOT_GREETED),
            ),
            HandshakeError::Wire(error) => self.failed(error),
            HandshakeError::Refused(error) => self.refused(error),
            error => Error::malformed(format!("what {} says", self.0), error),
        }
    }

    fn silent(&self, limit: Option<Duration>) -> Error {
        self.failed(silence(limit).into())
    }

    fn nothing(&self) -> Error {
        self.failed(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

/// `None` when `limit` has passed before `future` was ready.
async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

/// Whether the daemon may have to work for long before it says anything.
pub(crate) fn is_long(op: Op) -> bool {
    matches!(
        op,
        Op::BuildPaths
            | Op::BuildPathsWithResults
            | Op::BuildDerivation
            | Op::EnsurePath
            | Op::QueryMissing
            | Op::CollectGarbage
            | Op::FindRoots
            | Op::OptimiseStore
            | Op::VerifyStore
    )
}

/// What is known of a daemon that hangs up before it has said anything.
const NOT_GREETED: &str = "it closed the connection at once; a nix-daemon does so to users whom its \
                           allowed-users leaves out";
/// What an answer about many paths may take, in bytes: enough for 500,000.
const MANY_PATHS: u64 = 128 << 20;
/// Requests that may be written before the first of them is answered.
pub const WINDOW: usize = 512;
/// The same for uploads.
const UPLOADS: usize = 64;
/// Bytes of requests that are collected before they are sent, if there are more to come.
const AHEAD: usize = 32 << 10;
/// Less data than this, in bytes, is sent together with what comes next.
const SMALL: usize = 4 << 10;
/// How long to listen to a daemon that takes nothing more.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The memory that the list of all paths may take, in bytes: a million.
const ALL_PATHS: u64 = 256 << 20;
