//! The check of many paths in many caches.

mod support;

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::Permissions,
    num::NonZeroUsize,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use support::{add, chain, config, item, open, sample};
use tempfile::TempDir;
use tk_cache::{
    BinaryCache,
    checker::{
        CacheAnswer, CheckedPath, Checker, SignatureTrust, StoreInfos, Summary, UnreachableCache,
    },
    layout,
    objects::NarInfos,
};
use tk_narinfo::{Compression, NarInfo, PathInfo, Policy, SecretKey};
use tk_path::{Algorithm, Hash, HashPart, NarHash, StoreDir, StorePath};
use tk_store::{
    AddItems, AddOptions, AddReport, Error, MemoryStore, NarStream, Result, SigCheck, Store,
    StoreExt, nar,
};
use tokio::sync::Notify;

/// A cache of narinfos in memory that counts what it is asked, and can be told to fail or to wait.
#[derive(Default)]
struct Fake {
    dir: StoreDir,
    infos: BTreeMap<StorePath, PathInfo>,
    /// Paths for which the answer is an error.
    failing: BTreeSet<StorePath>,
    /// Answers after which it ends without a word.
    ends_after: Option<usize>,
    /// The order of the questions.
    asked: Mutex<Vec<StorePath>>,
    /// Questions without an answer so far, over all caches that share it.
    outstanding: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// How often it lets others go on before it answers, as a network does.
    latency: usize,
    /// Invents references without end.
    endless: bool,
    /// If set: answers only when `gate` was opened.
    gate: Option<Arc<Notify>>,
}

impl Fake {
    fn with(infos: impl IntoIterator<Item = PathInfo>) -> Self {
        let infos = infos.into_iter().map(|info| (info.path.clone(), info));
        Fake {
            infos: infos.collect(),
            ..Fake::default()
        }
    }

    fn asked(&self) -> Vec<StorePath> {
        self.asked.lock().unwrap().clone()
    }
}

impl NarInfos for Fake {
    fn store_dir(&self) -> &StoreDir {
        &self.dir
    }

    fn narinfos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        let answers = paths.map(move |path| {
            self.asked.lock().unwrap().push(path.clone());
            let now = 1 + self.outstanding.fetch_add(1, Ordering::SeqCst);
            self.most.fetch_max(now, Ordering::SeqCst);
            async move {
                if let Some(gate) = &self.gate {
                    gate.notified().await;
                    gate.notify_one();
                }
                for _ in 0..self.latency {
                    tokio::task::yield_now().await;
                }
                self.outstanding.fetch_sub(1, Ordering::SeqCst);
                let answer = if self.failing.contains(&path) {
                    Err(Error::io("asking", std::io::ErrorKind::TimedOut))
                } else if self.endless {
                    Ok(Some(invented(path.clone())))
                } else {
                    Ok(self.infos.get(&path).map(|info| {
                        let url = format!("nar/{}.nar", path.hash_part());
                        let mut narinfo = NarInfo::new(info.clone(), url, Compression::None);
                        narinfo.file_size = Some(info.nar_size / 2);
                        narinfo
                    }))
                };
                (path, answer)
            }
        });
        let answers = answers.buffer_unordered(usize::MAX);
        answers.take(self.ends_after.unwrap_or(usize::MAX)).boxed()
    }
}

#[async_trait]
impl Store for Fake {
    fn dir(&self) -> &StoreDir {
        &self.dir
    }

    async fn valid(&self, _: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        unreachable!("a check reads narinfos")
    }

    /// Errors that do not say which path they are about, and end the stream.
    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let mut failed = false;
        self.narinfos(paths)
            .map(|(path, answer)| Ok((path, answer?.map(|narinfo| narinfo.info))))
            .take_while(move |answer: &Result<_>| {
                let before = failed;
                failed |= answer.is_err();
                std::future::ready(!before)
            })
            .boxed()
    }

    async fn nar(&self, _: &StorePath) -> Result<NarStream> {
        unreachable!("a check reads narinfos")
    }

    async fn add(&self, _: AddItems<'_>, _: &AddOptions) -> Result<AddReport> {
        unreachable!("a check reads")
    }

    async fn find(&self, _: &HashPart) -> Result<Option<StorePath>> {
        unreachable!("a check reads narinfos")
    }
}

impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fake://")
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

/// The narinfo of a path with 4,000 references that were never named before.
fn invented(path: StorePath) -> NarInfo {
    let mut info = PathInfo::new(path.clone(), NarHash::from_bytes([0; 32]), 1);
    let name = |n: u32| {
        let seed = format!("{path} {n}");
        let digest = Hash::digest(Algorithm::Sha256, seed.as_bytes()).compress(20);
        StorePath::from_digest(&digest.try_into().unwrap(), "r").unwrap()
    };
    info.references = (0..4000).map(name).collect();
    NarInfo::new(info, "x".to_owned(), Compression::None)
}

fn info(name: &str, references: &[&PathInfo]) -> PathInfo {
    sample(
        name,
        name.as_bytes(),
        references.iter().map(|info| info.path.clone()),
    )
    .0
}

fn checker(caches: impl IntoIterator<Item = Fake>) -> Checker {
    let caches = caches.into_iter().map(|fake| Arc::new(fake) as _);
    Checker::new(caches.collect())
}

async fn check(checker: &Checker, paths: &[&PathInfo]) -> BTreeMap<StorePath, CheckedPath> {
    let paths: Vec<_> = paths.iter().map(|info| info.path.clone()).collect();
    let mut found = BTreeMap::new();
    let mut answers = checker.check(stream::iter(paths));
    while let Some(checked) = answers.next().await {
        assert_eq!(checked.answers.len(), checker.caches().len());
        let again = found.insert(checked.path.clone(), checked);
        assert!(again.is_none(), "answered for twice");
    }
    found
}

/// `P`, `A` or `E` for each cache.
fn letters(checked: &CheckedPath) -> String {
    let letter = |answer: &CacheAnswer| match answer {
        CacheAnswer::Present(..) => 'P',
        CacheAnswer::Absent => 'A',
        CacheAnswer::NotAsked(_) => 'E',
    };
    checked.answers.iter().map(letter).collect()
}

#[tokio::test]
async fn what_the_answers_of_two_caches_mean() {
    let path = info("a", &[]);
    let fake = |letter| match letter {
        'P' => Fake::with([path.clone()]),
        'A' => Fake::default(),
        _ => Fake {
            failing: [path.path.clone()].into(),
            ..Fake::with([path.clone()])
        },
    };
    for (said, present, missing, unknown, first) in [
        ("PP", true, false, false, Some(0)),
        ("PA", true, false, false, Some(0)),
        ("AP", true, false, false, Some(1)),
        ("AA", false, true, false, None),
        ("EP", true, false, false, Some(1)),
        ("PE", true, false, false, Some(0)),
        ("EA", false, false, true, None),
        ("AE", false, false, true, None),
        ("EE", false, false, true, None),
    ] {
        let checker = checker(said.chars().map(fake));
        let found = check(&checker, &[&path, &path]).await;
        let checked = &found[&path.path];
        assert_eq!(letters(checked), said);
        assert_eq!(checked.is_present(), present, "{said}");
        assert_eq!(checked.is_missing(), missing, "{said}");
        assert_eq!(checked.is_unknown(), unknown, "{said}");
        assert_eq!(checked.first().map(|(i, ..)| i), first, "{said}");
        assert!(checked.followed);
        let mut summary = Summary::default();
        summary.add(checked);
        let (size, download) = if present {
            (path.nar_size, path.nar_size / 2)
        } else {
            (0, 0)
        };
        let expected = (
            1,
            usize::from(present),
            usize::from(missing),
            usize::from(unknown),
            (size, download),
        );
        let counts = (
            summary.paths,
            summary.present,
            summary.missing,
            summary.unknown,
            (summary.nar_size, summary.download_size),
        );
        assert_eq!(counts, expected, "{said}");
        let caches: String = summary
            .caches
            .iter()
            .map(|c| match (c.present, c.absent, c.not_asked) {
                (1, 0, 0) => 'P',
                (0, 1, 0) => 'A',
                (0, 0, 1) => 'E',
                _ => '?',
            })
            .collect();
        assert_eq!(caches, said);
    }
}

