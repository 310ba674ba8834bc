//! Our client of the serve protocol against our server, over lines that are slow, cut or garbled.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tk_daemon::{
    client::{Channel, Transport},
    serve::{
        ExportTrailer, LATEST, Serve, ServeBuildOptions, ServeConfig, ServeServer, ServeStore,
        commands::{ImportPaths, QueryValidPaths},
    },
    values::Done,
    wire::{Decode, Request, WireReader, Writer},
};
use tk_narinfo::{PathInfo, build_result::BuildStatus};
use tk_path::{
    Algorithm, BasicDerivation, Derivation, DerivationOutput, DerivedPath, Hash, HashPart, Inputs,
    NarHash, OutputName, OutputsSpec, SingleDerivedPath, StoreDir, StorePath,
};
use tk_store::conformance::file_nar;
use tk_store::{
    Abilities, AddItem, AddItems, AddOptions, AddReport, Build, BuildMode, ClientSettings, Error,
    MemoryStore, NarStream, Result, Sessions, SigCheck, Store, StoreExt, conformance,
    log::{Level, LogSink},
    nar,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split},
    sync::mpsc,
    time::{Instant, sleep_until},
};

#[tokio::test(flavor = "multi_thread")]
async fn conformance_over_our_own_server() {
    conformance::run(|| async {
        let line = Line::new();
        WithFind(line.memory.clone(), line.store())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_paths_in_one_question() {
    let mut line = Line::new();
    line.round_trip = Duration::from_millis(40);
    let samples: Vec<_> = (0..1000).map(|i| sample(&format!("p{i}"), [])).collect();
    add(&*line.memory, &samples).await;
    let all: BTreeSet<_> = samples.iter().map(|(info, _)| info.path.clone()).collect();
    let store = line.store();
    let trips = |start: Instant| start.elapsed().as_secs_f64() / 0.04;

    let start = Instant::now();
    assert_eq!(store.valid(&all).await.unwrap().len(), 1000);
    let took = trips(start);
    assert!(took < 2.1, "connecting and asking: {took} round trips");

    let start = Instant::now();
    let answers = store.infos(stream::iter(all.clone()).boxed());
    assert_eq!(answers.try_collect::<Vec<_>>().await.unwrap().len(), 1000);
    assert_eq!(store.closure(&all, false).await.unwrap(), all);
    let took = trips(start);
    assert!(took < 2.1, "metadata and closure: {took} round trips");

    // Uploads do not wait for each other.
    let more: Vec<_> = (0..500).map(|i| sample(&format!("m{i}"), [])).collect();
    let start = Instant::now();
    assert_eq!(add(&store, &more).await.added.len(), 500);
    let took = trips(start);
    assert!(took < 12.0, "500 uploads: {took} round trips");
}

/// A NAR that turns out to be wrong when most of it was sent ends its connection and no other path.
#[tokio::test]
async fn a_wrong_nar_costs_its_connection_only() {
    let line = Line::new();
    let store = line.store();
    let [before, bad, after] = ["before", "bad", "after"].map(|name| sample(name, []));
    let above = sample("above", [bad.0.path.clone()]);
    let mut flipped = bad.1.to_vec();
    let at = flipped.len() - 40;
    flipped[at] ^= 1;
    let pieces: Vec<_> = flipped.chunks(64).map(Bytes::copy_from_slice).collect();
    let pieces = stream::iter(pieces).map(Ok).boxed();
    let items = vec![
        item(&before),
        Ok((bad.0.clone(), pieces)),
        item(&above),
        item(&after),
    ];
    let items = stream::iter(items).boxed();
    let report = store.add(items, &SigCheck::Skip.into()).await.unwrap();
    assert_eq!(report.added, [before.0.path, after.0.path]);
    let failed = &report.failed[..];
    let [
        (first, Error::Mismatch { .. }),
        (second, Error::MissingReference { .. }),
    ] = failed
    else {
        panic!("{report:?}");
    };
    assert_eq!((first, second), (&bad.0.path, &above.0.path));
    assert_eq!(line.opened(), 2);
    assert_eq!(line.memory.info(&bad.0.path).await.unwrap(), None);

    // In one piece it does not even cost that.
    let items = vec![Ok((bad.0.clone(), nar::from_bytes(flipped))), item(&bad)];
    let items = stream::iter(items).boxed();
    let report = store.add(items, &SigCheck::Skip.into()).await.unwrap();
    assert_eq!((report.added.len(), report.failed.len()), (1, 1));
    assert_eq!(line.opened(), 2);
}

#[tokio::test]
async fn a_nar_that_is_not_read_to_its_end_costs_its_connection() {
    let line = Line::new();
    let mut one = sample("one", []);
    // In several pieces: with the last of them a NAR is at its end.
    one.1 = file_nar(&[7; 3 * BUFFER]);
    (one.0.nar_hash, one.0.nar_size) = (hash(&one.1), one.1.len() as u64);
    add(&*line.memory, std::slice::from_ref(&one)).await;
    let store = line.store();
    for (reads_all, opened) in [(true, 1), (true, 1), (false, 1), (true, 2)] {
        let mut nar = store.nar(&one.0.path).await.unwrap();
        let first = nar.next().await.unwrap().unwrap();
        if reads_all {
            let rest: Vec<_> = nar.try_collect().await.unwrap();
            assert_eq!([&[first][..], &rest].concat().concat(), one.1);
        }
        assert_eq!(line.opened(), opened);
    }
    let absent = store.nar(&sample("absent", []).0.path).await;
    assert!(matches!(absent, Err(Error::NotFound { .. })));
    assert_eq!(
        store
            .valid(&BTreeSet::from([one.0.path]))
            .await
            .unwrap()
            .len(),
        1
    );
}

/// The line is cut after each byte that the server says, and each byte is garbled.
#[tokio::test(start_paused = true)]
async fn answers_cut_and_garbled_at_every_byte() {
    let whole = session(Fault::None).await;
    whole.outcome.unwrap();
    assert!(whole.said > 500, "{} bytes", whole.said);
    for at in 0..whole.said {
        let cut = session(Fault::CutAnswers(at)).await;
        let error = cut.outcome.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{at}: {error}");
        assert!(cut.sound, "cut at {at}");
        let garbled = session(Fault::Garble(at)).await;
        assert!(garbled.sound, "garbled at {at}");
    }
}

/// The line is cut after each byte that the client says: nothing becomes visible by halves.
#[tokio::test(start_paused = true)]
async fn questions_cut_at_every_byte() {
    let whole = session(Fault::None).await;
    for at in 0..whole.asked {
        let cut = session(Fault::CutQuestions(at)).await;
        assert!(cut.outcome.is_err(), "cut at {at}");
        assert!(cut.sound, "cut at {at}");
    }
}

/// The line breaks once, and the rest goes over another: each path is told of once, and what refers to one
/// that was on its way is not sent in vain.
#[tokio::test(start_paused = true)]
async fn a_path_on_its_way_when_the_line_breaks_is_lost_and_told() {
    let samples: Vec<_> = {
        let [one, two] = ["one", "two"].map(|name| sample(name, []));
        let three = sample("three", [two.0.path.clone()]);
        [one, two, three, sample("four", [])].into()
    };
    let adding = async |fault| {
        let mut line = Line::new();
        line.fault = fault;
        let pieces = |nar: &Bytes| {
            let pieces: Vec<_> = nar.chunks(50).map(Bytes::copy_from_slice).collect();
            // One round trip a piece: what was sent before is answered meanwhile.
            let wait = |piece| async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(piece)
            };
            stream::iter(pieces).then(wait).boxed()
        };
        let items = samples
            .iter()
            .map(|(info, nar)| Ok((info.clone(), pieces(nar))));
        let items = stream::iter(items.collect::<Vec<_>>()).boxed();
        let report = line.store().add(items, &SigCheck::Skip.into()).await;
        (report, line.asked.load(Ordering::Relaxed), line.errors())
    };
    let (whole, asked, _) = adding(Fault::None).await;
    assert_eq!(whole.unwrap().added.len(), 4);
    let mut lost = 0;
    for at in 0..asked {
        let (report, ..) = adding(Fault::CutQuestionsOnce(at)).await;
        // Before the first answer it ends the whole.
        let Ok(report) = report else { continue };
        let failed = report.failed.iter().map(|(path, _)| path);
        let mut told: Vec<_> = report.added.iter().chain(failed).collect();
        told.sort();
        let mut all: Vec<_> = samples.iter().map(|(info, _)| &info.path).collect();
        all.sort();
        assert_eq!(told, all, "cut at {at}: {report:?}");
        let failed = |n: usize| {
            let path = &samples[n].0.path;
            report.failed.iter().find(|(failed, _)| failed == path)
        };
        if failed(1).is_some() {
            lost += 1;
            let three = failed(2).map(|(_, error)| error);
            let is_told = matches!(
                three,
                Some(Error::MissingReference { .. } | Error::Io { .. })
            );
            assert!(is_told, "cut at {at}: {three:?}");
        }
    }
    assert!(lost > 0, "never on its way");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing() {
    for at in [0, 8, 16, 24, 100] {
        let stalled = session(Fault::Stall(at)).await;
        let error = stalled.outcome.unwrap_err().to_line();
        let told = ["no connection within", "no sign of life"];
        assert!(told.iter().any(|words| error.contains(words)), "{error}");
    }
}

#[tokio::test]
async fn imports() {
    let line = Line::new();
    let base = sample("base", []);
    let top = sample("top", [base.0.path.clone()]);
    let mut raw = Raw::connect(&line).await;
    for _ in 0..2 {
        raw.import(&[&base, &top]).await;
        assert_eq!(raw.reply::<Done>().await, Some(Done));
    }
    // And nothing is left over.
    let paths = BTreeSet::from([base.0.path.clone(), top.0.path.clone()]);
    raw.ask(&QueryValidPaths {
        lock: false,
        substitute: false,
        paths: paths.clone(),
    })
    .await;
    assert_eq!(raw.reply().await, Some(paths));
    let found = line.memory.require_info(&top.0.path).await.unwrap();
    assert_eq!(
        (found.nar_hash, found.nar_size),
        (top.0.nar_hash, top.0.nar_size)
    );
    assert_eq!(
        (found.references, found.deriver),
        (top.0.references, top.0.deriver)
    );

    // A path whose reference is not there, a mark that is none, and something that is no NAR.
    let dangling = sample("dangling", [sample("absent", []).0.path]);
    let mut raw = Raw::connect(&line).await;
    raw.import(&[&dangling]).await;
    assert_eq!(raw.reply::<Done>().await, None);
    for numbers in [&[2][..], &[1, 7], &[1, 13, 0, 0]] {
        let mut raw = Raw::connect(&line).await;
        raw.ask(&ImportPaths {}).await;
        for number in numbers {
            raw.writer.u64(*number);
        }
        raw.send().await;
        raw.stream.get_mut().shutdown().await.unwrap();
        assert_eq!(raw.reply::<Done>().await, None);
    }
    assert!(line.memory.info(&dangling.0.path).await.unwrap().is_none());
    let errors = line.errors();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors[0].contains("absent"), "{errors:?}");
}

/// A server that may only read says so, and goes.
#[tokio::test]
async fn reading_only() {
    let mut line = Line::new();
    line.write = false;
    let one = sample("one", []);
    add(&*line.memory, std::slice::from_ref(&one)).await;
    let store = line.store();
    assert!(store.info(&one.0.path).await.unwrap().is_some());
    let two = sample("two", []);
    let items = stream::iter([item(&two)]).boxed();
    assert!(store.add(items, &SigCheck::Skip.into()).await.is_err());
    // It still tells what it has, over another connection.
    assert!(store.info(&one.0.path).await.unwrap().is_some());
    assert_eq!(line.opened(), 2);
    let errors = line.errors();
    assert!(
        errors[0].contains("is served for reading only"),
        "{errors:?}"
    );
}

/// A server whose store does not build still tells that something is built.
#[tokio::test]
async fn builds() {
    let line = Line::new();
    let store = line.store();
    let out = sample("thing", []);
    let derivation = Derivation {
        name: "thing".to_owned(),
        outputs: BTreeMap::from([(
            OutputName::out(),
            DerivationOutput::InputAddressed(out.0.path.clone()),
        )]),
        inputs: Inputs::default(),
        platform: "none".into(),
        builder: "/bin/false".into(),
        args: Vec::new(),
        env: BTreeMap::new(),
    };
    let drv = derivation.path(store.dir()).unwrap();
    let file = file_nar(&derivation.to_aterm(store.dir()).unwrap());
    let mut info = PathInfo::new(drv.clone(), hash(&file), file.len() as u64);
    info.references = BTreeSet::new();
    let wanted = [
        DerivedPath::Opaque(out.0.path.clone()),
        DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv.clone()),
            outputs: OutputsSpec::All,
        },
    ];
    let basic = BasicDerivation {
        inputs: BTreeSet::new(),
        name: derivation.name,
        outputs: derivation.outputs,
        platform: derivation.platform,
        builder: derivation.builder,
        args: derivation.args,
        env: derivation.env,
    };
    let build = || store.build(&wanted, BuildMode::Normal, &());
    let build_derivation = || store.build_derivation(&drv, &basic, BuildMode::Normal, &());

    // Neither the derivation nor the output is there.
    for result in build().await.unwrap() {
        assert_eq!(result.result.status, BuildStatus::MiscFailure);
        assert!(
            result.result.error.contains("is not in dummy://"),
            "{result:?}"
        );
    }
    add(&*line.memory, &[(info, file)]).await;
    let missing = build_derivation().await.unwrap();
    assert!(missing.error.contains("does not build"), "{missing:?}");
    assert!(store.ensure(&out.0.path, &()).await.is_err());

    add(&*line.memory, std::slice::from_ref(&out)).await;
    store.ensure(&out.0.path, &()).await.unwrap();
    let built = build().await.unwrap();
    assert!(
        built.iter().all(|built| built.result.is_success()),
        "{built:?}"
    );
    assert_eq!(
        built[1].result.outputs[&OutputName::out()].out_path,
        out.0.path
    );
    let there = build_derivation().await.unwrap();
    assert_eq!(there.status, BuildStatus::AlreadyValid);
    assert!(store.build(&wanted, BuildMode::Check, &()).await.is_err());
    // One connection carried it all, but for the derivation that was read and not there.
    assert_eq!(line.opened(), 2);
}

