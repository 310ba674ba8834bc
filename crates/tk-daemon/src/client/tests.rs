//! The client and a daemon in memory that does what it is told, well or badly.

use super::*;
use crate::{
    DaemonConfig, DaemonStore,
    wire::{Encode, FramedRead, WireReader, Writer},
    worker::{
        Capabilities, Features, Trust, UnkeyedPathInfo, Version, WorkerProtocol, features,
        handshake::{self, ServerHello},
        log::Message,
        ops::*,
    },
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tk_narinfo::PathInfo;
use tk_path::{NarHash, StoreDir, StorePath};
use tk_store::conformance::file_nar;
use tk_store::{
    Error, Result, SigCheck, Store, StoreExt,
    log::{ActivityType, LogEvent, LogField, ResultType},
    nar,
};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    time::{sleep, timeout},
};

/// More questions than may be open at once, through pipes that hold next to nothing.
#[tokio::test]
async fn both_directions_are_served_at_once() {
    let store = store_of(200, |mut peer| async move {
        loop {
            // Answers only once it must, and then many in a row.
            for _ in 0..WINDOW {
                let path = peer.request::<QueryPathInfo>().await.path;
                peer.last(&found(&path)).await;
            }
        }
    });
    let paths: Vec<_> = (0..4 * WINDOW).map(path).collect();
    let infos = store.infos(stream::iter(paths.clone()).boxed());
    let infos: Vec<_> = within(infos.try_collect::<Vec<_>>()).await.unwrap();
    let found: Vec<_> = infos.into_iter().map(|(path, _)| path).collect();
    assert_eq!(found, paths);
}

/// A daemon that answers nothing before it has heard all.
#[tokio::test]
async fn requests_are_written_ahead() {
    let store = store_of(1 << 16, |mut peer| async move {
        let mut heard = Vec::new();
        for _ in 0..WINDOW {
            heard.push(peer.request::<QueryPathInfo>().await.path);
        }
        for path in heard {
            peer.last(&found(&path)).await;
        }
        peer.silence().await
    });
    let infos = store.infos(stream::iter((0..WINDOW).map(path)).boxed());
    let infos: Vec<_> = within(infos.try_collect::<Vec<_>>()).await.unwrap();
    assert_eq!(infos.len(), WINDOW);
}