#[tokio::test]
async fn a_cache_that_cannot_be_opened_does_not_end_the_others() {
    let [here, nowhere] = ["here", "nowhere"].map(|name| info(name, &[]));
    let dead = UnreachableCache::new("https://dead.example", StoreDir::default(), "no route");
    let alive = Fake::with([here.clone()]);
    let checker = Checker::new(vec![Arc::new(dead) as _, Arc::new(alive) as _]);
    let found = check(&checker, &[&here, &nowhere]).await;
    assert_eq!(letters(&found[&here.path]), "EP");
    assert!(found[&here.path].is_present());
    assert_eq!(letters(&found[&nowhere.path]), "EA");
    assert!(found[&nowhere.path].is_unknown(), "nobody could answer");
    let CacheAnswer::NotAsked(error) = &found[&nowhere.path].answers[0] else {
        panic!()
    };
    assert!(error.to_line().contains("no route"), "{error}");
}

/// It invents paths that refer to thousands that nobody heard of.
#[tokio::test]
async fn a_closure_without_end_is_given_up() {
    let endless = Fake {
        endless: true,
        ..Fake::default()
    };
    let checker = checker([endless]).closure(true).most_paths(10_000);
    let found = check(&checker, &[&info("root", &[])]).await;
    let end = found.values().find(|checked| checked.is_unknown()).unwrap();
    let CacheAnswer::NotAsked(error) = &end.answers[0] else {
        panic!()
    };
    assert!(error.to_line().contains("10000 paths"), "{error}");
    assert!(!end.followed);
}

#[tokio::test]
async fn nothing_to_check() {
    assert!(check(&checker([Fake::default()]), &[]).await.is_empty());
    let references = Arc::new(MemoryStore::new(StoreDir::default()));
    let checker = checker([]).closure(true).references_from(references);
    assert!(check(&checker, &[]).await.is_empty());
}

#[tokio::test]
async fn a_closure_is_followed_through_whatever_cache_has_the_path() {
    let leaf = info("leaf", &[]);
    let shared = info("shared", &[&leaf]);
    let left = info("left", &[&shared]);
    let right = info("right", &[&shared]);
    let root = info("root", &[&left, &right]);
    let checker = checker([
        Fake::with([root.clone(), right.clone()]),
        Fake::with([left.clone(), shared.clone()]),
    ])
    .closure(true);
    let found = check(&checker, &[&root]).await;
    let said: Vec<_> = [&root, &left, &right, &shared, &leaf]
        .map(|info| (letters(&found[&info.path]), found[&info.path].followed))
        .to_vec();
    let said: Vec<_> = said.iter().map(|(l, f)| (l.as_str(), *f)).collect();
    let expected = [
        ("PA", true),
        ("AP", true),
        ("PA", true),
        ("AP", true),
        ("AA", false),
    ];
    assert_eq!(said, expected);
    assert_eq!(found.len(), 5);

    let alone = checker.clone().closure(false);
    assert_eq!(check(&alone, &[&root]).await.len(), 1);
}

