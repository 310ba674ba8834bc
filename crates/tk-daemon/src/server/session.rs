//! One connection: the handshake, then one request after the other.

use super::{
    Server, ServerEvent,
    activity::{Activity, Noted},
    adding::{PulledRead, WholeRequest},
    clients::AdmittedClient as Place,
    context::{OperationContext, OperationFailure, OperationResult},
    events::Events,
    socket::Socket,
    turns::{Turn, TurnQueue, Turns},
    watch::{HangupWatch, Watched, watched},
};
use crate::{
    client::is_long,
    values::Done,
    wire::{Admission, Admitted, FramedRead, NarRead, Request, WireError, WireReader, Writer},
    worker::{
        Capabilities, Op, Trust, Version, WorkerProtocol,
        handshake::{self, HandshakeError, ServerHello},
        log::Message,
        ops::{self, Data},
    },
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use std::{
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tk_nar::Validator;
use tk_path::{Algorithm, Method, MethodAlgorithm, References, StoreDir, StorePath};
use tk_store::{
    Error, NarStream, Result,
    log::{Level, LogEvent, strip_ansi},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{sleep, timeout},
};

/// The place of a connection that came through a socket.
pub(super) struct Seat {
    pub admitted: Place,
    /// Where the thread is the connection's own: where it waits for the next request.
    pub socket: Option<Socket>,
}

/// The reading end, and what the requests are worked on with.
struct WorkerSession<R, W> {
    reader: WireReader<Noted<Watched<R>>, WorkerProtocol>,
    link: Link<R, W>,
    context: OperationContext,
    stopping: watch::Receiver<bool>,
    seat: Option<Seat>,
    /// Where this client waits for its turn at reading NARs.
    nars: TurnQueue,
    activity: Arc<Activity>,
    number: u64,
    /// The number of requests that were begun on this connection.
    operations: u64,
}

/// The writing end, with a look at the other one.
struct Link<R, W> {
    watch: HangupWatch<R>,
    output: Noted<W>,
    writer: Writer<WorkerProtocol>,
    events: Arc<Events>,
    /// Messages less important than this are not sent.
    verbosity: Level,
}

/// What became of a request that was answered: the words of the refusal, if it was one.
type Answered = Result<Option<String>, OperationFailure>;

impl Server {
    pub(super) async fn serve_until<R, W>(
        &self,
        reader: R,
        writer: W,
        trust: Trust,
        seat: Option<Seat>,
        stopping: watch::Receiver<bool>,
    ) -> Result<()>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let observer = &self.config.observer;
        let admitted = seat.as_ref().map(|seat| &seat.admitted);
        let number = admitted.map_or(1, |admitted| admitted.number);
        let peer = admitted.and_then(|admitted| admitted.peer);
        observer.event(
            number,
            ServerEvent::Connected {
                peer: peer.as_ref(),
            },
        );
        let activity = admitted.map(|admitted| admitted.activity.clone());
        let activity = activity.unwrap_or_default();
        let (reader, watch) = watched(reader);
        let reader = Noted::new(reader, activity.clone());
        let oldest = WorkerProtocol::new(self.abilities.store.dir().clone(), Version::minor(0));
        let context = OperationContext::new(self, trust);
        let queue = |turns: &Arc<Turns>| turns.queue(peer.as_ref(), context.trusted);
        let large = LargeRequests {
            queue: queue(&self.large),
            patience: self.config.request_timeout,
        };
        let reader = WireReader::new(reader, oldest.clone()).with_limits(self.config.limits);
        let mut session = WorkerSession {
            reader: reader.with_admission(Some(Arc::new(large))),
            nars: queue(&self.nars),
            seat,
            link: Link {
                watch,
                output: Noted::new(writer, activity.clone()),
                writer: Writer::new(oldest),
                events: context.events.clone(),
                verbosity: Level::Info,
            },
            context,
            stopping,
            activity,
            number,
            operations: 0,
        };
        let ended = session.run(trust).await;
        let operations = session.operations;
        let error = ended.as_ref().err().map(Error::to_line);
        let error = error.as_deref();
        observer.event(number, ServerEvent::Closed { operations, error });
        ended
    }
}

impl<R, W> WorkerSession<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn run(&mut self, trust: Trust) -> Result<()> {
        let limit = self.context.config.handshake_timeout;
        match timeout(limit, self.shake(trust)).await {
            Ok(shaken) => shaken.map_err(|e| Error::malformed("the handshake of the client", e))?,
            Err(_) => {
                let slow = io::Error::new(io::ErrorKind::TimedOut, "the client is too slow");
                return Err(Error::io("waiting for the handshake", slow));
            }
        }
        let protocol = self.reader.protocol();
        let features: Vec<_> = protocol.features.iter().collect();
        self.tell(ServerEvent::Ready {
            version: &protocol.version.to_string(),
            features: &features.join(","),
            trusted: self.context.trusted,
        });
        self.requests().await
    }

    async fn shake(&mut self, trust: Trust) -> Result<(), HandshakeError> {
        let config = &self.context.config;
        let hello = ServerHello {
            nix_version: Some(config.name.clone()),
            trust: Some(trust),
        };
        let offered = Capabilities::latest(config.features.clone());
        handshake::server(&mut self.reader, &mut self.link.output, &offered, &hello).await?;
        self.link
            .writer
            .set_protocol(self.reader.protocol().clone());
        self.link.writer.value(&Message::Last)?;
        Ok(self.link.flush().await?)
    }

    /// Until the client closes the connection, or the server stops.
    async fn requests(&mut self) -> Result<()> {
        loop {
            let start = Instant::now();
            let mut name = "the next request";
            let answered = match self.next().await {
                Ok(None) => return Ok(()),
                Ok(Some(op)) => {
                    name = op.name();
                    self.operations += 1;
                    self.operation(op).await
                }
                Err(error) => Err(error.into()),
            };
            let (words, ended) = match answered {
                Ok(words) => (words, Ok(())),
                Err(failure) => {
                    let error = self.break_off(failure, name).await;
                    (Some(error.to_line()), Err(error))
                }
            };
            self.tell(ServerEvent::Operation {
                name,
                took: start.elapsed(),
                error: words.as_deref(),
            });
            ended?;
        }
    }

    /// The next operation; `None` if there will be none.
    async fn next(&mut self) -> Result<Option<Op>, WireError> {
        if self.reader.buffered() == 0 {
            // Replies are sent only when no further request is in the buffer: those of a pipeline go
            // together.
            self.flush().await?;
            if let Some(seat) = &self.seat {
                // Under one lock with `Clients::stop`: either that finds this connection idle and ends
                // it, or the stop is seen here. A thread that waits in the socket hears of nothing else.
                if !seat.admitted.goes_idle() {
                    return Ok(None);
                }
                if let Some(socket) = &seat.socket {
                    socket.wait();
                }
            }
            tokio::select! {
                biased;
                _ = self.stopping.wait_for(|stop| *stop) => return Ok(None),
                ended = self.reader.at_end() => if ended? {
                    return Ok(None);
                },
            }
            self.activity.set_idle(false);
        }
        self.reader.begin_message();
        let number: u32 = self.reader.int("the number of an operation").await?;
        let known = Op::from_u64(number.into());
        match known.filter(|op| op.supported(self.reader.protocol())) {
            Some(op) => Ok(Some(op)),
            None => Err(self
                .reader
                .malformed(format_args!("invalid operation {number}"))),
        }
    }

    /// Sends what there is. A large answer is in memory until the client has taken it, for which it has not
    /// for ever.
    async fn flush(&mut self) -> Result<(), WireError> {
        if self.reader.is_admitted() {
            let limit = self.context.config.request_timeout;
            let flushed = timeout(limit, self.link.flush()).await;
            return flushed.unwrap_or_else(|_| Err(too_slow("take a large answer")));
        }
        self.link.flush().await
    }

    /// Tells the client why the connection ends, as far as it can be told.
    async fn break_off(&mut self, failure: OperationFailure, name: &str) -> Error {
        match failure {
            OperationFailure::Refused(error) | OperationFailure::Late(error) => error,
            OperationFailure::Gone => {
                let gone = io::Error::from(io::ErrorKind::ConnectionAborted);
                Error::io(format!("{name}: the client has gone"), gone)
            }
            OperationFailure::Broken(error) => {
                if !error.is_end()
                    && self
                        .link
                        .writer
                        .value(&Message::error(error.to_string()))
                        .is_ok()
                {
                    // Whoever does not read it does not want it.
                    let _ = timeout(LAST_WORDS, self.link.flush()).await;
                }
                Error::malformed(format!("the client's side of {name}"), error)
            }
        }
    }

    fn tell(&self, event: ServerEvent<'_>) {
        self.context.config.observer.event(self.number, event);
    }
}

