//! Caches far away over objects in memory: the suite of all stores, order, and faults.

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use support::{chain, item, sample};
use tempfile::TempDir;
use tk_cache::{
    BinaryCache, BinaryCacheConfig, CacheWarnings, layout,
    objects::{CachedNarInfo, NarInfoCache, NarInfos, ObjectMeta, Objects, Upload},
    observer::NetworkObserver,
};
use tk_narinfo::{Compression, NarInfo, PathInfo};
use tk_path::{HashPart, StoreDir};
use tk_store::{
    AddItem, AddOptions, AddReport, ByteStream, Error, Existing, MemoryStore, Result, SigCheck,
    Store, StoreExt, conformance,
    copy::{CopyOptions, Progress, Reach, plan},
    nar,
};

/// Objects in memory. Every write checks the invariant of caches.
#[derive(Default)]
struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    /// Every request, in order.
    log: Vec<String>,
    /// Verbs and ends of names whose requests fail.
    broken: BTreeSet<(&'static str, String)>,
    /// Whether incomplete closures are what is tested.
    incomplete: bool,
    /// What every question is answered with, if this is no cache.
    page: Option<Bytes>,
}

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Memory::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn break_at(&self, verb: &'static str, name: &str) {
        self.state().broken.insert((verb, name.to_owned()));
    }

    fn request(&self, verb: &str, name: &str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.log.push(format!("{verb} {name}"));
        let breaks = |(at, end): &(&str, String)| *at == verb && name.ends_with(end);
        if state.broken.iter().any(breaks) {
            Err(Error::io(
                format!("{verb} {name}"),
                std::io::ErrorKind::TimedOut,
            ))
        } else {
            Ok(state)
        }
    }

    fn requests(&self, verb: &str) -> usize {
        let state = self.state();
        state
            .log
            .iter()
            .filter(|line| line.starts_with(verb))
            .count()
    }

    fn put(&self, name: &str, content: Bytes) -> Result<()> {
        let mut state = self.request("put", name)?;
        if name.ends_with(".narinfo") && !state.incomplete {
            assert_complete(&state.objects, name, &content);
        }
        state.objects.insert(name.to_owned(), content);
        Ok(())
    }
}

/// A narinfo may only be written when its NAR and the narinfos of its references are there.
fn assert_complete(objects: &BTreeMap<String, Bytes>, name: &str, text: &[u8]) {
    let narinfo = NarInfo::parse(&StoreDir::default(), text).unwrap();
    let nar = objects
        .get(&narinfo.url)
        .unwrap_or_else(|| panic!("{name} before its NAR"));
    assert_eq!(narinfo.file_size, Some(nar.len() as u64));
    for reference in &narinfo.info.references {
        let other = format!("{}.narinfo", reference.hash_part());
        assert!(
            other == name || objects.contains_key(&other),
            "{name} before {other}"
        );
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory://objects")
    }
}

#[async_trait]
impl Objects for Memory {
    async fn read(&self, name: &str, limit: usize) -> Result<Option<Bytes>> {
        let content = {
            let state = self.request("get", name)?;
            state
                .page
                .clone()
                .or_else(|| state.objects.get(name).cloned())
        };
        assert!(
            content
                .as_ref()
                .is_none_or(|content| content.len() <= limit)
        );
        tokio::task::yield_now().await;
        Ok(content)
    }

    async fn look(&self, name: &str) -> Result<Option<ObjectMeta>> {
        let size = |content: &Bytes| Some(content.len() as u64);
        let state = self.request("look", name)?;
        Ok(state.objects.get(name).map(|content| ObjectMeta {
            size: size(content),
        }))
    }

    async fn stream(&self, url: &str) -> Result<Option<ByteStream>> {
        let content = self.request("get", url)?.objects.get(url).cloned();
        Ok(content.map(|content| {
            let chunks: Vec<_> = content.chunks(1000).map(Bytes::copy_from_slice).collect();
            stream::iter(chunks.into_iter().map(Ok)).boxed()
        }))
    }

    async fn write(&self, name: &str, content: Bytes, _: &str, only_new: bool) -> Result<bool> {
        tokio::task::yield_now().await;
        if only_new && self.state().objects.contains_key(name) {
            return Ok(false);
        }
        self.put(name, content).map(|()| true)
    }