#[tokio::test]
async fn references_come_from_a_store_where_the_caches_have_none() {
    let (leaf, leaf_nar) = sample("leaf", b"1", []);
    let (middle, middle_nar) = sample("middle", b"2", [leaf.path.clone()]);
    let (root, root_nar) = sample("root", b"3", [middle.path.clone()]);
    let local = MemoryStore::new(StoreDir::default());
    for (info, bytes) in [(&leaf, leaf_nar), (&middle, middle_nar), (&root, root_nar)] {
        let nar = nar::from_bytes(bytes);
        local
            .add_one(info.clone(), nar, &SigCheck::Skip.into())
            .await
            .unwrap();
    }
    let elsewhere = info("elsewhere", &[&leaf]);
    let unknown = info("unknown", &[&leaf]);
    let checker = checker([Fake::with([elsewhere.clone(), leaf.clone()])])
        .closure(true)
        .references_from(Arc::new(local));
    let found = check(&checker, &[&root, &elsewhere, &unknown]).await;
    for (info, letter, followed) in [
        (&root, "A", true),
        (&middle, "A", true),
        (&leaf, "P", true),
        (&elsewhere, "P", true),
        (&unknown, "A", false),
    ] {
        let checked = &found[&info.path];
        let said = (letters(checked), checked.followed);
        assert_eq!(said, (letter.to_owned(), followed), "{}", info.path);
    }
    assert_eq!(found.len(), 5);
}