/// Reads a request, works on it, answers.
macro_rules! answer {
    ($self:ident, |$request:ident: $type:ident| $work:expr) => {{
        let $request: ops::$type = receive(&mut $self.reader, &$self.context).await?;
        let done = $self.link.work(async { $work }).await;
        $self.link.answer::<ops::$type>(done).await
    }};
}

impl<R, W> WorkerSession<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn operation(&mut self, op: Op) -> Answered {
        if has_large_answer(op) {
            self.reader.admit().await?;
        }
        let cx = &self.context;
        match op {
            Op::IsValidPath => answer!(self, |q: IsValidPath| cx.is_valid(&q.path).await),
            Op::QueryValidPaths => answer!(self, |q: QueryValidPaths| {
                cx.valid(q.paths, q.substitute).await
            }),
            Op::QueryPathInfo => answer!(self, |q: QueryPathInfo| {
                Ok(cx.info(&q.path).await?.map(Into::into))
            }),
            Op::QueryPathInfos => answer!(self, |q: QueryPathInfos| cx.infos(q.paths).await),
            Op::QueryDeriver => answer!(self, |q: QueryDeriver| cx.deriver(&q.path).await),
            Op::QueryReferrers => answer!(self, |q: QueryReferrers| cx.referrers(&q.path).await),
            Op::QueryAllValidPaths => answer!(self, |_q: QueryAllValidPaths| cx.all().await),
            Op::QueryValidDerivers => {
                answer!(self, |q: QueryValidDerivers| cx.derivers(&q.path).await)
            }
            Op::QueryPathFromHashPart => {
                answer!(self, |q: QueryPathFromHashPart| cx.find(&q.part).await)
            }
            Op::QueryDerivationOutputMap => answer!(self, |q: QueryDerivationOutputMap| {
                cx.output_map(&q.path).await
            }),
            Op::QueryDerivationOutputs => answer!(self, |q: QueryDerivationOutputs| {
                let outputs = cx.output_map(&q.path).await?;
                Ok(outputs.into_values().flatten().collect())
            }),
            Op::QueryDerivationOutputNames => answer!(self, |q: QueryDerivationOutputNames| {
                Ok(cx.output_map(&q.path).await?.into_keys().collect())
            }),
            Op::QuerySubstitutablePaths => {
                answer!(self, |q: QuerySubstitutablePaths| cx
                    .substitutable(&q.paths)
                    .await)
            }
            Op::QuerySubstitutablePathInfo => {
                answer!(self, |q: QuerySubstitutablePathInfo| {
                    let one = [(q.path.clone(), None)].into();
                    Ok(cx.substitutable_infos(&one).await?.remove(&q.path))
                })
            }
            Op::QuerySubstitutablePathInfos => {
                answer!(self, |q: QuerySubstitutablePathInfos| cx
                    .substitutable_infos(&q.paths)
                    .await)
            }
            Op::AddSignatures => answer!(self, |q: AddSignatures| {
                cx.add_signatures(&q.path, &q.signatures).await.map(done)
            }),
            Op::AddTempRoot => {
                answer!(self, |q: AddTempRoot| cx
                    .add_temp_roots(&[q.path].into())
                    .await
                    .map(done))
            }
            Op::AddTempRoots => answer!(self, |q: AddTempRoots| {
                cx.add_temp_roots(&q.paths).await.map(done)
            }),
            Op::AddIndirectRoot => answer!(self, |q: AddIndirectRoot| {
                cx.add_indirect_root(q.link.as_ref()).await.map(done)
            }),
            Op::AddPermRoot => answer!(self, |q: AddPermRoot| {
                cx.add_perm_root(&q.path, q.link.as_ref()).await?;
                Ok(q.link)
            }),
            // Roots hold at once, there is nothing to wait for.
            Op::SyncWithGC => answer!(self, |_q: SyncWithGC| Ok(Done)),
            Op::FindRoots => answer!(self, |_q: FindRoots| Ok(ops::RootList(cx.roots().await?))),
            Op::CollectGarbage => answer!(self, |q: CollectGarbage| cx.collect_garbage(q).await),
            Op::OptimiseStore => answer!(self, |_q: OptimiseStore| cx.optimise().await.map(done)),
            Op::VerifyStore => {
                answer!(self, |q: VerifyStore| cx
                    .verify(q.check_contents, q.repair)
                    .await)
            }
            Op::EnsurePath => answer!(self, |q: EnsurePath| cx.ensure(&q.path).await.map(done)),
            Op::BuildPaths => {
                answer!(self, |q: BuildPaths| cx
                    .build_all(&q.paths, q.mode)
                    .await
                    .map(done))
            }
            Op::BuildPathsWithResults => {
                answer!(self, |q: BuildPathsWithResults| cx
                    .build(&q.paths, q.mode)
                    .await)
            }
            Op::BuildDerivation => answer!(self, |q: BuildDerivation| {
                cx.build_derivation(&q.path, &q.derivation, q.mode).await
            }),
            Op::QueryMissing => answer!(self, |q: QueryMissing| cx.missing(&q.paths).await),
            Op::QueryRealisation => {
                let old = !self.reader.protocol().at_least(31);
                answer!(self, |q: QueryRealisation| cx.realisation(q, old).await)
            }
            Op::RegisterDrvOutput => answer!(self, |q: RegisterDrvOutput| cx.register(q).await),
            Op::SetOptions => {
                let options: ops::SetOptions = receive(&mut self.reader, cx).await?;
                self.link.verbosity = options.verbosity;
                self.context.set_options(options);
                self.link.answer::<ops::SetOptions>(Ok(())).await
            }
            Op::NarFromPath => self.nar_from_path().await,
            Op::AddToStore => self.add_to_store().await,
            Op::AddTextToStore => self.add_text().await,
            Op::AddToStoreNar => self.add_nar().await,
            Op::AddMultipleToStore => {
                let q: ops::AddMultipleToStore = receive(&mut self.reader, cx).await?;
                let skip = q.dont_check_signatures;
                let work = cx.add_paths(&mut self.reader, q.repair, skip);
                let done = self.link.work(work).await;
                self.link.answer::<ops::AddMultipleToStore>(done).await
            }
            Op::AddBuildLog => {
                let q: ops::AddBuildLog = receive(&mut self.reader, cx).await?;
                let work = cx.add_build_log(FramedRead::new(&mut self.reader), &q.path);
                let done = self.link.work(work).await.map(done);
                self.link.answer::<ops::AddBuildLog>(done).await
            }
            // From within builds, which are not done here.
            Op::SubmitOutput | Op::AddToStoreScanning => {
                let why = format_args!("{op} outside of a build");
                Err(self.reader.malformed(why).into())
            }
        }
    }

    async fn add_to_store(&mut self) -> Answered {
        let q: ops::AddToStore = receive(&mut self.reader, &self.context).await?;
        let cx = &self.context;
        let references = References {
            others: q.references,
            itself: false,
        };
        let add = (q.name.as_str(), q.method, &references);
        let done = match ops::AddToStore::data(self.reader.protocol()) {
            Data::Framed => {
                let plain = matches!(q.method.method, Method::Flat | Method::Text);
                let data = FramedRead::new(&mut self.reader);
                self.link
                    .work(cx.add_content(data, add, plain, q.repair))
                    .await
            }
            _ => {
                let data = NarRead::new(&mut self.reader);
                self.link
                    .work(cx.add_content(data, add, false, q.repair))
                    .await
            }
        };
        let done = done.map(ops::AddedContent::Info);
        self.link.answer::<ops::AddToStore>(done).await
    }

    async fn add_text(&mut self) -> Answered {
        let q: ops::AddTextToStore = receive(&mut self.reader, &self.context).await?;
        let references = References {
            others: q.references,
            itself: false,
        };
        let how = MethodAlgorithm {
            method: Method::Text,
            algorithm: Algorithm::Sha256,
        };
        let add = (q.name.as_str(), how, &references);
        let work = self
            .context
            .add_content(WholeRequest(Some(q.text)), add, true, false);
        let done = self.link.work(work).await.map(|info| info.path);
        self.link.answer::<ops::AddTextToStore>(done).await
    }

    async fn add_nar(&mut self) -> Answered {
        let q: ops::AddToStoreNar = receive(&mut self.reader, &self.context).await?;
        let cx = &self.context;
        let skip = q.dont_check_signatures;
        let done = match ops::AddToStoreNar::data(self.reader.protocol()) {
            Data::Framed => {
                let data = FramedRead::new(&mut self.reader);
                let work = cx.add_path(data, q.info, q.repair, skip);
                self.link.work(work).await
            }
            Data::Pulled => {
                let Link { output, writer, .. } = &mut self.link;
                let data = PulledRead::new(&mut self.reader, output, writer);
                cx.add_path(data, q.info, q.repair, skip).await
            }
            _ => {
                let data = NarRead::new(&mut self.reader);
                let work = cx.add_path(data, q.info, q.repair, skip);
                self.link.work(work).await
            }
        };
        self.link.answer::<ops::AddToStoreNar>(done).await
    }

    /// Answers before the NAR is known to be good: what fails later ends the connection.
    async fn nar_from_path(&mut self) -> Answered {
        let q: ops::NarFromPath = receive(&mut self.reader, &self.context).await?;
        let store = &self.context.abilities.store;
        let nars = &self.nars;
        let open = async {
            let turn = nars.turn().await;
            let mut nar = store.nar(&q.path).await?;
            // What cannot be opened is often seen only with the first bytes.
            let first = nar.next().await.transpose()?;
            Ok((first, (nar, turn)))
        };
        let (first, reading) = match self.link.work(open).await {
            Ok((Some(first), reading)) => (first, reading),
            Ok((None, _)) => {
                let empty = Error::malformed(q.path.to_string(), "its NAR is empty");
                return self
                    .link
                    .answer::<ops::NarFromPath>(Err(empty.into()))
                    .await;
            }
            Err(failure) => return self.link.answer::<ops::NarFromPath>(Err(failure)).await,
        };
        let answered = self.link.answer::<ops::NarFromPath>(Ok(())).await?;
        self.link.flush().await?;
        self.send_nar(&q.path, first, reading).await?;
        Ok(answered)
    }

    /// Sends a NAR whose end nothing but its grammar tells.
    ///
    /// While the client takes nothing and others wait for their turn, nothing is read: what was open is
    /// closed, and opened again where it was left, since what is in a store does not change.
    async fn send_nar(
        &mut self,
        path: &StorePath,
        first: Bytes,
        reading: (NarStream, Turn),
    ) -> OperationResult<()> {
        let late = OperationFailure::Late;
        let bad = |e| late(Error::malformed(format!("the NAR of {path}"), e));
        let mut grammar = Validator::new();
        let mut reading = Some(reading);
        let (mut next, mut sent, mut stops) = (Some(first), 0, 0);
        while let Some(chunk) = next {
            grammar.feed(&chunk).map_err(bad)?;
            sent += chunk.len() as u64;
            let write = self.link.output.write_all(&chunk);
            let mut write = pin!(write);
            let written = loop {
                tokio::select! {
                    biased;
                    written = &mut write => break written,
                    () = sleep(STALL), if reading.is_some() => if self.nars.is_long() {
                        if stops == MOST_STOPS {
                            return Err(too_slow("take the NAR").into());
                        }
                        stops += 1;
                        reading = None;
                    },
                }
            };
            written.map_err(WireError::from)?;
            let (store, nars) = (&self.context.abilities.store, &self.nars);
            let read = async {
                let (nar, _) = match &mut reading {
                    Some(there) => there,
                    none => {
                        let turn = nars.turn().await;
                        none.insert((continued(store.nar(path).await?, sent).await?, turn))
                    }
                };
                nar.next().await.transpose()
            };
            next = tokio::select! {
                biased;
                next = read => next.map_err(late)?,
                () = self.link.watch.gone() => return Err(OperationFailure::Gone),
            };
        }
        grammar.finish().map_err(bad)?;
        self.link.output.flush().await.map_err(WireError::from)?;
        Ok(())
    }
}