/// How a client wants its build done reaches the store; who wants nothing leaves the store alone.
#[tokio::test]
async fn options_of_builds() {
    let seen = Told::default();
    let mut abilities = Abilities::of(Arc::<MemoryStore>::default());
    abilities.sessions = Some(Arc::new(seen.clone()));
    let ask = async |options: ServeBuildOptions| {
        let (near, far) = duplex(BUFFER);
        let (reader, writer) = split(far);
        let server = ServeServer::new(abilities.clone()).writable();
        let serving = async move { server.serve(reader, writer).await.unwrap() };
        let mut config = ServeConfig::new("ssh://test");
        config.build = options;
        let store = ServeStore::new(Arc::new(Once(Mutex::new(Some(near)))), config);
        let wanted = [DerivedPath::Opaque(sample("thing", []).0.path)];
        let asking = async move {
            store.build(&wanted, BuildMode::Normal, &()).await.unwrap();
        };
        futures::join!(serving, asking);
        seen.0.lock().unwrap().pop()
    };
    assert_eq!(ask(ServeBuildOptions::default()).await, None);
    let mut options = ServeBuildOptions::default();
    options.keep_failed = true;
    options.max_silent_time = 7;
    options.build_timeout = 8;
    options.max_log_size = 9;
    let told = ask(options).await.unwrap();
    assert_eq!((told.keep_failed, told.max_silent_time), (true, 7));
    assert_eq!(told.verbosity, Level::Error);
    let limits = [("max-build-log-size", "9"), ("timeout", "8")];
    let limits = limits.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(told.overrides, BTreeMap::from(limits));
}