    async fn upload(&self, upload: Upload<'_>) -> Result<()> {
        let chunks: Vec<Bytes> = upload.body.try_collect().await?;
        let all = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        // The other side breaks off in the middle, and takes all of it the next time.
        for taken in [all / 2, all / 4, all] {
            (upload.sent)(taken);
        }
        self.state().log.push(format!("large {}", upload.name));
        self.put(upload.name, chunks.concat().into())
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.request("remove", name)?.objects.remove(name);
        Ok(())
    }

    fn list(&self, folder: &str) -> BoxStream<'_, Result<String>> {
        let names = self.state().objects.keys().cloned().collect::<Vec<_>>();
        let folder = folder.to_owned();
        let within = move |name: &String| name.rsplit_once('/').map_or("", |(f, _)| f) == folder;
        let names = names.into_iter().filter(within);
        stream::iter(names.map(Ok)).boxed()
    }

    fn parallel(&self) -> usize {
        16
    }
}

fn config() -> BinaryCacheConfig {
    BinaryCacheConfig {
        compression: Compression::Zstd,
        level: Some(1),
        create: true,
        ..BinaryCacheConfig::default()
    }
}

async fn open(objects: &Arc<Memory>, config: BinaryCacheConfig) -> BinaryCache {
    BinaryCache::open(objects.clone(), config).await.unwrap()
}

async fn add(cache: &BinaryCache, items: Vec<Result<AddItem>>) -> AddReport {
    let items = stream::iter(items).boxed();
    cache.add(items, &SigCheck::Skip.into()).await.unwrap()
}

fn all(chain: &[(PathInfo, Bytes)]) -> Vec<Result<AddItem>> {
    chain.iter().map(|(info, nar)| item(info, nar)).collect()
}

/// A NAR that is still large when it is packed.
fn noise(name: &str, size: usize) -> (PathInfo, Bytes) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(size)
    .collect();
    sample(name, &content, [])
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    for compression in [Compression::None, Compression::Zstd, Compression::Xz] {
        let made = AtomicUsize::new(0);
        conformance::run(|| {
            let n = made.fetch_add(1, Relaxed);
            let mut config = config();
            config.compression = compression;
            config.write_listing = n % 2 == 1;
            async move { open(&Memory::new(), config).await }
        })
        .await;
    }
}

