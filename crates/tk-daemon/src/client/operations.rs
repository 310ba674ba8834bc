//! What can be asked on a connection of the worker protocol.

use super::{
    Connection, ConnectionInput, ConnectionOutput, DaemonLease,
    connection::{AHEAD, Stop, within},
};
use crate::{
    wire::{Data, Decode, FRAME_END, Request, frames},
    worker::{
        WorkerProtocol,
        log::{Message, RemoteError},
        ops::{AddToStoreNar, IsValidPath, NarFromPath, Op},
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tk_path::StorePath;
use tk_store::{Error, NarStream, Result, log::LogSink};
use tokio::sync::mpsc;

impl Connection {
    /// Asks one thing and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the daemon's words, after which the connection is still clean;
    /// [`Error::Unsupported`] when the daemon does not know this operation; others when the
    /// connection failed.
    pub async fn call<Q: Request<WorkerProtocol>>(
        &mut self,
        request: &Q,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        let limit = self.patience_for(Q::OP);
        self.transmit(request, None, limit, log).await
    }

    /// As [`Connection::call`], for what may take as long as a build does although others of its kind
    /// do not.
    pub(crate) async fn call_slowly<Q: Request<WorkerProtocol>>(
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
    pub async fn upload<Q: Request<WorkerProtocol>>(
        &mut self,
        request: &Q,
        data: impl Stream<Item = Result<Bytes>> + Send,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        let mut data = pin!(data);
        let limit = self.patience_for(Q::OP);
        self.transmit(request, Some(&mut data), limit, log).await
    }

    async fn transmit<Q: Request<WorkerProtocol>>(
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
    pub async fn pipeline<T: Send, Q: Request<WorkerProtocol> + Send>(
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
                let next = output.wait_for(requests.next()).await.map_err(Stop::Peer)?;
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
                let next = output.wait_for(uploads.next()).await.map_err(Stop::Peer)?;
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
        self.input.patience.set(self.timeout);
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
        self.timeout.filter(|_| !is_long(op))
    }
}

impl DaemonLease {
    /// The NAR of `path`; the connection is given back when the NAR ends. `None` if the path is not valid.
    ///
    /// Whether it is valid is asked in the same breath: a daemon asked for the NAR of a path that is
    /// not breaks the connection off.
    pub(crate) async fn nar(
        mut self,
        path: &StorePath,
        log: &dyn LogSink,
    ) -> Result<Option<NarStream>> {
        let began = self.begin_nar(path, log).await;
        let began = began.inspect_err(|_| self.flight.fail())?;
        Ok(began.then(|| self.into_nar()))
    }
}

type UploadChunks<'a> = &'a mut (dyn Stream<Item = Result<Bytes>> + Send + Unpin);
/// An upload that waits for its answer; whether its request could be written, and why its data
/// broke off.
type PendingUpload<T> = (T, Result<()>, UploadFailure);

impl ConnectionInput<WorkerProtocol> {
    /// Reads the answer to what was asked before the first request.
    async fn greeted(&mut self, log: &dyn LogSink) -> Result<()> {
        if self.greeting {
            let greeted = self.wait(log).await?;
            greeted.map_err(|e| self.peer.refused(e.plain()))?;
            self.greeting = false;
        }
        Ok(())
    }

    /// Reads up to the end of an operation's log. The outer error is that of the connection.
    async fn wait(&mut self, log: &dyn LogSink) -> Result<Result<(), RemoteError>> {
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
        self.greeted(log).await?;
        match self.wait(log).await? {
            Ok(()) => self.reply(op).await.map(Ok),
            Err(refusal) => Ok(Err(self.peer.refused(refusal.plain()))),
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

    /// As [`ConnectionInput::answer`], where the daemon asks for the data piece by piece.
    async fn feed<T: Decode<WorkerProtocol>>(
        &mut self,
        output: &mut ConnectionOutput<WorkerProtocol>,
        data: UploadChunks<'_>,
        log: &dyn LogSink,
    ) -> Result<Result<T>> {
        let mut rest = Bytes::new();
        self.greeted(log).await?;
        loop {
            match self.message(log).await? {
                None => {}
                Some(Message::Last) => return self.reply(Op::AddToStoreNar).await.map(Ok),
                Some(Message::Error(error)) => return Ok(Err(self.peer.refused(error.plain()))),
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

impl ConnectionOutput<WorkerProtocol> {
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
            match self.wait_for(nar.next()).await.map_err(Stop::Peer)? {
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

/// What an answer about many paths may take, in bytes: enough for 500,000.
const MANY_PATHS: u64 = 128 << 20;
/// Requests that may be written before the first of them is answered.
pub const WINDOW: usize = 512;
/// The same for uploads.
const UPLOADS: usize = 64;
/// The memory that the list of all paths may take, in bytes: a million.
const ALL_PATHS: u64 = 256 << 20;