#[tokio::test]
async fn a_refusal_leaves_the_others() {
    let store = store_of(100, |mut peer| async move {
        for i in 0.. {
            let path = peer.request::<QueryPathInfo>().await.path;
            match i % 3 {
                0 => {
                    peer.say(&Message::error("\u{1b}[31mnot this one\u{1b}[0m"))
                        .await
                }
                1 => peer.last(&None::<UnkeyedPathInfo>).await,
                _ => peer.last(&found(&path)).await,
            }
        }
    });
    let answers = store.infos(stream::iter((0..9).map(path)).boxed());
    let answers: Vec<_> = within(answers.collect::<Vec<_>>()).await;
    for (i, answer) in answers.iter().enumerate() {
        match (i % 3, answer) {
            (0, Err(Error::Refused { who, words })) => {
                assert_eq!((&who[..], &words[..]), ("test://", "not this one"));
            }
            (1, Ok((found, None))) => assert_eq!(*found, path(i)),
            (2, Ok((found, Some(_)))) => assert_eq!(*found, path(i)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answers.len(), 9);
}

/// A daemon that takes many paths at once is asked about all that are at hand, each of them as often
/// as it was named.
#[tokio::test]
async fn many_at_once() {
    let batches = [features::QUERY_PATH_INFOS].into_iter().collect();
    let store = store_speaking(
        batches,
        1000,
        |_| {},
        |mut peer| async move {
            loop {
                let asked = peer.request::<QueryPathInfos>().await.paths;
                if asked.contains(&path(77)) {
                    peer.say(&Message::error("not that one")).await;
                    continue;
                }
                let found = asked.iter().filter(|asked| **asked != path(1));
                peer.last(&found.map(info).collect::<Vec<_>>()).await;
            }
        },
    );
    let names = [0, 1, 2, 2, 0, 1].map(path);
    let answers = store.infos(stream::iter(names.clone()).boxed());
    let answers: Vec<_> = within(answers.try_collect::<Vec<_>>()).await.unwrap();
    let mut found: Vec<_> = answers.iter().map(|(path, _)| path.clone()).collect();
    found.sort();
    let mut names = names.to_vec();
    names.sort();
    assert_eq!(found, names);
    assert!(
        answers
            .iter()
            .all(|(asked, info)| info.is_none() == (*asked == path(1)))
    );
    let refused = store.infos(stream::iter([path(77), path(0)]).boxed());
    let refused: Vec<_> = within(refused.collect::<Vec<_>>()).await;
    assert_eq!(refused.len(), 2);
    assert!(refused.iter().all(Result::is_err));
}

/// Whoever pauses between answers does not keep the only connection for himself.
#[tokio::test]
async fn questions_within_questions() {
    let store = store_with(
        100,
        |config| config.max_connections = 1,
        |mut peer| async move {
            loop {
                match peer.op().await {
                    Op::QueryPathInfo => {
                        let path = peer.body::<QueryPathInfo>().await.path;
                        peer.last(&found(&path)).await;
                    }
                    Op::IsValidPath => {
                        peer.body::<IsValidPath>().await;
                        peer.last(&true).await;
                    }
                    Op::NarFromPath => {
                        peer.body::<NarFromPath>().await;
                        peer.last(&()).await;
                        peer.send(&file_nar(b"x")).await;
                    }
                    other => panic!("{other}"),
                }
            }
        },
    );
    let infos = store.infos(stream::iter((0..20).map(path)).boxed());
    let work = infos.try_for_each(|(path, _)| {
        let store = &store;
        async move {
            let nar: Vec<Bytes> = store.nar(&path).await?.try_collect().await?;
            assert_eq!(nar.concat(), file_nar(b"x"));
            store.require_info(&path).await.map(drop)
        }
    });
    within(work).await.unwrap();
    assert_eq!(store.opened(), 1);
}

/// The daemon says no while it is sent data without end.
#[tokio::test]
async fn an_error_stops_an_upload() {
    let store = store_of(1000, |mut peer| async move {
        peer.request::<AddBuildLog>().await;
        peer.say(&Message::error("the disk is full")).await;
        peer.silence().await
    });
    let endless = stream::repeat_with(|| Ok(Bytes::from(vec![7; 5000])));
    let request = AddBuildLog { path: path(1) };
    let mut lease = store.connection().await.unwrap();
    let answer = within(lease.upload(&request, endless, &())).await;
    assert!(matches!(answer, Err(Error::Refused { .. })), "{answer:?}");
    assert!(
        !lease.is_clean(),
        "the daemon still waits for the end of the data"
    );
}

/// The same, and the daemon hangs up at once.
#[tokio::test]
async fn last_words_are_heard() {
    let store = store_of(1000, |mut peer| async move {
        peer.request::<AddBuildLog>().await;
        peer.say(&Message::error("no space left")).await;
    });
    let endless = stream::repeat_with(|| Ok(Bytes::from(vec![7; 5000])));
    let request = AddBuildLog { path: path(1) };
    let mut lease = store.connection().await.unwrap();
    let answer = within(lease.upload(&request, endless, &())).await;
    assert!(matches!(answer, Err(Error::Refused { .. })), "{answer:?}");
}

/// Data that breaks off is never followed by the end of data.
#[tokio::test]
async fn broken_data_has_no_end() {
    let seen = Arc::new(Mutex::new(None));
    let see = seen.clone();
    let store = store_of(1000, move |mut peer| {
        let see = see.clone();
        async move {
            peer.request::<AddBuildLog>().await;
            let drained = FramedRead::new(&mut peer.reader).drain().await;
            *see.lock().unwrap() = Some(drained.is_err());
        }
    });
    let data = stream::iter([
        Ok(Bytes::from_static(b"half")),
        Err(Error::invalid("the source broke")),
    ]);
    let request = AddBuildLog { path: path(1) };
    let mut lease = store.connection().await.unwrap();
    let answer = within(lease.upload(&request, data, &())).await;
    assert!(matches!(answer, Err(Error::Invalid { .. })), "{answer:?}");
    assert!(!lease.is_clean());
    drop(lease);
    until(|| seen.lock().unwrap().is_some()).await;
    assert_eq!(*seen.lock().unwrap(), Some(true));
}

/// Of several paths one breaks off and one is refused: the others go on, on the same connection.
#[tokio::test]
async fn every_upload_for_itself() {
    let store = store_of(300, |mut peer| async move {
        loop {
            match peer.op().await {
                Op::QueryValidPaths => {
                    peer.body::<QueryValidPaths>().await;
                    peer.last(&BTreeSet::<StorePath>::new()).await;
                }
                Op::AddToStoreNar => {
                    let request = peer.body::<AddToStoreNar>().await;
                    let mut data = Vec::new();
                    let mut frames = FramedRead::new(&mut peer.reader);
                    while let Some(chunk) = frames.next_chunk().await.unwrap() {
                        data.extend_from_slice(&chunk);
                    }
                    let whole = NarHash::digest(&data) == request.info.nar_hash;
                    let info = request.info;
                    let bad = info.path == path(3) || info.references.contains(&path(3));
                    if whole && !bad {
                        peer.last(&()).await
                    } else {
                        peer.say(&Message::error("no")).await
                    }
                }
                other => panic!("{other}"),
            }
        }
    });
    let mut items = Vec::new();
    for i in 0..6 {
        let content = file_nar(&[i as u8; 2000]);
        let stream = match i {
            1 => nar::from_bytes(file_nar(b"a lie")),
            _ => nar::from_bytes(content.clone()),
        };
        let info = PathInfo::new(path(i), NarHash::digest(&content), content.len() as u64);
        items.push(Ok((info, stream)));
    }
    // One that refers to the refused one.
    let content = file_nar(b"referrer");
    let mut referrer = PathInfo::new(path(6), NarHash::digest(&content), content.len() as u64);
    referrer.references = [path(3)].into();
    items.push(Ok((referrer, nar::from_bytes(content))));
    let report = within(store.add(stream::iter(items).boxed(), &SigCheck::Skip.into()))
        .await
        .unwrap();
    assert_eq!(report.added, [0, 2, 4, 5].map(path));
    let failed: Vec<_> = report.failed.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(failed, [1, 3, 6].map(path), "{:?}", report.failed);
    assert!(matches!(report.failed[0].1, Error::Mismatch { .. }));
    assert!(matches!(report.failed[1].1, Error::Refused { .. }));
    assert!(matches!(report.failed[2].1, Error::MissingReference { .. }));
    assert_eq!(store.opened(), 1);
}

/// What is given up in the middle costs the connection, what is over does not.
#[tokio::test]
async fn a_dropped_operation_poisons() {
    let store = store_of(1000, |mut peer| async move {
        loop {
            match peer.op().await {
                Op::IsValidPath => {
                    peer.body::<IsValidPath>().await;
                    peer.last(&true).await;
                }
                Op::NarFromPath => {
                    peer.body::<NarFromPath>().await;
                    peer.last(&()).await;
                    peer.send(&file_nar(&[1; 10_000])).await;
                }
                Op::OptimiseStore => {
                    peer.body::<OptimiseStore>().await;
                    peer.silence().await
                }
                other => panic!("{other}"),
            }
        }
    });
    let path = path(1);
    let question = IsValidPath { path: path.clone() };
    let ask = || store.call(&question);
    assert!(ask().await.unwrap());
    assert!(ask().await.unwrap());
    assert_eq!(store.opened(), 1);
    let whole = store.nar(&path).await.unwrap();
    within(whole.try_for_each(|_| async { Ok(()) }))
        .await
        .unwrap();
    assert!(ask().await.unwrap());
    assert_eq!(
        store.opened(),
        1,
        "a NAR that was read to its end leaves the connection usable"
    );

    let mut half = store.nar(&path).await.unwrap();
    half.next().await.unwrap().unwrap();
    drop(half);
    assert!(ask().await.unwrap());
    assert_eq!(
        store.opened(),
        2,
        "half a NAR is left on the first connection"
    );
    let stuck = timeout(Duration::from_millis(20), store.call(&OptimiseStore {})).await;
    assert!(stuck.is_err());
    assert!(ask().await.unwrap());
    assert_eq!(store.opened(), 3);
}

/// At most so many connections at once, whoever came first first, and none that is too old.
#[tokio::test(start_paused = true)]
async fn the_pool() {
    let store = store_with(
        1000,
        |config| {
            config.max_connections = 2;
            config.max_connection_age = Duration::from_millis(50);
        },
        |mut peer| async move {
            loop {
                peer.request::<IsValidPath>().await;
                peer.last(&true).await;
            }
        },
    );
    let (first, second) = (
        store.connection().await.unwrap(),
        store.connection().await.unwrap(),
    );
    let order = Arc::new(Mutex::new(Vec::new()));
    let wait = |name: usize| {
        let (store, order) = (&store, order.clone());
        async move {
            let lease = store.connection().await.unwrap();
            order.lock().unwrap().push(name);
            lease
        }
    };
    let release = async {
        sleep(Duration::from_millis(10)).await;
        drop(first);
        sleep(Duration::from_millis(10)).await;
        drop(second);
    };
    let (third, fourth, ()) = tokio::join!(wait(3), wait(4), release);
    assert_eq!(*order.lock().unwrap(), [3, 4]);
    assert_eq!(store.opened(), 2);
    // Real time, since that is what ages are told by.
    std::thread::sleep(Duration::from_millis(60));
    drop((third, fourth));
    drop(store.connection().await.unwrap());
    assert_eq!(store.opened(), 3);
}

/// A connection that the daemon closed while nobody used it is not lent.
#[tokio::test]
async fn closed_while_idle() {
    let store = store_of(1000, |mut peer| async move {
        peer.request::<IsValidPath>().await;
        peer.last(&true).await;
    });
    for n in 1..4 {
        assert!(store.call(&IsValidPath { path: path(1) }).await.unwrap());
        sleep(Duration::from_millis(20)).await;
        assert_eq!(store.opened(), n);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_questions_and_not_builds() {
    let store = store_with(
        1000,
        |config| config.timeout = Some(Duration::from_secs(10)),
        |mut peer| async move {
            match peer.op().await {
                Op::BuildPaths => {
                    peer.body::<BuildPaths>().await;
                    sleep(Duration::from_secs(100_000)).await;
                    peer.last(&crate::values::Done).await;
                }
                Op::IsValidPath => {
                    peer.body::<IsValidPath>().await;
                    peer.silence().await
                }
                other => panic!("{other}"),
            }
        },
    );
    let build = BuildPaths {
        paths: Vec::new(),
        mode: tk_store::BuildMode::Normal,
    };
    store.call(&build).await.unwrap();
    let started = tokio::time::Instant::now();
    let error = store
        .call(&IsValidPath { path: path(1) })
        .await
        .unwrap_err();
    assert!(
        error.to_line().contains("no sign of life"),
        "{}",
        error.to_line()
    );
    assert!(started.elapsed() < Duration::from_secs(11));
    // A daemon that does not even begin.
    let store = DaemonStore::new(Arc::new(Mute), DaemonConfig::new("test://"));
    let error = store
        .call(&IsValidPath { path: path(1) })
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

/// Everything that a daemon can say outside of its turn.
#[tokio::test]
async fn nonsense() {
    let sayings: [fn() -> Vec<u8>; 6] = [
        || words(&[0x6461_7461, 10]),
        || words(&[0x6461_7416, 3, 0x636261]),
        || words(&[0x1234]),
        || words(&[0x6f6c_6d67, 1 << 60]),
        || words(&[0x616c_7473, 1 << 60]),
        || words(&[0x5253_4c54, 1, 101, 1 << 60]),
    ];
    for (i, saying) in sayings.into_iter().enumerate() {
        let store = store_of(1000, move |mut peer| async move {
            peer.request::<QueryReferrers>().await;
            peer.send(&saying()).await;
            peer.silence().await
        });
        let path = path(1);
        let answer = within(store.call(&QueryReferrers { path })).await;
        assert!(
            matches!(answer, Err(Error::Malformed { .. })),
            "{i}: {answer:?}"
        );
    }
}

/// Events come typed and in order, those of the options before the first operation too.
#[tokio::test]
async fn events() {
    let store = store_with(
        1000,
        |config| config.settings = Some(SetOptions::default()),
        |mut peer| async move {
            peer.request::<SetOptions>().await;
            // The first operation is written before the options are answered.
            assert_eq!(peer.op().await, Op::OptimiseStore);
            peer.body::<OptimiseStore>().await;
            let events = [start(), line("hello"), LogEvent::Stop { id: 5 }];
            peer.say(&Message::Log(LogEvent::message(
                Default::default(),
                "options",
            )))
            .await;
            peer.last(&()).await;
            for event in events {
                peer.say(&Message::Log(event)).await;
            }
            peer.last(&crate::values::Done).await;
            peer.silence().await
        },
    );
    let heard = Mutex::new(Vec::new());
    let log = |event: LogEvent| heard.lock().unwrap().push(event);
    within(store.call_logged(&OptimiseStore {}, &log))
        .await
        .unwrap();
    let heard = heard.into_inner().unwrap();
    assert!(matches!(&heard[0], LogEvent::Message { text, .. } if text == "options"));
    assert_eq!(
        heard[1..],
        [start(), line("hello"), LogEvent::Stop { id: 5 }]
    );
}

fn start() -> LogEvent {
    LogEvent::Start {
        id: 5,
        level: Default::default(),
        kind: ActivityType::BUILD,
        text: "building".to_owned(),
        fields: vec![LogField::from("/nix/store/x.drv")],
        parent: 3,
    }
}

fn line(text: &str) -> LogEvent {
    LogEvent::Result {
        id: 5,
        kind: ResultType::BUILD_LOG_LINE,
        fields: vec![LogField::from(text)],
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn path(i: usize) -> StorePath {
    let mut digest = [0; 20];
    digest[..8].copy_from_slice(&(i as u64).to_le_bytes());
    StorePath::from_digest(&digest, &format!("path-{i}")).unwrap()
}

fn info(path: &StorePath) -> PathInfo {
    PathInfo::new(path.clone(), NarHash::from_bytes([1; 32]), 120)
}

fn found(path: &StorePath) -> Option<UnkeyedPathInfo> {
    Some(info(path).into())
}

/// No test here takes long, unless it hangs.
async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), work)
        .await
        .expect("it hangs")
}

async fn until(done: impl Fn() -> bool) {
    within(async {
        while !done() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A daemon's end of a connection, behind the handshake.
struct Peer {
    reader: WireReader<ReadHalf<DuplexStream>, WorkerProtocol>,
    writer: WriteHalf<DuplexStream>,
}

impl Peer {
    async fn op(&mut self) -> Op {
        match self.reader.u64().await {
            Ok(number) => Op::from_u64(number).unwrap(),
            // The client is gone, and so is this daemon.
            Err(_) => std::future::pending().await,
        }
    }

    async fn body<Q: Request<WorkerProtocol>>(&mut self) -> Q {
        self.reader.message().await.unwrap()
    }

    async fn request<Q: Request<WorkerProtocol>>(&mut self) -> Q {
        assert_eq!(self.op().await, Q::OP);
        self.body().await
    }

    async fn say<T: Encode<WorkerProtocol>>(&mut self, value: &T) {
        let mut out = Writer::new(self.reader.protocol().clone());
        out.value(value).unwrap();
        self.send(&out.take()).await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        // A client that is gone hears nothing.
        let _ = self.writer.write_all(bytes).await;
    }

    async fn last<T: Encode<WorkerProtocol>>(&mut self, reply: &T) {
        self.say(&Message::Last).await;
        self.say(reply).await;
    }

    async fn silence(&mut self) {
        std::future::pending().await
    }
}

type Behaviour = Box<dyn Fn(Peer) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Daemons in memory that all behave alike.
struct Fake {
    /// Bytes that each direction holds.
    pipe: usize,
    behave: Arc<Behaviour>,
    features: Features,
    opened: AtomicUsize,
}

#[async_trait]
impl Transport for Fake {
    async fn connect(&self) -> Result<Channel> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (ours, theirs) = duplex(self.pipe);
        let behave = self.behave.clone();
        let offered = Capabilities::latest(self.features.clone());
        tokio::spawn(async move {
            let (reader, mut writer) = split(theirs);
            let protocol = WorkerProtocol::new(StoreDir::default(), Version::minor(0));
            let mut reader = WireReader::new(reader, protocol);
            let hello = ServerHello {
                nix_version: Some("test".to_owned()),
                trust: Some(Trust::Trusted),
            };
            handshake::server(&mut reader, &mut writer, &offered, &hello)
                .await
                .unwrap();
            let mut peer = Peer { reader, writer };
            peer.say(&Message::Last).await;
            behave(peer).await;
        });
        let (reader, writer) = split(ours);
        Ok(Channel::new(reader, writer))
    }
}

impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a daemon in memory")
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

struct FakeStore {
    store: DaemonStore,
    fake: Arc<Fake>,
}

impl FakeStore {
    fn opened(&self) -> usize {
        self.fake.opened.load(Ordering::SeqCst)
    }
}

impl std::ops::Deref for FakeStore {
    type Target = DaemonStore;

    fn deref(&self) -> &DaemonStore {
        &self.store
    }
}

fn store_of<F>(pipe: usize, behave: impl Fn(Peer) -> F + Send + Sync + 'static) -> FakeStore
where
    F: Future<Output = ()> + Send + 'static,
{
    store_with(pipe, |_| {}, behave)
}

fn store_with<F>(
    pipe: usize,
    change: impl FnOnce(&mut DaemonConfig),
    behave: impl Fn(Peer) -> F + Send + Sync + 'static,
) -> FakeStore
where
    F: Future<Output = ()> + Send + 'static,
{
    store_speaking(Features::none(), pipe, change, behave)
}

fn store_speaking<F>(
    features: Features,
    pipe: usize,
    change: impl FnOnce(&mut DaemonConfig),
    behave: impl Fn(Peer) -> F + Send + Sync + 'static,
) -> FakeStore
where
    F: Future<Output = ()> + Send + 'static,
{
    let behave: Behaviour = Box::new(move |peer| Box::pin(behave(peer)));
    let fake = Arc::new(Fake {
        pipe,
        behave: Arc::new(behave),
        features,
        opened: AtomicUsize::new(0),
    });
    let mut config = DaemonConfig::new("test://");
    change(&mut config);
    FakeStore {
        store: DaemonStore::new(fake.clone(), config),
        fake,
    }
}

/// Accepts connections, and says nothing ever.
#[derive(Debug)]
struct Mute;

#[async_trait]
impl Transport for Mute {
    async fn connect(&self) -> Result<Channel> {
        let (ours, theirs) = duplex(100);
        let (reader, writer) = split(ours);
        Ok(Channel::new(reader, writer).with_guard(theirs))
    }
}

impl fmt::Display for Mute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mute daemon")
    }
}
