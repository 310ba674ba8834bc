//! The worker and the serve protocol: messages by themselves, and questions to a server over a pair of sockets.
#![allow(missing_docs)]

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tk_daemon::client::{Channel, Transport};
use tk_daemon::serve::{self, Serve, ServeConfig, ServeServer, ServeStore};
use tk_daemon::server::{Server, ServerConfig};
use tk_daemon::wire::{Decode, Encode, FRAME_END, FramedRead, WireReader, Writer, frames};
use tk_daemon::worker::{Trust, log::Message};
use tk_daemon::{DaemonConfig, DaemonStore};
use tk_instructions::codecs::{self, decode, encode};
use tk_instructions::inputs;
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hash, StoreDir, StorePath};
use tk_store::log::{ActivityType, Level, LogEvent, LogField, ResultType};
use tk_store::{Abilities, AddOptions, MemoryStore, SigCheck, Store, nar};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

fn messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("worker messages");
    let info = inputs::path_info(0);
    let bytes = encode(&info);
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("path info encode", |b| b.iter(|| encode(black_box(&info))));
    group.bench_function("path info decode", |b| {
        b.iter(|| decode::<PathInfo>(black_box(&bytes)));
    });

    let log: Vec<u8> = (0..LOG).flat_map(events).flat_map(|e| encode(&e)).collect();
    group.throughput(Throughput::Bytes(log.len() as u64));
    group.bench_function("log of a build", |b| {
        b.iter(|| {
            let mut from = WireReader::new(black_box(&log[..]), codecs::worker());
            let all = async {
                while !from.at_end().await.expect("memory") {
                    black_box(Message::decode(&mut from).await.expect("valid"));
                }
            };
            all.now_or_never().expect("all bytes are there");
        });
    });

    let framed = framed(&inputs::noise(UPLOAD));
    group.throughput(Throughput::Bytes(UPLOAD as u64));
    group.bench_function("framed upload, read", |b| {
        b.iter(|| {
            let mut from = WireReader::new(black_box(&framed[..]), codecs::worker());
            let mut data = FramedRead::new(&mut from);
            let all = async {
                let mut sum = 0;
                while let Some(chunk) = data.next_chunk().await.expect("valid") {
                    sum += chunk.len();
                }
                sum
            };
            assert_eq!(all.now_or_never(), Some(UPLOAD));
        });
    });
    group.finish();
}

fn serve_messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("serve messages");
    let info = inputs::path_info(0);
    let unkeyed = serve::ServePathInfo {
        deriver: info.deriver,
        references: info.references,
        nar_size: info.nar_size,
        nar_hash: Some(info.nar_hash),
        ca: info.ca,
        signatures: info.signatures,
    };
    let protocol = || Serve::new(StoreDir::default(), serve::LATEST);
    let write = || {
        let mut out = Writer::new(protocol());
        black_box(&unkeyed)
            .encode(&mut out)
            .expect("the protocol can say it");
        out.take()
    };
    let bytes = write();
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("path info encode", |b| b.iter(write));
    group.bench_function("path info decode", |b| {
        b.iter(|| {
            let mut from = WireReader::new(black_box(&bytes[..]), protocol());
            let info = serve::ServePathInfo::decode(&mut from).now_or_never();
            info.expect("all bytes are there").expect("valid")
        });
    });
    group.finish();
}

