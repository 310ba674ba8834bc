//! Connections that break, stall and lie at every byte, and daemons that die.

use crate::support::{RigDaemon, VERSIONS, each_version, made::nar_of, report};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tk_daemon::{
    DaemonConfig, DaemonStore, UnixTransport,
    client::{Channel, Transport},
    wire::Writer,
    worker::ops::AddMultipleToStore,
};
use tk_narinfo::PathInfo;
use tk_path::{NarHash, StoreDir, StorePath};
use tk_store::{Error, Graph, Result, SigCheck, Store, StoreExt, nar};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the daemon says breaks off, stalls or is garbled at each byte of a recorded session.
#[test]
fn what_the_daemon_says() {
    let mut table = String::new();
    for version in VERSIONS {
        let Some(daemon) = RigDaemon::start(version, true) else {
            continue;
        };
        let file = add_file(&daemon);
        let recorded = real_time().block_on(record(&daemon, &file));
        let length = recorded.length();
        // Without a fault the recording is as good as the daemon.
        replay(&recorded, &file, None).unwrap();
        let places = (0..length).filter(|at| *at < 1024 || at % 7 == 0);
        let places: Vec<_> = places.collect();
        let mut wrong = Vec::new();
        for &at in &places {
            for kind in [Kind::Cut, Kind::Stall, Kind::Garble] {
                let answer = replay(&recorded, &file, Some(Fault { kind, at }));
                // Some garbled answers are other answers.
                if answer.is_ok() && kind != Kind::Garble {
                    wrong.push(format!("{version}: {kind:?} at byte {at} was not noticed"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let places = places.len();
        writeln!(
            table,
            "  from {version:<8} {length:>6} bytes, {places:>5} places × 3 faults"
        )
        .unwrap();
    }
    if !table.is_empty() {
        report("Faults in the worker protocol", &table);
    }
}

each_version!(async what_the_client_says);

/// What the client says breaks off or stalls at each byte: never is a path there.
async fn what_the_client_says(version: &'static str) {
    let Some(daemon) = RigDaemon::start(version, true) else {
        return;
    };
    let clean = open(&daemon, |_| {});
    let before = clean.all_paths().await.unwrap();
    let (info, nar) = sample("torn", b"torn apart in the middle");
    let add = |store: DaemonStore| {
        let item = (info.clone(), nar::from_bytes(nar.clone()));
        async move {
            let items = stream::iter([Ok(item)]).boxed();
            let report = store.add(items, &SigCheck::Skip.into()).await;
            report.is_ok_and(|report| report.failed.is_empty())
        }
    };
    let length = {
        let (other, nar) = sample("born", b"born in one piece, and as long.");
        let counted = Torn::new(&daemon, Kind::Cut, usize::MAX);
        let store = through(counted.clone());
        let item = (other, nar::from_bytes(nar));
        store
            .add(stream::iter([Ok(item)]).boxed(), &SigCheck::Skip.into())
            .await
            .unwrap();
        counted.written()
    };
    // The other sample is a little longer: every place is in the middle.
    let cuts = (0..length - 16).map(|at| (Kind::Cut, at));
    let stalls = (0..length - 16).step_by(23).map(|at| (Kind::Stall, at));
    let tries = stream::iter(cuts.chain(stalls)).map(|(kind, at)| {
        let store = through(Torn::new(&daemon, kind, at));
        let added = tokio::time::timeout(Duration::from_secs(60), add(store));
        added.map(move |added| (kind, at, added))
    });
    let mut tries = tries.buffer_unordered(8);
    while let Some((kind, at, added)) = tries.next().await {
        let added = added.unwrap_or_else(|_| panic!("{kind:?} at {at} hangs"));
        assert!(
            !added,
            "{version}: {kind:?} at byte {at} of {length} was not noticed"
        );
    }
    drop(tries);
    // Those who serve the broken connections may need a moment to give up.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut after = clean.all_paths().await.unwrap();
    after.retain(|path| path.name() != "born");
    assert_eq!(after, before, "a path came out of a broken connection");
    assert!(add(clean).await, "and nothing is in the way of the path");
}

each_version!(async a_daemon_that_is_killed);

/// The daemon is killed while it takes paths: what it had not got whole is not there.
async fn a_daemon_that_is_killed(version: &'static str) {
    for several in [true, false] {
        let Some(daemon) = RigDaemon::start(version, true) else {
            continue;
        };
        let daemon = Arc::new(daemon);
        let before = daemon.ask("nix", &["path-info", "--all"]);
        let (info, nar) = sample("half", &[7; 3 << 20]);
        let store = open(&daemon, |_| {});
        let added = if several {
            add_several(&store, &daemon, &info, &nar).await.map(drop)
        } else {
            let nar = dying(&daemon, BytesMut::new(), nar).boxed();
            store
                .add(
                    stream::iter([Ok((info, nar))]).boxed(),
                    &SigCheck::Skip.into(),
                )
                .await
                .map(drop)
        };
        assert!(
            matches!(added, Err(Error::Io { .. })),
            "{version}: {added:?}"
        );
        assert!(
            store.all_paths().await.is_err(),
            "there is no daemon any more"
        );
        let after = daemon.sh("NIX_REMOTE=local nix path-info --all");
        assert_eq!(after.stdout.trim_end(), before, "{version}");
    }
}

async fn add_several(
    store: &DaemonStore,
    daemon: &Arc<RigDaemon>,
    info: &PathInfo,
    nar: &Bytes,
) -> Result<()> {
    let mut connection = store.connection().await?;
    let mut head = Writer::new(AddMultipleToStore::item_protocol(connection.protocol()));
    head.count(1);
    head.value(info).unwrap();
    let request = AddMultipleToStore {
        repair: false,
        dont_check_signatures: true,
    };
    let data = dying(daemon, head.take(), nar.clone());
    connection.upload(&request, data, &()).await
}

/// `head` and `nar`, in the middle of which the daemon is killed.
fn dying(
    daemon: &Arc<RigDaemon>,
    head: BytesMut,
    nar: Bytes,
) -> impl stream::Stream<Item = Result<Bytes>> + Send + 'static {
    let daemon = daemon.clone();
    let half = nar.len() / 2;
    let first = stream::iter([Ok(head.freeze()), Ok(nar.slice(..half))]);
    let first = first.try_filter(|chunk| std::future::ready(!chunk.is_empty()));
    let second = stream::once(async move {
        daemon.kill().await;
        Ok(nar.slice(half..))
    });
    first.chain(second)
}

/// Asks and adds a bit of everything on one connection, by the daemon alone.
async fn session(store: &DaemonStore, file: &StorePath) -> Result<()> {
    let paths = BTreeSet::from([file.clone(), sample("absent", b"absent").0.path]);
    let valid = store.valid(&paths).await?;
    let infos: Vec<_> = store
        .infos(stream::iter(paths).boxed())
        .try_collect()
        .await?;
    let there = infos.iter().filter(|(_, info)| info.is_some()).count();
    let info = store.require_info(file).await?;
    let nar: Vec<Bytes> = store.nar(file).await?.try_collect().await?;
    let (other, other_nar) = sample("added", b"added");
    store
        .add_one(other, nar::from_bytes(other_nar), &SigCheck::Skip.into())
        .await?;
    store.find(&file.to_hash_part()).await?;
    match (
        valid.len(),
        there,
        NarHash::digest(&nar.concat()) == info.nar_hash,
    ) {
        (1, 1, true) => Ok(()),
        other => Err(Error::invalid(format!("other answers: {other:?}"))),
    }
}

async fn record(daemon: &RigDaemon, file: &StorePath) -> Recording {
    let recorder = Arc::new(Recorder {
        inner: UnixTransport::new(daemon.socket()),
        recording: Arc::default(),
    });
    session(&through(recorder.clone()), file).await.unwrap();
    let recording = recorder.recording.lock().unwrap().clone();
    assert_eq!(recording.connections, 1);
    recording
}

/// The session with a recording for a daemon, at once: time passes only where all wait.
fn replay(recording: &Recording, file: &StorePath, fault: Option<Fault>) -> Result<()> {
    let player = Arc::new(Player {
        recording: recording.clone(),
        fault,
        connections: Mutex::new(0),
    });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    let store = through(player);
    let work =
        async { tokio::time::timeout(Duration::from_secs(1000), session(&store, file)).await };
    let answer = runtime.block_on(work);
    answer.unwrap_or_else(|_| panic!("{fault:?} hangs"))
}

fn real_time() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn add_file(daemon: &RigDaemon) -> StorePath {
    let file = daemon.folder().join("file");
    std::fs::write(&file, "what is there\n").unwrap();
    let path = daemon.ask("nix-store", &["--add", file.to_str().unwrap()]);
    StoreDir::default().parse(&path).unwrap()
}

fn sample(name: &str, content: &[u8]) -> (PathInfo, Bytes) {
    let nar = nar_of(content);
    let path = StorePath::from_digest(&[9; 20], name).unwrap();
    (
        PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64),
        nar,
    )
}

fn open(daemon: &RigDaemon, change: impl FnOnce(&mut DaemonConfig)) -> DaemonStore {
    let mut config = DaemonConfig::new("unix://");
    config.timeout = Some(Duration::from_secs(30));
    change(&mut config);
    DaemonStore::new(Arc::new(UnixTransport::new(daemon.socket())), config)
}

/// A store with one connection and little patience.
fn through(transport: Arc<dyn Transport>) -> DaemonStore {
    let mut config = DaemonConfig::new("test://");
    config.max_connections = 1;
    config.timeout = Some(Duration::from_millis(500));
    config.connect_timeout = Some(Duration::from_millis(5000));
    DaemonStore::new(transport, config)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cut,
    Stall,
    Garble,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    kind: Kind,
    at: usize,
}

/// What a daemon said, each piece with how much it had heard by then.
#[derive(Debug, Clone, Default)]
struct Recording {
    pieces: Vec<(usize, Vec<u8>)>,
    heard: usize,
    connections: usize,
}

impl Recording {
    fn length(&self) -> usize {
        self.pieces.iter().map(|(_, piece)| piece.len()).sum()
    }
}

#[derive(Debug)]
struct Recorder {
    inner: UnixTransport,
    recording: Arc<Mutex<Recording>>,
}

#[async_trait]
impl Transport for Recorder {
    async fn connect(&self) -> Result<Channel> {
        let channel = self.inner.connect().await?;
        self.recording.lock().unwrap().connections += 1;
        let reader = Recorded(channel.reader, self.recording.clone());
        Ok(Channel::new(
            reader,
            Recorded(channel.writer, self.recording.clone()),
        ))
    }
}

struct Recorded<T>(T, Arc<Mutex<Recording>>);

impl<T: AsyncRead + Unpin> AsyncRead for Recorded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.0).poll_read(context, out);
        let mut recording = self.1.lock().unwrap();
        let piece = out.filled()[before..].to_vec();
        if !piece.is_empty() {
            let heard = recording.heard;
            recording.pieces.push((heard, piece));
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Recorded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.1.lock().unwrap().heard += written;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Says what was recorded once it has heard as much as the daemon had, up to a fault.
#[derive(Debug)]
struct Player {
    recording: Recording,
    fault: Option<Fault>,
    connections: Mutex<usize>,
}

#[async_trait]
impl Transport for Player {
    async fn connect(&self) -> Result<Channel> {
        let mut connections = self.connections.lock().unwrap();
        *connections += 1;
        if *connections > 1 {
            return Err(Error::invalid("the daemon takes no second connection"));
        }
        let stage = Arc::new(Mutex::new(Stage {
            pieces: self.recording.pieces.clone(),
            ..Stage::default()
        }));
        let reader = Played(stage.clone(), self.fault);
        Ok(Channel::new(reader, Played(stage, None)))
    }
}

#[derive(Default)]
struct Stage {
    pieces: Vec<(usize, Vec<u8>)>,
    heard: usize,
    said: usize,
    waker: Option<Waker>,
}

struct Played(Arc<Mutex<Stage>>, Option<Fault>);

impl Played {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap()
    }
}

impl AsyncRead for Played {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut stage = self.stage();
        stage.waker = Some(context.waker().clone());
        let until = match self.1 {
            Some(Fault { kind, at }) if stage.said == at && kind != Kind::Garble => {
                return match kind {
                    Kind::Cut => Poll::Ready(Ok(())),
                    _ => Poll::Pending,
                };
            }
            Some(Fault { at, .. }) if stage.said < at => at - stage.said,
            _ => usize::MAX,
        };
        let garbled = matches!(self.1, Some(fault) if fault.at == stage.said);
        match stage.pieces.first() {
            Some((needed, _)) if stage.heard >= *needed => {}
            _ => return Poll::Pending,
        }
        let piece = &mut stage.pieces[0].1;
        let length = piece.len().min(out.remaining()).min(until);
        let mut bytes: Vec<u8> = piece.drain(..length).collect();
        if piece.is_empty() {
            stage.pieces.remove(0);
        }
        if garbled {
            bytes[0] ^= 0x5a;
        }
        out.put_slice(&bytes);
        stage.said += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Played {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut stage = self.stage();
        stage.heard += bytes.len();
        if let Some(waker) = stage.waker.take() {
            waker.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Connections to a real daemon on which the client gets only so many bytes out.
#[derive(Debug)]
struct Torn {
    inner: UnixTransport,
    fault: Fault,
    written: Arc<Mutex<usize>>,
}

impl Torn {
    fn new(daemon: &RigDaemon, kind: Kind, at: usize) -> Arc<Torn> {
        Arc::new(Torn {
            inner: UnixTransport::new(daemon.socket()),
            fault: Fault { kind, at },
            written: Arc::default(),
        })
    }

    fn written(&self) -> usize {
        *self.written.lock().unwrap()
    }
}

#[async_trait]
impl Transport for Torn {
    async fn connect(&self) -> Result<Channel> {
        let channel = self.inner.connect().await?;
        let writer = TornWriter {
            inner: Some(channel.writer),
            fault: self.fault,
            written: self.written.clone(),
        };
        Ok(Channel::new(channel.reader, writer))
    }
}

struct TornWriter {
    inner: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    fault: Fault,
    written: Arc<Mutex<usize>>,
}

impl AsyncWrite for TornWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = self.fault.at.saturating_sub(*self.written.lock().unwrap());
        if room == 0 && self.fault.kind == Kind::Stall {
            return Poll::Pending;
        }
        if room == 0 {
            // The daemon sees the end.
            self.inner = None;
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let written = Pin::new(inner).poll_write(context, &bytes[..bytes.len().min(room)]);
        if let Poll::Ready(Ok(written)) = written {
            *self.written.lock().unwrap() += written;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a daemon that is listened to")
    }
}

impl fmt::Display for Player {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a recording")
    }
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a daemon behind a bad line")
    }
}