/// What clients wanted.
#[derive(Debug, Default, Clone)]
struct Told(Arc<Mutex<Vec<ClientSettings>>>);

impl Sessions for Told {
    fn session(&self, _: Arc<dyn LogSink>) -> Abilities {
        let mut abilities = Abilities::of(Arc::<MemoryStore>::default());
        abilities.sessions = Some(Arc::new(self.clone()));
        abilities
    }

    fn with_settings(&self, settings: &ClientSettings) -> Option<Abilities> {
        self.0.lock().unwrap().push(settings.clone());
        None
    }
}

/// A connection that is there already.
#[derive(Debug)]
struct Once(Mutex<Option<DuplexStream>>);

#[async_trait]
impl Transport for Once {
    async fn connect(&self) -> Result<Channel> {
        let stream = self.0.lock().unwrap().take().expect("one connection");
        let (reader, writer) = split(stream);
        Ok(Channel::new(reader, writer))
    }
}

impl fmt::Display for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line")
    }
}

/// What one session over a faulty line came to.
struct Ended {
    outcome: Result<()>,
    said: usize,
    asked: usize,
    /// What is visible at the far end is whole, with what it refers to.
    sound: bool,
}

/// A little of everything, over a line with a fault.
async fn session(fault: Fault) -> Ended {
    let mut line = Line::new();
    line.fault = fault;
    let there = sample("there", []);
    let base = sample("base", []);
    let top = sample("top", [base.0.path.clone(), there.0.path.clone()]);
    add(&*line.memory, std::slice::from_ref(&there)).await;
    let outcome = talk(&line.store(), &there, &[base.clone(), top.clone()]).await;
    let mut sound = true;
    let mut visible = BTreeSet::new();
    for (info, nar) in [&there, &base, &top] {
        let Some(found) = line.memory.info(&info.path).await.unwrap() else {
            continue;
        };
        let content = line.memory.nar(&info.path).await.unwrap();
        let content: Vec<_> = content.try_collect().await.unwrap();
        sound &= content.concat() == **nar && found.nar_hash == info.nar_hash;
        sound &= found.references.is_subset(&visible);
        visible.insert(found.path);
    }
    Ended {
        outcome,
        said: line.said.load(Ordering::Relaxed),
        asked: line.asked.load(Ordering::Relaxed),
        sound,
    }
}