/// Client and server in one process, a thread each.
fn conversations(c: &mut Criterion) {
    let runtime = runtime();
    let store = runtime.block_on(filled());
    let paths: Vec<_> = (0..QUERIES).map(inputs::path).collect();
    let mut group = c.benchmark_group("over a pair of sockets");

    let daemon = daemon_of(store.clone());
    let far = InProcess::new(store.clone(), Language::Serve);
    let far = ServeStore::new(Arc::new(far), ServeConfig::new("bench://serve"));
    let stores: [(&str, &dyn Store); 2] = [("worker", &daemon), ("serve", &far)];

    group.throughput(Throughput::Elements(QUERIES.into()));
    for (name, store) in stores {
        group.bench_function(format!("2,000 path infos, {name}"), |b| {
            b.iter(|| assert_eq!(runtime.block_on(found(store, &paths)), paths.len()));
        });
    }
    group.bench_function("2,000 path infos, the store itself", |b| {
        b.iter(|| assert_eq!(runtime.block_on(found(&*store, &paths)), paths.len()));
    });

    group.throughput(Throughput::Bytes(UPLOAD as u64));
    group.bench_function("upload of one NAR, worker", |b| {
        let large = large();
        let empty = || {
            let store = Arc::new(MemoryStore::new(StoreDir::default()));
            daemon_of(store)
        };
        b.iter_batched(
            empty,
            |daemon| {
                runtime.block_on(add(&daemon, [large.clone()]));
                daemon
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("as many bytes through the sockets alone", |b| {
        b.iter(|| runtime.block_on(pump(UPLOAD)));
    });
    group.finish();
}

fn daemon_of(store: Arc<MemoryStore>) -> DaemonStore {
    let worker = InProcess::new(store, Language::Worker);
    DaemonStore::new(Arc::new(worker), DaemonConfig::new("bench://worker"))
}

async fn found(store: &dyn Store, paths: &[StorePath]) -> usize {
    let infos = store.infos(stream::iter(paths.to_vec()).boxed());
    let infos: Vec<_> = infos.try_collect().await.expect("all are answered");
    infos.iter().filter(|(_, info)| info.is_some()).count()
}

/// One file, and what is to be said of it.
fn large() -> (PathInfo, Bytes) {
    let mut archive = tk_nar::Encoder::new(Vec::new());
    archive.file(false, &inputs::noise(UPLOAD)).expect("valid");
    let archive = archive.finish().expect("whole");
    let hash = Hash::digest(Algorithm::Sha256, &archive);
    let hash = hash.try_into().expect("it is SHA-256");
    let info = PathInfo::new(inputs::path(QUERIES), hash, archive.len() as u64);
    (info, archive.into())
}

async fn pump(bytes: usize) {
    let (mut from, mut to) = UnixStream::pair().expect("a pair of sockets");
    let sender = tokio::spawn(async move {
        let block = vec![0; BLOCK];
        for _ in 0..bytes / BLOCK {
            to.write_all(&block).await.expect("somebody reads");
        }
    });
    let (mut block, mut got) = (vec![0; BLOCK], 0);
    loop {
        match from.read(&mut block).await.expect("somebody writes") {
            0 => break,
            n => got += n,
        }
    }
    sender.await.expect("it does not panic");
    assert_eq!(got, bytes);
}

async fn filled() -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new(StoreDir::default()));
    let (infos, archive) = (inputs::closure(QUERIES), Bytes::from(inputs::small_nar()));
    add(
        &*store,
        infos.into_iter().map(|info| (info, archive.clone())),
    )
    .await;
    store
}

async fn add(
    store: &dyn Store,
    items: impl IntoIterator<Item = (PathInfo, Bytes), IntoIter: Send>,
) {
    let items = items.into_iter();
    let items = items.map(|(info, archive)| Ok((info, nar::from_bytes(archive))));
    let options = AddOptions::new(SigCheck::Skip);
    let report = store.add(stream::iter(items).boxed(), &options).await;
    let report = report.expect("the store takes it");
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}

/// What a builder's line of output and a step of progress look like.
fn events(n: u64) -> [Message; 3] {
    let line = format!("[{n}/1000] Building CXX object src/CMakeFiles/library.dir/file{n}.cc.o");
    let start = LogEvent::Start {
        id: n,
        level: Level::Info,
        kind: ActivityType(105),
        text: format!("building '/nix/store/{}'", inputs::path(0)),
        fields: vec![
            LogField::Text(inputs::path(0).to_string()),
            LogField::Int(1),
        ],
        parent: 0,
    };
    let result = LogEvent::Result {
        id: n,
        kind: ResultType(101),
        fields: vec![LogField::Text(line)],
    };
    [start, result, LogEvent::Stop { id: n }].map(Message::Log)
}

fn framed(data: &[u8]) -> Vec<u8> {
    let chunks = frames(Bytes::copy_from_slice(data));
    let mut framed: Vec<_> = chunks
        .flat_map(|(head, body)| [&head[..], &body].concat())
        .collect();
    framed.extend(FRAME_END);
    framed
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads")
}

#[derive(Debug, Clone, Copy)]
enum Language {
    Worker,
    Serve,
}

/// Each connection has a server of its own behind a pair of sockets.
struct InProcess {
    store: Arc<MemoryStore>,
    language: Language,
}

impl InProcess {
    fn new(store: Arc<MemoryStore>, language: Language) -> Self {
        Self { store, language }
    }
}

#[async_trait]
impl Transport for InProcess {
    async fn connect(&self) -> tk_store::Result<Channel> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let abilities = Abilities::of(self.store.clone());
        let language = self.language;
        tokio::spawn(async move {
            let (reader, writer) = theirs.into_split();
            let served = match language {
                Language::Worker => {
                    let server = Server::new(abilities, ServerConfig::default());
                    server.serve(reader, writer, Trust::Trusted).await
                }
                Language::Serve => {
                    ServeServer::new(abilities)
                        .writable()
                        .serve(reader, writer)
                        .await
                }
            };
            served.expect("the client keeps the protocol");
        });
        let (reader, writer) = ours.into_split();
        Ok(Channel::new(reader, writer))
    }
}

impl fmt::Display for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a server in this process")
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

const QUERIES: u32 = 2000;
/// Builds' steps in the log.
const LOG: u64 = 1000;
/// Bytes; a multiple of [`BLOCK`].
const UPLOAD: usize = 16 << 20;
const BLOCK: usize = 64 << 10;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = messages, serve_messages, conversations
}
criterion_main!(benches);