#[tokio::test]
async fn conforms_on_a_single_thread() {
    conformance::run(|| async {
        let mut config = config();
        config.jobs = NonZeroUsize::MIN;
        config.uploads = NonZeroUsize::MIN;
        open(&Memory::new(), config).await
    })
    .await;
    conformance::run_realisations(|| async { open(&Memory::new(), config()).await }).await;
    conformance::run_legacy_realisations(|| async { open(&Memory::new(), config()).await }).await;
    conformance::run_logs(|| async { open(&Memory::new(), config()).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_nars_are_sent_while_they_are_packed() {
    let objects = Memory::new();
    let cache = open(&objects, config()).await;
    let (large, nar) = noise("large", 9 << 20);
    let (small, small_nar) = noise("small", 1 << 20);
    let report = add(&cache, vec![item(&large, &nar), item(&small, &small_nar)]).await;
    assert_eq!(report.added.len(), 2, "{:?}", report.failed);
    assert_eq!(objects.requests("large"), 1);
    let mut read = Vec::new();
    let mut chunks = cache.nar(&large.path).await.unwrap();
    while let Some(chunk) = chunks.next().await {
        read.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(read, nar);
}

/// What has arrived of a large NAR follows what was sent of it, and never goes back.
#[tokio::test(flavor = "multi_thread")]
async fn large_nars_arrive_as_they_are_sent() {
    #[derive(Debug, Default)]
    struct Arrivals(Mutex<Vec<u64>>);

    impl Progress for Arrivals {
        fn arrived(&self, bytes: u64) {
            self.0.lock().unwrap().push(bytes);
        }
    }

    let cache = open(&Memory::new(), config()).await;
    let (info, nar) = noise("large", 9 << 20);
    let arrivals = Arc::new(Arrivals::default());
    let mut options = AddOptions::new(SigCheck::Skip);
    options.progress = arrivals.clone();
    let nar = nar::from_bytes(nar);
    cache.add_one(info.clone(), nar, &options).await.unwrap();
    let arrivals = arrivals.0.lock().unwrap().clone();
    assert_eq!(arrivals.iter().sum::<u64>(), info.nar_size);
    let first = arrivals[0];
    assert!(first.abs_diff(info.nar_size / 2) < 1 << 20, "{arrivals:?}");
    assert!(arrivals.len() < 4, "{arrivals:?}");
}

/// Nothing of a NAR that is not what its metadata says, small or large, becomes visible.
#[tokio::test(flavor = "multi_thread")]
async fn bad_nars_are_not_published() {
    for size in [1 << 10, 9 << 20] {
        let objects = Memory::new();
        let cache = open(&objects, config()).await;
        let (info, nar) = noise("bad", size);
        let mut bent = nar.to_vec();
        bent[size / 2] ^= 1;
        let report = add(&cache, vec![item(&info, &bent.into())]).await;
        assert!(
            matches!(report.failed[..], [(_, Error::Mismatch { .. })]),
            "{report:?}"
        );
        let cut = nar.slice(..size / 2);
        let report = add(&cache, vec![item(&info, &cut)]).await;
        assert!(
            matches!(report.failed[..], [(_, Error::Mismatch { .. })]),
            "{report:?}"
        );
        let names: Vec<_> = objects.state().objects.keys().cloned().collect();
        assert_eq!(names, ["nix-cache-info"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_takes_what_refers_to_it_along() {
    let objects = Memory::new();
    let cache = open(&objects, config()).await;
    let chain = chain(6);
    objects.break_at("get", &format!("{}.narinfo", chain[3].0.path.hash_part()));
    let options = AddOptions::from(SigCheck::Skip);
    let report = cache
        .add(stream::iter(all(&chain[..3])).boxed(), &options)
        .await
        .unwrap();
    assert_eq!(report.added.len(), 3);
    let error = cache
        .add(stream::iter(all(&chain[3..])).boxed(), &options)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(".narinfo"), "{error}");
    objects.state().broken.clear();
    let paths = cache.all_paths().await.unwrap();
    assert_eq!(
        paths.len(),
        3,
        "could not ask is not absent, and nothing was written"
    );
}

#[tokio::test]
async fn a_place_without_cache_info_is_no_cache() {
    let objects = Memory::new();
    let mut config = config();
    config.create = false;
    let error = BinaryCache::open(objects.clone(), config.clone())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("is not a binary cache"),
        "{error}"
    );
    objects.break_at("get", "nix-cache-info");
    let error = BinaryCache::open(objects.clone(), config.clone())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    objects.state().broken.clear();
    objects
        .put("nix-cache-info", "StoreDir: /other\n".into())
        .unwrap();
    let error = BinaryCache::open(objects, config).await.unwrap_err();
    assert!(matches!(error, Error::StoreDir { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_sends_again_what_is_there() {
    let objects = Memory::new();
    let cache = open(&objects, config()).await;
    let chain = chain(3);
    add(&cache, all(&chain)).await;
    let url = cache.narinfo(&chain[1].0.path).await.unwrap().unwrap().url;
    objects
        .state()
        .objects
        .insert(url.clone(), Bytes::from_static(b"rotten"));
    assert_eq!(add(&cache, all(&chain)).await.written, 0);
    let mut options = AddOptions::from(SigCheck::Skip);
    options.existing = Existing::Replace;
    let report = cache
        .add(stream::iter(all(&chain)).boxed(), &options)
        .await
        .unwrap();
    assert_eq!(report.added.len(), 3, "{:?}", report.failed);
    assert_ne!(objects.state().objects[&url], "rotten");
}

#[tokio::test]
async fn references_may_be_elsewhere_when_that_is_said() {
    let objects = Memory::new();
    objects.state().incomplete = true;
    let cache = open(&objects, config()).await;
    let chain = chain(2);
    let report = add(&cache, all(&chain[1..])).await;
    assert!(matches!(
        report.failed[..],
        [(_, Error::MissingReference { .. })]
    ));
    let mut options = AddOptions::from(SigCheck::Skip);
    options.elsewhere = Arc::new([chain[0].0.path.clone()].into());
    let asked = objects.requests("get");
    let items = stream::iter(all(&chain[1..])).boxed();
    let report = cache.add(items, &options).await.unwrap();
    assert_eq!(report.added.len(), 1, "{:?}", report.failed);
    assert_eq!(
        objects.requests("get"),
        asked + 1,
        "what is elsewhere is not asked for"
    );
}

#[tokio::test]
async fn what_was_asked_a_moment_ago_is_not_asked_again() {
    let objects = Memory::new();
    let cache = open(&objects, config()).await;
    let chain = chain(3);
    add(&cache, all(&chain[..1])).await;
    let src = MemoryStore::default();
    src.add(stream::iter(all(&chain)).boxed(), &SigCheck::Skip.into())
        .await
        .unwrap();
    let src: Arc<dyn Store> = Arc::new(src);
    let roots = BTreeSet::from([chain[2].0.path.clone()]);
    let asked = objects.requests("get");
    let plan = plan(&*src, &cache, &roots, &CopyOptions::new(SigCheck::Skip)).await;
    let report = plan.unwrap().run(&src, &cache, Arc::new(())).await.unwrap();
    assert_eq!((report.copied.len(), report.present.len()), (2, 1));
    assert_eq!(objects.requests("get") - asked, 3, "one question a path");
}

/// What is no narinfo of the path does not stand for it, and is written again.
#[tokio::test]
async fn broken_narinfos_are_written_again() {
    let objects = Memory::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut config = config();
    let sink = told.clone();
    config.warnings = CacheWarnings::to(move |warning| {
        sink.lock().unwrap().push(warning.to_string());
    });
    let cache = open(&objects, config).await;
    let chain = chain(2);
    add(&cache, all(&chain)).await;
    let paths: BTreeSet<_> = chain.iter().map(|(info, _)| info.path.clone()).collect();
    let names = chain
        .iter()
        .map(|(info, _)| layout::narinfo(&info.path.to_hash_part()));
    let names: Vec<_> = names.collect();
    let [good, other] = [&names[0], &names[1]].map(|name| objects.state().objects[name].clone());
    let foreign = String::from_utf8_lossy(&good).replace("/nix/store", "/gnu/store");
    for broken in [
        Bytes::new(),
        good.slice(..good.len() / 2),
        foreign.into(),
        other,
        "<html>Sign in</html>\n".into(),
    ] {
        objects
            .state()
            .objects
            .insert(names[0].clone(), broken.clone());
        let valid = cache.valid(&paths).await.unwrap();
        assert_eq!(
            valid,
            BTreeSet::from([chain[1].0.path.clone()]),
            "{broken:?}"
        );
        assert_eq!(told.lock().unwrap().len(), 1, "{broken:?}");
        let report = add(&cache, all(&chain)).await;
        assert_eq!((report.added.len(), report.failed.len()), (2, 0));
        assert_eq!(objects.state().objects[&names[0]], good);
        told.lock().unwrap().clear();
    }
}

/// A parked domain, a sign-in page, a console: it has no paths, and it takes none.
#[tokio::test]
async fn a_place_that_answers_everything_is_no_cache() {
    let chain = chain(2);
    let paths = chain.iter().map(|(info, _)| info.path.clone()).collect();
    for page in ["<html>Welcome</html>", "", "OK\n", "a: b\n"] {
        let objects = Memory::new();
        objects.state().page = Some(page.into());
        let cache = open(&objects, config()).await;
        let error = cache.valid(&paths).await.unwrap_err();
        assert!(
            error.to_line().contains("no binary cache is there"),
            "{error}"
        );
        let items = stream::iter(all(&chain)).boxed();
        assert!(cache.add(items, &SigCheck::Skip.into()).await.is_err());
        assert_eq!(objects.requests("put"), 0, "{page:?}");
    }
}

/// Else a moment behind a sign-in page would count for a month.
#[tokio::test]
async fn nonsense_is_not_remembered() {
    let objects = Memory::new();
    let chain = chain(1);
    let path = &chain[0].0.path;
    add(&open(&objects, config()).await, all(&chain)).await;
    let known = Arc::new(Remembered::default());
    let mut config = config();
    config.create = false;
    config.known = Some(known.clone());
    let cache = open(&objects, config).await;
    objects.state().page = Some("<html>Sign in</html>\n".into());
    assert!(cache.info(path).await.is_err());
    assert!(cache.find(&path.to_hash_part()).await.is_err());
    assert!(known.0.lock().unwrap().is_empty());
    objects.state().page = None;
    assert!(cache.info(path).await.unwrap().is_some());
    // What an older version remembered is asked again.
    let nonsense = (path.to_hash_part(), Some(Bytes::from_static(b"<html>")));
    known.put(&[nonsense]);
    assert!(cache.info(path).await.unwrap().is_some());
}

/// The path is the same, and so is the URL; what is remembered is the old narinfo.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_was_rebuilt_is_asked_for_again() {
    for (rename, reference) in [(false, false), (true, false), (false, true)] {
        let objects = Memory::new();
        let known = Arc::new(Remembered::default());
        let mut config = config();
        config.known = Some(known.clone());
        let (old, nar) = sample("rebuilt", b"old", []);
        let (base, base_nar) = sample("base", b"base", []);
        let cache = open(&objects, config).await;
        add(&cache, vec![item(&old, &nar)]).await;
        let before = cache.narinfo(&old.path).await.unwrap().unwrap();
        let references = reference.then(|| base.path.clone());
        let (new, nar) = sample("rebuilt", b"new", references);
        assert_eq!(new.path, old.path);
        let other = open(
            &objects,
            BinaryCacheConfig {
                compression: Compression::None,
                ..self::config()
            },
        )
        .await;
        add(&other, vec![item(&base, &base_nar)]).await;
        let mut options = AddOptions::from(SigCheck::Skip);
        options.existing = Existing::Replace;
        let items = stream::iter([item(&new, &nar)]).boxed();
        other.add(items, &options).await.unwrap();
        let mut narinfo = other.narinfo(&new.path).await.unwrap().unwrap();
        if !rename {
            // Where the old one was.
            let mut state = objects.state();
            let packed = state.objects.remove(&narinfo.url).unwrap();
            state.objects.insert(before.url.clone(), packed);
            narinfo.url = before.url.clone();
            let name = layout::narinfo(&new.path.to_hash_part());
            let text = narinfo.print(&StoreDir::default());
            state.objects.insert(name, text.into());
        } else {
            objects.state().objects.remove(&before.url);
        }
        let src: Arc<dyn Store> = Arc::new(cache);
        let remembered = src.info(&old.path).await.unwrap().unwrap();
        assert_eq!(remembered.nar_hash, old.nar_hash, "by the old narinfo");
        let dst = MemoryStore::default();
        let roots = [old.path.clone()].into();
        let mut options = CopyOptions::new(SigCheck::Skip);
        options.reach = Reach::Missing;
        let plan = plan(&*src, &dst, &roots, &options).await.unwrap();
        let report = plan.run(&src, &dst, Arc::new(())).await.unwrap();
        assert!(
            report.failed.is_empty(),
            "{rename} {reference}: {:?}",
            report.failed
        );
        let found = dst.info(&old.path).await.unwrap().unwrap();
        assert_eq!(found.nar_hash, new.nar_hash);
    }
}

/// One request each, whatever is broken among them.
#[tokio::test]
async fn all_narinfos_are_read_once_and_past_a_broken_one() {
    let objects = Memory::new();
    let cache = open(&objects, config()).await;
    let chain = chain(5);
    add(&cache, all(&chain)).await;
    let nobody = layout::narinfo(&HashPart::parse(&"0".repeat(32)).unwrap());
    objects.state().objects.insert(nobody.clone(), Bytes::new());
    let asked = objects.requests("get");
    let all: BTreeMap<_, _> = cache.all_narinfos().await.unwrap().collect().await;
    assert_eq!(objects.requests("get") - asked, 6);
    assert_eq!(all.values().filter(|found| found.is_ok()).count(), 5);
    assert!(
        all[&nobody]
            .as_ref()
            .unwrap_err()
            .to_line()
            .contains(&nobody)
    );
    assert!(cache.all_paths().await.is_err());
}

/// A push that broke off is taken up where it stood: what arrived is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_is_not_sent_again() {
    let folder = TempDir::new().unwrap();
    let journal = folder.path().join("journal");
    let objects = Memory::new();
    let mut config = config();
    config.journal = Some((journal.clone(), "memory".to_owned()));
    let chain = chain(8);
    let narinfo = format!("{}.narinfo", chain[2].0.path.hash_part());
    objects.break_at("put", &narinfo);
    let cache = open(&objects, config.clone()).await;
    let report = add(&cache, all(&chain)).await;
    assert_eq!((report.added.len(), report.failed.len()), (2, 6));
    drop(cache);
    let sent = objects.requests("put nar/");
    assert!(sent >= 3, "{sent}");

    objects.state().broken.clear();
    let cache = open(&objects, config).await;
    let report = add(&cache, all(&chain)).await;
    assert_eq!(report.added.len(), 8, "{:?}", report.failed);
    assert_eq!(objects.requests("put nar/"), 8, "each NAR once, over both");
    let left: Vec<_> = std::fs::read_dir(journal).unwrap().collect();
    assert!(left.is_empty(), "the journal of what is done: {left:?}");
}

/// What people are warned of.
#[derive(Debug, Default)]
struct Warnings(Mutex<Vec<String>>);

impl NetworkObserver for Warnings {
    fn warned(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// A home that is not there, or may not be written: the journal is a convenience.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_written_is_done_without() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let objects = Memory::new();
    let told = Arc::new(Warnings::default());
    let mut config = config();
    config.journal = Some((file.join("journal"), "memory".to_owned()));
    config.observer = told.clone();
    let cache = open(&objects, config).await;
    let report = add(&cache, all(&chain(8))).await;
    assert_eq!(report.added.len(), 8, "{:?}", report.failed);
    cache.tidy().await.unwrap();
    let warnings = told.0.lock().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("a file/journal"), "{warnings:?}");
}

/// What this process uploaded is not what the server said.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_asked_first_and_never_told_of_uploads() {
    let objects = Memory::new();
    let chain = chain(4);
    let writer = open(&objects, config()).await;
    add(&writer, all(&chain[..2])).await;

    let known = Arc::new(Remembered::default());
    let mut config = config();
    config.known = Some(known.clone());
    let cache = open(&objects, config.clone()).await;
    let paths: Vec<_> = chain.iter().map(|(info, _)| info.path.clone()).collect();
    for round in 0..2 {
        let before = objects.requests("get");
        let found: BTreeMap<_, _> = cache
            .narinfos(stream::iter(paths.clone()).boxed())
            .map(|(path, found)| (path, found.unwrap().is_some()))
            .collect()
            .await;
        let there: Vec<_> = paths.iter().map(|path| found[path]).collect();
        assert_eq!(there, [true, true, false, false]);
        let asked = objects.requests("get") - before;
        assert_eq!(asked, if round == 0 { 4 } else { 0 });
    }
    add(&cache, all(&chain)).await;
    let part = chain[3].0.path.to_hash_part();
    assert_eq!(known.get(&[part]), [None], "it was absent, then uploaded");
    // A NAR that is gone makes what was remembered worthless.
    let narinfo = cache.narinfo(&paths[0]).await.unwrap().unwrap();
    objects.state().objects.remove(&narinfo.url);
    let error = cache.nar(&paths[0]).await.map(drop).unwrap_err();
    assert!(error.to_line().contains("its NAR is not"), "{error}");
    let first = paths[0].to_hash_part();
    assert_eq!(known.get(&[first]), [None]);
    assert!(cache.info(&paths[1]).await.unwrap().is_some());
}

#[derive(Debug, Default)]
struct Remembered(Mutex<BTreeMap<String, Option<Bytes>>>);

impl NarInfoCache for Remembered {
    fn get(&self, parts: &[HashPart]) -> Vec<Option<CachedNarInfo>> {
        let known = self.0.lock().unwrap();
        let look = |part: &HashPart| match known.get(part.as_str())? {
            Some(text) => Some(CachedNarInfo::Present(text.clone())),
            None => Some(CachedNarInfo::Absent),
        };
        parts.iter().map(look).collect()
    }

    fn put(&self, answers: &[(HashPart, Option<Bytes>)]) {
        let answers = answers
            .iter()
            .map(|(part, text)| (part.as_str().to_owned(), text.clone()));
        self.0.lock().unwrap().extend(answers);
    }

    fn forget(&self, parts: &[HashPart]) {
        let mut known = self.0.lock().unwrap();
        parts
            .iter()
            .for_each(|part| drop(known.remove(part.as_str())));
    }

    fn cache_info(&self) -> Option<Option<Bytes>> {
        None
    }

    fn put_cache_info(&self, _: Option<&[u8]>) {}
}