async fn talk(store: &ServeStore, there: &Sample, new: &[Sample]) -> Result<()> {
    let lost = |what: &str| Error::io("talking", io::Error::other(what.to_owned()));
    let paths = |samples: &[Sample]| samples.iter().map(|(info, _)| info.path.clone()).collect();
    let old = paths(std::slice::from_ref(there));
    if store.valid(&old).await? != old {
        return Err(lost("a path is not valid"));
    }
    store
        .require_info(&there.0.path)
        .await
        .map_err(|e| match e {
            Error::NotFound { .. } => lost("a path has no metadata"),
            e => e,
        })?;
    let nar = store.nar(&there.0.path).await?;
    nar.try_collect::<Vec<_>>().await?;
    let pieces = |nar: &Bytes| {
        let pieces: Vec<_> = nar.chunks(50).map(Bytes::copy_from_slice).collect();
        stream::iter(pieces).map(Ok).boxed()
    };
    let items = new
        .iter()
        .map(|(info, nar)| Ok((info.clone(), pieces(nar))));
    let items = stream::iter(items.collect::<Vec<_>>()).boxed();
    let mut report = store.add(items, &SigCheck::Skip.into()).await?;
    if let Some((_, error)) = report.failed.pop() {
        return Err(error);
    }
    let all = store.closure(&paths(new), false).await?;
    match all.len() {
        3 => Ok(()),
        _ => Err(lost("a closure is not whole")),
    }
}