/// With the references at hand the caches are asked about all before any of them has answered.
#[tokio::test]
async fn with_a_store_of_references_a_closure_is_one_wave() {
    let local = MemoryStore::new(StoreDir::default());
    let links = chain(30);
    for (info, bytes) in &links {
        let nar = nar::from_bytes(bytes.clone());
        local
            .add_one(info.clone(), nar, &SigCheck::Skip.into())
            .await
            .unwrap();
    }
    let gate = Arc::new(Notify::new());
    let fake = Arc::new(Fake {
        gate: Some(gate.clone()),
        ..Fake::with(links.iter().map(|(info, _)| info.clone()))
    });
    let checker = Checker::new(vec![fake.clone()])
        .closure(true)
        .references_from(Arc::new(local));
    let root = links.last().unwrap().0.path.clone();
    let mut answers = checker.check(stream::iter([root]));
    let mut first = answers.next();
    while fake.asked().len() < links.len() {
        assert!(futures::poll!(&mut first).is_pending());
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    assert!(first.await.is_some());
    assert_eq!(answers.count().await, links.len() - 1);
}

#[tokio::test]
async fn a_store_of_references_that_fails_leaves_it_to_the_caches() {
    let leaf = info("leaf", &[]);
    let root = info("root", &[&leaf]);
    let broken = Fake {
        failing: [root.path.clone(), leaf.path.clone()].into(),
        ..Fake::default()
    };
    let checker = checker([Fake::with([root.clone(), leaf.clone()])])
        .closure(true)
        .references_from(Arc::new(broken));
    let found = check(&checker, &[&root]).await;
    assert_eq!(found.len(), 2);
    assert!(found.values().all(|checked| checked.followed));
}

#[tokio::test]
async fn a_cache_that_stops_answering_could_not_be_asked() {
    let infos: Vec<_> = (0..20).map(|i| info(&i.to_string(), &[])).collect();
    let paths: Vec<_> = infos.iter().collect();
    for window in [1, 7, 100] {
        let silent = Fake {
            ends_after: Some(5),
            ..Fake::default()
        };
        let checker =
            checker([silent, Fake::with(infos.clone())]).window(NonZeroUsize::new(window).unwrap());
        let found = check(&checker, &paths).await;
        let count = |said| found.values().filter(|c| letters(c) == said).count();
        assert_eq!((count("AP"), count("EP")), (5, 15), "window {window}");
    }
}

#[tokio::test]
async fn ten_thousand_paths_in_three_caches_are_asked_within_the_window() {
    const PATHS: usize = 10_000;
    let outstanding = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let infos: Vec<_> = (0..PATHS).map(|i| info(&i.to_string(), &[])).collect();
    for window in [64, 1024] {
        most.store(0, Ordering::SeqCst);
        let fakes = (0..3).map(|cache| Fake {
            outstanding: outstanding.clone(),
            most: most.clone(),
            // Longer than it takes to ask as much as may be asked.
            latency: 64,
            ..Fake::with(infos.iter().skip(cache).step_by(3).cloned())
        });
        let checker = checker(fakes).window(NonZeroUsize::new(window).unwrap());
        // How far the input was read ahead of the answers.
        let read = AtomicUsize::new(0);
        let input = stream::iter(infos.iter().map(|info| {
            read.fetch_add(1, Ordering::SeqCst);
            info.path.clone()
        }));
        let mut summary = Summary::default();
        let mut answers = checker.check(input);
        while let Some(checked) = answers.next().await {
            summary.add(&checked);
            // Those in the window, and what was complete in the same moment.
            let ahead = read.load(Ordering::SeqCst) - summary.paths;
            assert!(ahead <= 2 * window, "{ahead} with a window of {window}");
        }
        assert_eq!((summary.paths, summary.present), (PATHS, PATHS));
        assert_eq!(outstanding.load(Ordering::SeqCst), 0);
        let most = most.load(Ordering::SeqCst);
        assert!(
            most <= 3 * window,
            "{most} outstanding with a window of {window}"
        );
        assert!(
            most > 2 * window,
            "{most}: the caches are not asked at once"
        );
    }
}

#[tokio::test]
async fn a_deep_closure_is_followed_in_a_narrow_window() {
    let infos: Vec<_> = chain(300).into_iter().map(|(info, _)| info).collect();
    let root = infos.last().unwrap().clone();
    let checker = checker([Fake::with(infos)])
        .closure(true)
        .window(NonZeroUsize::MIN);
    assert_eq!(check(&checker, &[&root]).await.len(), 300);
}

#[tokio::test]
async fn signatures_are_judged_for_each_cache() {
    let key = SecretKey::generate("test-1").unwrap();
    let plain = info("a", &[]);
    let mut signed = plain.clone();
    signed.sign(&StoreDir::default(), &key).unwrap();
    let mut forged = signed.clone();
    forged.nar_size += 1;
    let caches = || [plain.clone(), signed.clone(), forged.clone()].map(|i| Fake::with([i]));
    let policy = Policy::new([key.public()].into_iter().collect());
    let trusts = |found: &BTreeMap<StorePath, CheckedPath>| -> Vec<SignatureTrust> {
        let answers = found[&plain.path].answers.iter();
        answers
            .map(|answer| match answer {
                CacheAnswer::Present(_, trust) => trust.clone(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let found = check(&checker(caches()), &[&plain]).await;
    assert_eq!(trusts(&found), [const { SignatureTrust::NotChecked }; 3]);

    let found = check(&checker(caches()).trust(policy.clone()), &[&plain]).await;
    let [unsigned, good, bad] = &trusts(&found)[..] else {
        panic!()
    };
    assert!(
        matches!(unsigned, SignatureTrust::Untrusted(_)),
        "{unsigned:?}"
    );
    assert_eq!(*good, SignatureTrust::Trusted { signatures: 1 });
    assert!(matches!(bad, SignatureTrust::Untrusted(_)), "{bad:?}");
    assert!(found[&plain.path].is_present() && found[&plain.path].is_trusted());
    let mut summary = Summary::default();
    summary.add(&found[&plain.path]);
    assert_eq!(summary.untrusted, 0, "one of them is enough");
    let untrusted: Vec<_> = summary.caches.iter().map(|c| c.untrusted).collect();
    assert_eq!(untrusted, [1, 0, 1]);

    let mut two = policy;
    two.threshold = 2;
    let found = check(&checker(caches()).trust(two), &[&plain]).await;
    assert!(!found[&plain.path].is_trusted() && found[&plain.path].is_present());
}

async fn folder(place: &TempDir, name: &str, items: &[&(PathInfo, bytes::Bytes)]) -> BinaryCache {
    let mut config = config(&place.path().join(name));
    config.require_references = false;
    let cache = open(config).await;
    let items = items
        .iter()
        .map(|(info, bytes)| item(info, bytes))
        .collect();
    assert_eq!(add(&cache, items).await.failed.len(), 0);
    cache
}

#[tokio::test]
async fn a_closure_over_two_folders_one_with_a_bad_narinfo() {
    let place = TempDir::new().unwrap();
    let links = chain(6);
    let (low, high): (Vec<_>, Vec<_>) = links.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    let items = |half: Vec<(usize, _)>| half.into_iter().map(|(_, l)| l).collect::<Vec<_>>();
    let first = folder(&place, "first", &items(low)).await;
    let second = folder(&place, "second", &items(high)).await;
    let bad = layout::narinfo(&links[2].0.path.to_hash_part());
    std::fs::write(place.path().join("first").join(bad), "<html>").unwrap();
    let checker = Checker::new(vec![Arc::new(first), Arc::new(second)]).closure(true);
    let found = check(&checker, &[&links[5].0]).await;
    let said: Vec<_> = links
        .iter()
        .map(|(info, _)| found.get(&info.path).map(letters))
        .collect();
    let expected = [None, None, Some("EA"), Some("AP"), Some("PA"), Some("AP")];
    assert_eq!(said, expected.map(|s| s.map(str::to_owned)));
    let broken = &found[&links[2].0.path];
    assert!(broken.is_unknown() && !broken.followed);
    let CacheAnswer::NotAsked(error) = &broken.answers[0] else {
        panic!()
    };
    assert!(error.to_line().contains(".narinfo"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_has_not_said_absent() {
    let place = TempDir::new().unwrap();
    let links = chain(2);
    let cache = folder(&place, "cache", &[&links[0]]).await;
    let root = place.path().join("cache");
    // Root reads whatever the permissions say; a file in the place of the folder stops it too.
    if rustix_is_root() {
        std::fs::rename(&root, place.path().join("away")).unwrap();
        std::fs::write(&root, "").unwrap();
    } else {
        std::fs::set_permissions(&root, Permissions::from_mode(0o0)).unwrap();
    }
    let checker = Checker::new(vec![Arc::new(cache)]);
    let found = check(&checker, &[&links[0].0, &links[1].0]).await;
    assert!(found.values().all(CheckedPath::is_unknown), "{found:?}");
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

#[tokio::test]
async fn any_store_answers_as_a_cache_path_by_path() {
    let infos: Vec<_> = (0..600).map(|i| info(&i.to_string(), &[])).collect();
    let fake = Fake {
        failing: [infos[7].path.clone(), infos[300].path.clone()].into(),
        ..Fake::with(infos[..599].iter().cloned())
    };
    let checker = Checker::new(vec![Arc::new(StoreInfos::new(Arc::new(fake)))]);
    let found = check(&checker, &infos.iter().collect::<Vec<_>>()).await;
    for (i, info) in infos.iter().enumerate() {
        let expected = match i {
            7 | 300 => "E",
            599 => "A",
            _ => "P",
        };
        assert_eq!(letters(&found[&info.path]), expected, "{i}");
    }
    let (_, narinfo, _) = found[&infos[0].path].first().unwrap();
    assert_eq!((narinfo.url.as_str(), narinfo.file_size), ("", None));
}

#[tokio::test]
async fn a_store_out_of_reach_is_not_tried_for_every_path() {
    let infos: Vec<_> = (0..200).map(|i| info(&i.to_string(), &[])).collect();
    let fake = Arc::new(Fake {
        failing: infos.iter().map(|info| info.path.clone()).collect(),
        ..Fake::default()
    });
    let store = StoreInfos::new(fake.clone());
    let paths = infos.iter().map(|info| info.path.clone());
    let answers: Vec<_> = store.narinfos(stream::iter(paths).boxed()).collect().await;
    assert_eq!(answers.len(), infos.len());
    for (path, answer) in answers {
        let error = answer.unwrap_err().to_line();
        assert!(error.contains("asking"), "{path}: {error}");
    }
    let asked = fake.asked().len();
    assert!(asked <= infos.len() + 3, "asked {asked} times");
}
