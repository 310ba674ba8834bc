//! The databases: that of a store on disk, and what caches said.
#![allow(missing_docs)]

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;
use tk_cache::disk_cache::{DiskCache, DiskCacheConfig};
use tk_instructions::inputs;
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::PathInfo;
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{Store, closure};
use tokio::runtime::Runtime;

fn local(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("store on disk");
    let infos = inputs::closure(MANY);
    let (_folder, store) = runtime.block_on(with_content(&infos));
    runtime
        .block_on(store.register(infos.clone()))
        .expect("all is there");
    let paths: Vec<_> = infos.iter().map(|info| info.path.clone()).collect();
    let absent: Vec<_> = (MANY..2 * MANY).map(inputs::path).collect();

    group.throughput(Throughput::Elements(MANY.into()));
    group.bench_function("2,000 path infos", |b| {
        b.iter(|| assert_eq!(runtime.block_on(found(&store, &paths)), paths.len()));
    });
    group.bench_function("2,000 paths that are absent", |b| {
        b.iter(|| assert_eq!(runtime.block_on(found(&store, &absent)), 0));
    });
    group.bench_function("which of 2,000 are valid", |b| {
        let paths = paths.iter().cloned().collect();
        b.iter(|| {
            let valid = runtime.block_on(store.valid(&paths));
            assert_eq!(valid.expect("it is answered").len(), paths.len());
        });
    });
    group.throughput(Throughput::Elements(SOME.into()));
    group.bench_function("closure of 500", |b| {
        let root = &paths[SOME as usize - 1];
        b.iter(|| {
            let closure = runtime.block_on(closure(&store, [root.clone()]));
            assert_eq!(closure.expect("it is whole").infos.len(), SOME as usize);
        });
    });
    group.bench_function("adding 500 rows", |b| {
        let infos = inputs::closure(SOME);
        let fresh = || runtime.block_on(with_content(&infos));
        b.iter_batched(
            fresh,
            |(folder, store)| {
                runtime
                    .block_on(store.register(infos.clone()))
                    .expect("all is there");
                (folder, store)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn answers(c: &mut Criterion) {
    let folder = TempDir::new().expect("a temporary folder");
    let disk = DiskCache::open(
        folder.path().join("answers.sqlite"),
        DiskCacheConfig::default(),
    );
    let disk = disk.expect("it can be made");
    let dir = StoreDir::default();
    let cache = disk.of("https://cache.example.org", &dir);
    let text = |n| Some(Bytes::from(inputs::narinfo(n).print(&dir)));
    let answers: Vec<_> = (0..MANY).map(|n| (inputs::candidate(n), text(n))).collect();
    let parts: Vec<HashPart> = answers.iter().map(|(part, _)| *part).collect();

    let mut group = c.benchmark_group("what caches said");
    group.throughput(Throughput::Elements(MANY.into()));
    group.bench_function("remember 2,000 narinfos", |b| {
        b.iter(|| cache.put(&answers))
    });
    group.bench_function("look up 2,000", |b| {
        b.iter(|| assert!(cache.get(&parts).iter().all(Option::is_some)));
    });
    group.bench_function("look up 2,000 of which nothing is known", |b| {
        let unknown: Vec<_> = (MANY..2 * MANY).map(inputs::candidate).collect();
        b.iter(|| assert!(cache.get(&unknown).iter().all(Option::is_none)));
    });
    group.finish();
}

async fn found(store: &LocalStore, paths: &[StorePath]) -> usize {
    let infos = store.infos(stream::iter(paths.to_vec()).boxed());
    let infos: Vec<_> = infos.try_collect().await.expect("all are answered");
    infos.iter().filter(|(_, info)| info.is_some()).count()
}

/// A new store that has the files of these paths, and knows nothing of them.
async fn with_content(infos: &[PathInfo]) -> (TempDir, LocalStore) {
    let folder = TempDir::new().expect("a temporary folder");
    let store = LocalStore::open(LocalConfig::chroot(folder.path())).await;
    let store = store.expect("it can be made");
    for info in infos {
        fs::write(store.real_path(&info.path), inputs::SMALL_FILE).expect("there is space");
    }
    (folder, store)
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads")
}

const MANY: u32 = 2000;
const SOME: u32 = 500;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = local, answers
}
criterion_main!(benches);