/// What is wrong with a line. Bytes are counted over all its connections.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    CutAnswers(usize),
    CutQuestions(usize),
    /// The same, and the next line is whole.
    CutQuestionsOnce(usize),
    /// Nothing comes after so many bytes of answers.
    Stall(usize),
    /// One bit of this byte is another.
    Garble(usize),
}

/// A line to a server of ours that serves a store in memory.
#[derive(Clone)]
struct Line {
    memory: Arc<MemoryStore>,
    write: bool,
    round_trip: Duration,
    fault: Fault,
    opened: Arc<AtomicUsize>,
    said: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Line {
    fn new() -> Self {
        Line {
            memory: Arc::default(),
            write: true,
            round_trip: Duration::ZERO,
            fault: Fault::None,
            opened: Arc::default(),
            said: Arc::default(),
            asked: Arc::default(),
            errors: Arc::default(),
        }
    }

    fn store(&self) -> ServeStore {
        ServeStore::new(Arc::new(self.clone()), ServeConfig::new("ssh://test"))
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }

    fn open(&self) -> DuplexStream {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let (ours, near) = duplex(BUFFER);
        let (far, theirs) = duplex(BUFFER);
        let (line, errors) = (self.clone(), self.errors.clone());
        tokio::spawn(async move {
            let mut abilities = Abilities::of(line.memory.clone());
            abilities.graph = Some(line.memory.clone());
            let (reader, writer) = split(theirs);
            let mut server = ServeServer::new(abilities);
            if line.write {
                server = server.writable();
            }
            if let Err(error) = server.serve(reader, writer).await {
                errors.lock().unwrap().push(error.to_line());
            }
        });
        let (near_read, near_write) = split(near);
        let (far_read, far_write) = split(far);
        let (there, back) = (self.clone(), self.clone());
        tokio::spawn(async move {
            // When one direction ends, both do.
            tokio::select! {
                () = there.carry(near_read, far_write, true) => {}
                () = back.carry(far_read, near_write, false) => {}
            }
        });
        ours
    }

    async fn carry(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        questions: bool,
    ) {
        let counter = if questions { &self.asked } else { &self.said };
        let (send, mut receive) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let take = async {
            let mut buffer = vec![0; BUFFER];
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                let start = counter.fetch_add(n, Ordering::Relaxed);
                let mut bytes = buffer[..n].to_vec();
                let keep = |at: usize| at.saturating_sub(start).min(n);
                let mut over = false;
                match self.fault {
                    Fault::CutAnswers(at) if !questions && at < start + n => {
                        bytes.truncate(keep(at));
                        over = true;
                    }
                    Fault::CutQuestions(at) if questions && at < start + n => {
                        bytes.truncate(keep(at));
                        over = true;
                    }
                    Fault::CutQuestionsOnce(at)
                        if questions && (start..start + n).contains(&at) =>
                    {
                        bytes.truncate(keep(at));
                        over = true;
                    }
                    Fault::Stall(at) if !questions && at < start + n => bytes.truncate(keep(at)),
                    Fault::Garble(at) if !questions && (start..start + n).contains(&at) => {
                        bytes[at - start] ^= 1 << (at % 8);
                    }
                    _ => {}
                }
                let _ = send.send((Instant::now() + self.round_trip / 2, bytes));
                if over {
                    break;
                }
            }
            drop(send);
        };
        let give = async {
            while let Some((due, bytes)) = receive.recv().await {
                sleep_until(due).await;
                if to.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // Time to take what was said, before everything is gone.
            tokio::task::yield_now().await;
        };
        futures::join!(take, give);
    }
}

#[async_trait]
impl Transport for Line {
    async fn connect(&self) -> Result<Channel> {
        let (asked, said) = (&self.asked, &self.said);
        let over = match self.fault {
            Fault::CutAnswers(at) => said.load(Ordering::Relaxed) > at,
            Fault::CutQuestions(at) => asked.load(Ordering::Relaxed) > at,
            _ => false,
        };
        if over {
            return Err(Error::io("connecting", io::Error::other("the line is cut")));
        }
        let (reader, writer) = split(self.open());
        Ok(Channel::new(reader, writer))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line")
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

/// A client without manners.
struct Raw {
    stream: WireReader<DuplexStream, Serve>,
    writer: Writer<Serve>,
}

impl Raw {
    async fn connect(line: &Line) -> Self {
        let (near, mut far) = duplex(BUFFER);
        let mut to_server = line.open();
        tokio::spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut far, &mut to_server).await;
        });
        let protocol = Serve::new(StoreDir::default(), LATEST);
        let mut reader = WireReader::new(near, protocol.clone());
        let mut hello = Writer::new(protocol.clone());
        hello.u64(0x390c_9deb);
        hello.u64(VERSION);
        reader.get_mut().write_all(&hello.take()).await.unwrap();
        assert_eq!(reader.u64().await.unwrap(), 0x5452_eecb);
        assert_eq!(reader.u64().await.unwrap(), VERSION);
        Raw {
            stream: reader,
            writer: Writer::new(protocol),
        }
    }