/// `nar` from the byte `at` on.
async fn continued(mut nar: NarStream, mut at: u64) -> Result<NarStream> {
    while at > 0 {
        let Some(mut chunk) = nar.next().await.transpose()? else {
            break;
        };
        if let Some(rest) = at.checked_sub(chunk.len() as u64) {
            at = rest;
        } else {
            let rest = chunk.split_off(at as usize);
            return Ok(stream::iter([Ok(rest)]).chain(nar).boxed());
        }
    }
    Ok(nar)
}

/// The request that comes, for which the client has some time. What is worked on for long does not keep others from
/// sending theirs.
async fn receive<R: AsyncRead + Unpin + Send, Q: Request<WorkerProtocol>>(
    reader: &mut WireReader<R, WorkerProtocol>,
    context: &OperationContext,
) -> Result<Q, WireError> {
    let received = timeout(context.config.request_timeout, reader.value()).await;
    let request = received.unwrap_or_else(|_| Err(too_slow("send its request")))?;
    if is_long(Q::OP) {
        reader.release();
    }
    Ok(request)
}

/// Why something was refused. What somebody else has said, perhaps in several lines, is passed on as it is, but
/// for what would colour a terminal.
fn words_for_client(error: &Error, dir: &StoreDir) -> String {
    match error {
        Error::Refused { words, .. } => strip_ansi(words).into_owned(),
        // What Nix says, since programs look for it.
        Error::Untrusted { path, source } => format!(
            "cannot add path '{}' because it lacks a signature by a trusted key: {source}",
            dir.display(path)
        ),
        error => error.to_line(),
    }
}