    async fn ask<Q: Request<Serve>>(&mut self, request: &Q) {
        request.write(&mut self.writer).unwrap();
        self.send().await;
    }

    async fn import(&mut self, samples: &[&Sample]) {
        self.ask(&ImportPaths {}).await;
        for (info, nar) in samples {
            self.writer.u64(1);
            self.writer.raw(nar);
            let trailer = ExportTrailer {
                path: info.path.clone(),
                references: info.references.clone(),
                deriver: info.deriver.clone(),
            };
            self.writer.value(&trailer).unwrap();
        }
        self.writer.u64(0);
        self.send().await;
    }

    async fn send(&mut self) {
        let bytes = self.writer.take();
        // The server may have gone.
        let _ = self.stream.get_mut().write_all(&bytes).await;
    }

    /// `None` when the server went.
    async fn reply<T: Decode<Serve>>(&mut self) -> Option<T> {
        self.stream.message().await.ok()
    }
}

/// A store of the serve protocol with the one question that the protocol does not have.
#[derive(Debug)]
struct WithFind(Arc<MemoryStore>, ServeStore);

#[async_trait]
impl Store for WithFind {
    fn dir(&self) -> &StoreDir {
        self.1.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.1.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.1.infos(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.1.nar(path).await
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.1.add(items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let asked = self.1.find(part).await;
        assert!(matches!(asked, Err(Error::Unsupported { .. })), "{asked:?}");
        self.0.find(part).await
    }
}

impl fmt::Display for WithFind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.fmt(f)
    }
}

type Sample = (PathInfo, Bytes);

fn sample(name: &str, references: impl IntoIterator<Item = StorePath>) -> Sample {
    let nar = file_nar(format!("{name}\n").repeat(20).as_bytes());
    let digest = Hash::digest(Algorithm::Sha256, name.as_bytes());
    let digest: [u8; 20] = digest.compress(20).try_into().unwrap();
    let path = StorePath::from_digest(&digest, name).unwrap();
    let mut info = PathInfo::new(path, hash(&nar), nar.len() as u64);
    info.references = references.into_iter().collect();
    (info, nar)
}

async fn add(store: &dyn Store, samples: &[Sample]) -> AddReport {
    let items: Vec<_> = samples.iter().map(item).collect();
    let items = stream::iter(items).boxed();
    let report = store.add(items, &SigCheck::Skip.into()).await.unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    report
}

fn item((info, nar): &Sample) -> Result<AddItem> {
    Ok((info.clone(), nar::from_bytes(nar.clone())))
}

fn hash(nar: &[u8]) -> NarHash {
    NarHash::try_from(Hash::digest(Algorithm::Sha256, nar)).unwrap()
}

const BUFFER: usize = 64 << 10;
const VERSION: u64 = 2 << 8 | LATEST as u64;