fn too_slow(to: &str) -> WireError {
    let words = format!("the client is too slow to {to}");
    WireError::Io(io::Error::new(io::ErrorKind::TimedOut, words))
}

/// Whether the answer may take much memory although the request is small.
fn has_large_answer(op: Op) -> bool {
    matches!(
        op,
        Op::QueryAllValidPaths | Op::QueryReferrers | Op::QueryValidDerivers | Op::FindRoots
    )
}

/// Lets a user have few large requests in memory at once.
#[derive(Debug)]
struct LargeRequests {
    queue: TurnQueue,
    patience: Duration,
}

impl Admission for LargeRequests {
    fn admit(&self) -> BoxFuture<'_, io::Result<Admitted>> {
        let turn = async {
            match timeout(self.patience, self.queue.turn()).await {
                Ok(turn) => Ok(Box::new(turn) as Admitted),
                Err(_) => {
                    let words = "others of your large requests are under way";
                    Err(io::Error::new(io::ErrorKind::TimedOut, words))
                }
            }
        };
        turn.boxed()
    }
}

impl<R, W> Link<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    /// Works, and meanwhile sends what there is to tell; unless the client goes away.
    async fn work<T>(
        &mut self,
        work: impl Future<Output = OperationResult<T>>,
    ) -> OperationResult<T> {
        let mut work = pin!(work);
        let events = self.events.clone();
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = events.wait() => {
                    self.log()?;
                    self.flush().await?;
                }
                () = self.watch.gone() => return Err(OperationFailure::Gone),
            }
        }
    }

    /// Answers with the reply or the refusal; any other failure is passed on.
    async fn answer<Q: Request<WorkerProtocol>>(
        &mut self,
        done: OperationResult<Q::Reply>,
    ) -> Answered {
        self.log()?;
        let start = self.writer.len();
        let refusal = match done {
            Ok(reply) => {
                self.writer.value(&Message::Last)?;
                self.writer.value(&reply).err().map(|e| e.to_string())
            }
            Err(OperationFailure::Refused(error)) => {
                Some(words_for_client(&error, &self.writer.protocol().dir))
            }
            Err(failure) => return Err(failure),
        };
        if let Some(words) = &refusal {
            // Nothing of the reply was sent yet, so one that this version cannot express still becomes a
            // refusal.
            self.writer.truncate(start);
            self.writer.value(&Message::error(words.as_str()))?;
        }
        // Replies to requests that came together go together.
        if self.writer.len() >= ENOUGH {
            self.flush().await?;
        }
        Ok(refusal)
    }

    /// Writes down what there is to tell.
    fn log(&mut self) -> Result<(), WireError> {
        for event in self.events.take() {
            let hidden =
                matches!(&event, LogEvent::Message { level, .. } if *level > self.verbosity);
            if !hidden {
                self.writer.value(&Message::Log(event))?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        if !self.writer.is_empty() {
            self.output.write_all(&self.writer.take()).await?;
            self.output.flush().await?;
        }
        Ok(())
    }
}

fn done(_: ()) -> Done {
    Done
}

/// Replies are held back until so many bytes, if requests wait.
const ENOUGH: usize = 64 << 10;
/// How long a client may take nothing of a NAR before others have their turn.
const STALL: Duration = Duration::from_secs(1);
/// How often that may be: to find the place again takes time.
const MOST_STOPS: u32 = 20;
/// How long the client has to read why the connection ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
