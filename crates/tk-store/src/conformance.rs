//! The suite that every store must pass: the same questions put to a folder, a database, a daemon.
//!
//! [`run`] takes a function that gives a new, empty, writable store each time it is called. It
//! panics at the first thing that is wrong, as tests do.

use crate::{
    AddOptions, AddReport, Error, Graph, Logs, NarStream, Realisations, Result, SigCheck, Store,
    StoreExt, closure, nar, progress::Progress, verify,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tk_narinfo::{
    PathInfo, Policy, SecretKey, TrustedKeys,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, ContentAddress, Derivation, DerivationOutput, Hash, Inputs, Method, NarHash,
    OutputName, References, StoreDir, StorePath,
};

/// Runs the whole suite; each case gets a store of its own from `make`.
pub async fn run<S, F>(make: impl Fn() -> F)
where
    S: Store,
    F: Future<Output = S>,
{
    empty_store(&make().await).await;
    add_and_read_back(&make().await).await;
    progress(&make().await).await;
    add_twice(&make().await).await;
    references(&make().await).await;
    reference_that_is_not_there(&make().await).await;
    failed_path_takes_its_referrers_along(&make().await).await;
    wrong_content(&make().await).await;
    broken_streams(&make().await).await;
    failing_items(&make().await).await;
    signatures(&make().await).await;
    content_address(&make().await).await;
    hash_part(&make().await).await;
    many_paths(&make().await).await;
    questions_that_follow_answers(&make().await).await;
    at_the_same_time(&make().await).await;
    large_nar(&make().await).await;
}

/// Runs the suite of stores that know more than metadata; as [`run`].
pub async fn run_graph<S, F>(make: impl Fn() -> F)
where
    S: Graph,
    F: Future<Output = S>,
{
    graph(&make().await).await;
    derivations(&make().await).await;
}

/// Runs the suite of stores that know realisations of the newer form; as [`run`].
pub async fn run_realisations<S, F>(make: impl Fn() -> F)
where
    S: Realisations,
    F: Future<Output = S>,
{
    realisations(&make().await).await;
}

/// The same for the older form.
pub async fn run_legacy_realisations<S, F>(make: impl Fn() -> F)
where
    S: Realisations,
    F: Future<Output = S>,
{
    legacy_realisations(&make().await).await;
}

/// Runs the suite of stores that keep build logs; as [`run`].
pub async fn run_logs<S, F>(make: impl Fn() -> F)
where
    S: Logs,
    F: Future<Output = S>,
{
    build_logs(&make().await).await;
}

/// Returns the NAR of a file that is not executable, for tests: written out word by word, so that they do not
/// lean on the encoder.
pub fn file_nar(content: &[u8]) -> Bytes {
    let mut nar = Vec::new();
    for token in [
        b"nix-archive-1".as_slice(),
        b"(",
        b"type",
        b"regular",
        b"contents",
        content,
        b")",
    ] {
        nar.extend((token.len() as u64).to_le_bytes());
        nar.extend(token);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar.into()
}

async fn empty_store(store: &dyn Store) {
    let (info, _) = sample(store.dir(), "absent", b"absent", []);
    let path = info.path.clone();
    assert!(
        store
            .valid(&BTreeSet::from([path.clone()]))
            .await
            .unwrap()
            .is_empty()
    );
    assert!(store.valid(&BTreeSet::new()).await.unwrap().is_empty());
    assert_eq!(store.info(&path).await.unwrap(), None);
    assert_eq!(store.find(&path.to_hash_part()).await.unwrap(), None);
    let nar = match store.nar(&path).await {
        Ok(nar) => nar.try_collect::<Vec<_>>().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(nar, Err(Error::NotFound { .. })), "{nar:?}");
    let report = add(store, vec![]).await;
    assert!(report.added.is_empty() && report.failed.is_empty());
}

async fn add_and_read_back(store: &dyn Store) {
    let (info, nar) = sample(store.dir(), "hello-1.0", b"hello, world\n", []);
    let report = add(store, vec![item(&info, &nar)]).await;
    assert_eq!(
        report.added,
        std::slice::from_ref(&info.path),
        "{:?}",
        report.failed
    );
    let paths = BTreeSet::from([info.path.clone()]);
    assert_eq!(store.valid(&paths).await.unwrap(), paths);
    let found = store.require_info(&info.path).await.unwrap();
    assert_same(&found, &info);
    assert_eq!(read(store, &info.path).await, nar);
    verify(store, &found).await.unwrap();
}

/// In the end all of a NAR has arrived, however it was sent; of one that is there already, nothing.
async fn progress(store: &dyn Store) {
    let (info, nar) = sample(store.dir(), "watched", &vec![b'w'; 300_000], []);
    for expected in [info.nar_size, 0] {
        let seen = Arc::new(SeenProgress::default());
        let options = AddOptions {
            progress: seen.clone(),
            ..SigCheck::Skip.into()
        };
        let nar = nar::from_bytes(nar.clone());
        store.add_one(info.clone(), nar, &options).await.unwrap();
        assert_eq!(seen.arrived.load(Ordering::Relaxed), expected);
        assert_eq!(*seen.visible.lock().unwrap(), vec![info.path.clone()]);
    }
}

async fn add_twice(store: &dyn Store) {
    let (info, nar) = sample(store.dir(), "twice", b"twice", []);
    for _ in 0..2 {
        let report = add(store, vec![item(&info, &nar)]).await;
        assert_eq!(
            report.added,
            std::slice::from_ref(&info.path),
            "{:?}",
            report.failed
        );
    }
    // What is there is not replaced, not even by a lie.
    let lie = lazy_panic();
    let report = add(store, vec![Ok((info.clone(), lie))]).await;
    assert_eq!(
        report.added,
        std::slice::from_ref(&info.path),
        "{:?}",
        report.failed
    );
    assert_eq!(read(store, &info.path).await, nar);
}

async fn references(store: &dyn Store) {
    let chain = chain(store.dir(), 5);
    let report = add(store, chain.iter().map(|(i, n)| item(i, n)).collect()).await;
    assert_eq!(report.added.len(), 5, "{:?}", report.failed);
    let top = chain.last().unwrap().0.path.clone();
    let found = closure(store, [top]).await.unwrap();
    assert!(found.absent.is_empty());
    let order: Vec<_> = found.references_first().unwrap();
    for (found, (info, _)) in order.iter().zip(&chain) {
        assert_same(found, info);
    }
    assert_eq!(order.len(), 5);
}

async fn reference_that_is_not_there(store: &dyn Store) {
    let (absent, _) = sample(store.dir(), "absent", b"absent", []);
    let (info, nar) = sample(store.dir(), "dangling", b"dangling", [absent.path]);
    let report = add(store, vec![item(&info, &nar)]).await;
    let [(path, Error::MissingReference { .. })] = &report.failed[..] else {
        panic!("{report:?}");
    };
    assert_eq!(*path, info.path);
    assert_eq!(store.info(&info.path).await.unwrap(), None);
}

async fn failed_path_takes_its_referrers_along(store: &dyn Store) {
    let chain = chain(store.dir(), 4);
    let (alone, alone_nar) = sample(store.dir(), "alone", b"alone", []);
    let mut items: Vec<_> = chain.iter().map(|(i, n)| item(i, n)).collect();
    items[1] = Ok((
        chain[1].0.clone(),
        nar::from_bytes(file_nar(b"something else")),
    ));
    items.push(item(&alone, &alone_nar));
    let report = add(store, items).await;
    let failed: BTreeSet<_> = report.failed.iter().map(|(path, _)| path).collect();
    let expected: BTreeSet<_> = chain[1..].iter().map(|(info, _)| &info.path).collect();
    assert_eq!(failed, expected);
    let all = chain
        .iter()
        .map(|(i, _)| i.path.clone())
        .chain([alone.path.clone()]);
    let there = store.valid(&all.collect()).await.unwrap();
    assert_eq!(there, BTreeSet::from([chain[0].0.path.clone(), alone.path]));
}

async fn wrong_content(store: &dyn Store) {
    let (info, nar) = sample(store.dir(), "wrong", b"the right content", []);
    let mut flipped = nar.to_vec();
    let at = flipped.windows(5).position(|w| w == b"right").unwrap();
    flipped[at] ^= 1;
    refused(store, &info, nar::from_bytes(flipped), "a flipped bit").await;
    for cut in [0, 1, 8, nar.len() / 2, nar.len() - 1] {
        refused(store, &info, nar::from_bytes(nar.slice(..cut)), "a cut NAR").await;
    }
    let longer = Bytes::from([&nar[..], b"12345678"].concat());
    refused(
        store,
        &info,
        nar::from_bytes(longer.clone()),
        "a longer NAR",
    )
    .await;

    let mut lie = info.clone();
    lie.nar_size += 8;
    refused(store, &lie, nar::from_bytes(nar.clone()), "a wrong size").await;
    // Bytes that are what the metadata says, and yet no NAR.
    for bytes in [
        longer,
        Bytes::from_static(b"not a NAR at all"),
        nar.slice(..nar.len() - 8),
    ] {
        let mut lie = info.clone();
        lie.nar_size = bytes.len() as u64;
        lie.nar_hash = hash(&bytes);
        refused(store, &lie, nar::from_bytes(bytes), "no NAR").await;
    }
    // None of it is in the way of the right content.
    let report = add(store, vec![item(&info, &nar)]).await;
    assert_eq!(report.added, [info.path], "{:?}", report.failed);
}

async fn broken_streams(store: &dyn Store) {
    let (info, nar) = sample(store.dir(), "broken", b"broken on the way", []);
    let half = nar.slice(..nar.len() / 2);
    let broken = || Error::io("reading the far end", std::io::Error::other("it hung up"));
    let stream = stream::iter([Ok(half), Err(broken())]).boxed();
    refused(store, &info, stream, "a broken stream").await;
    refused(
        store,
        &info,
        nar::lazy(async move { Err(broken()) }),
        "no stream",
    )
    .await;
    // One byte at a time, with empty chunks between, is as good as any other way.
    let bytes: Vec<_> = (0..nar.len())
        .flat_map(|i| [Ok(nar.slice(i..=i)), Ok(Bytes::new())])
        .collect();
    let report = add(store, vec![Ok((info.clone(), stream::iter(bytes).boxed()))]).await;
    assert_eq!(report.added, [info.path], "{:?}", report.failed);
}

async fn failing_items(store: &dyn Store) {
    let (info, nar) = sample(store.dir(), "before", b"before", []);
    let items = vec![item(&info, &nar), Err(Error::invalid("the list ends here"))];
    let added = store
        .add(stream::iter(items).boxed(), &SigCheck::Skip.into())
        .await;
    assert!(added.is_err(), "an error of the items was swallowed");
    // Whatever was made of the first one, the store goes on.
    let report = add(store, vec![item(&info, &nar)]).await;
    assert_eq!(report.added, [info.path], "{:?}", report.failed);
}

async fn signatures(store: &dyn Store) {
    let key = SecretKey::generate("conformance-1").unwrap();
    let other = SecretKey::generate("conformance-2").unwrap();
    let policy = |keys: Vec<_>, threshold| {
        let keys = TrustedKeys::from_iter(keys);
        SigCheck::Require(Arc::new(Policy { keys, threshold }))
    };
    let check = policy(vec![key.public()], 1);
    let (mut info, nar) = sample(store.dir(), "signed", b"signed", []);
    let try_add = |info: PathInfo, check: SigCheck| {
        let nar = nar::from_bytes(nar.clone());
        async move { store.add_one(info, nar, &check.into()).await }
    };
    let unsigned = try_add(info.clone(), check.clone()).await;
    assert!(
        matches!(unsigned, Err(Error::Untrusted { .. })),
        "{unsigned:?}"
    );
    info.sign(store.dir(), &other).unwrap();
    let stranger = try_add(info.clone(), check.clone()).await;
    assert!(
        matches!(stranger, Err(Error::Untrusted { .. })),
        "{stranger:?}"
    );
    assert_eq!(store.info(&info.path).await.unwrap(), None);

    info.sign(store.dir(), &key).unwrap();
    let mut lie = info.clone();
    lie.nar_size += 8;
    let lie = try_add(lie, check.clone()).await;
    assert!(matches!(lie, Err(Error::Untrusted { .. })), "{lie:?}");
    let too_few = policy(vec![key.public()], 2);
    assert!(try_add(info.clone(), too_few).await.is_err());
    try_add(info.clone(), policy(vec![key.public(), other.public()], 2))
        .await
        .unwrap();
    let found = store.require_info(&info.path).await.unwrap();
    assert_eq!(found.signatures, info.signatures);
}

async fn content_address(store: &dyn Store) {
    let nar = file_nar(b"I am what I am");
    let nobody = TrustedKeys::from_iter([]);
    let check = SigCheck::Require(Arc::new(Policy {
        keys: nobody,
        threshold: 1,
    }));
    let ca = ContentAddress {
        method: Method::Nar,
        hash: hash(&nar).into(),
    };
    let path = store
        .dir()
        .path_of_content("self-evident", &ca, &References::default());
    let mut info = PathInfo::new(path.unwrap(), hash(&nar), nar.len() as u64);
    info.ca = Some(ca);
    let mut lie = info.clone();
    lie.path = StorePath::from_digest(&[7; 20], "self-evident").unwrap();
    let added = store
        .add_one(
            lie.clone(),
            nar::from_bytes(nar.clone()),
            &check.clone().into(),
        )
        .await;
    assert!(matches!(added, Err(Error::Untrusted { .. })), "{added:?}");
    // Nor where nobody has to sign: the address would vouch for the path later.
    refused(store, &lie, nar::from_bytes(nar.clone()), "a false address").await;
    store
        .add_one(info.clone(), nar::from_bytes(nar), &check.clone().into())
        .await
        .unwrap();
    assert_same(&store.require_info(&info.path).await.unwrap(), &info);
}

async fn hash_part(store: &dyn Store) {
    let (info, nar) = sample(store.dir(), "by-hash-part", b"x", []);
    let (other, _) = sample(store.dir(), "other", b"y", []);
    add(store, vec![item(&info, &nar)]).await;
    let found = store.find(&info.path.to_hash_part()).await.unwrap();
    assert_eq!(found, Some(info.path));
    assert_eq!(store.find(&other.path.to_hash_part()).await.unwrap(), None);
}

async fn many_paths(store: &dyn Store) {
    let samples: Vec<_> = (0..300)
        .map(|i| {
            sample(
                store.dir(),
                &format!("many-{i}"),
                format!("{i}").as_bytes(),
                [],
            )
        })
        .collect();
    let report = add(
        store,
        samples.iter().step_by(2).map(|(i, n)| item(i, n)).collect(),
    )
    .await;
    assert_eq!(report.added.len(), 150, "{:?}", report.failed);
    let all: BTreeSet<_> = samples.iter().map(|(info, _)| info.path.clone()).collect();
    let there: BTreeSet<_> = samples
        .iter()
        .step_by(2)
        .map(|(i, _)| i.path.clone())
        .collect();
    assert_eq!(store.valid(&all).await.unwrap(), there);
    let answers = store.infos(stream::iter(all.clone()).boxed());
    let answers: Vec<_> = answers.try_collect().await.unwrap();
    assert_eq!(answers.len(), all.len(), "each question has one answer");
    for (path, info) in answers {
        assert_eq!(info.is_some(), there.contains(&path), "{path}");
        assert!(info.is_none_or(|info| info.path == path));
    }
}

async fn questions_that_follow_answers(store: &dyn Store) {
    let chain = chain(store.dir(), 30);
    add(store, chain.iter().map(|(i, n)| item(i, n)).collect()).await;
    let top = chain.last().unwrap().0.path.clone();
    // A store that waits for more questions before it answers would hang here.
    let walk = closure(store, [top]);
    let found = tokio::time::timeout(std::time::Duration::from_secs(60), walk).await;
    let found = found
        .expect("the walk hangs: infos() waits for its input to end")
        .unwrap();
    assert_eq!(found.infos.len(), 30);
}

async fn at_the_same_time(store: &dyn Store) {
    let (base, base_nar) = sample(store.dir(), "base", &[b'b'; 100_000], []);
    let tops: Vec<_> = (0..8)
        .map(|i| {
            let content = format!("top {i}");
            sample(
                store.dir(),
                &content.replace(' ', "-"),
                content.as_bytes(),
                [base.path.clone()],
            )
        })
        .collect();
    let adds = tops
        .iter()
        .map(|(top, nar)| add(store, vec![item(&base, &base_nar), item(top, nar)]));
    for report in futures::future::join_all(adds).await {
        assert_eq!(report.added.len(), 2, "{:?}", report.failed);
    }
    assert_eq!(read(store, &base.path).await, base_nar);
}

async fn large_nar(store: &dyn Store) {
    let content: Vec<u8> = (0..9_000_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    let (info, nar) = sample(store.dir(), "large", &content, []);
    let chunks = (0..nar.len()).step_by(65_521);
    let chunks = chunks.map(|at| Ok(nar.slice(at..nar.len().min(at + 65_521))));
    let chunks = stream::iter(chunks.collect::<Vec<_>>()).boxed();
    store
        .add_one(info.clone(), chunks, &SigCheck::Skip.into())
        .await
        .unwrap();
    assert!(
        read(store, &info.path).await == nar,
        "a large NAR came back changed"
    );
}

async fn graph(store: &dyn Graph) {
    assert!(store.all_paths().await.unwrap().is_empty());
    let chain = chain(store.dir(), 3);
    add_all(store, &chain).await;
    let [one, two, three] = [0, 1, 2].map(|i: usize| chain[i].0.path.clone());
    let all = BTreeSet::from([one.clone(), two.clone(), three.clone()]);
    assert_eq!(store.all_paths().await.unwrap(), all);
    for (path, referrers) in [
        (&one, BTreeSet::from([one.clone(), two.clone()])),
        (&two, BTreeSet::from([two.clone(), three.clone()])),
        (&three, BTreeSet::from([three.clone()])),
    ] {
        assert_eq!(store.referrers(path).await.unwrap(), referrers);
    }
    let (absent, _) = sample(store.dir(), "absent", b"", []);
    assert!(store.referrers(&absent.path).await.unwrap().is_empty());
    assert!(store.valid_derivers(&one).await.unwrap().is_empty());
    let outputs = store.output_map(&drv_path("absent")).await;
    assert!(
        matches!(outputs, Err(Error::NotFound { .. })),
        "{outputs:?}"
    );
}

async fn derivations(store: &dyn Graph) {
    let hash = Hash::digest(Algorithm::Sha256, b"the content");
    let method = Method::Flat;
    let ca = ContentAddress { method, hash };
    let fixed = DerivationOutput::Fixed(ca);
    let floating = DerivationOutput::Floating(ca.method_algorithm());
    for (name, output, known) in [("fixed", fixed, true), ("floating", floating, false)] {
        let drv = Derivation {
            name: name.to_owned(),
            outputs: [(OutputName::out(), output.clone())].into(),
            inputs: Inputs::default(),
            platform: "any".into(),
            builder: "/bin/sh".into(),
            args: vec![],
            env: BTreeMap::new(),
        };
        let path = add_drv(store, drv).await;
        let out = output.path(store.dir(), name, &OutputName::out());
        let out = out.unwrap();
        assert_eq!(out.is_some(), known);
        let outputs = store.output_map(&path).await.unwrap();
        assert_eq!(outputs, [(OutputName::out(), out.clone())].into());
        if let Some(out) = out {
            let derivers = store.valid_derivers(&out).await.unwrap();
            assert_eq!(derivers, [path].into());
        }
    }
}

/// Adds a derivation; its environment gets the path of its output, if that is known.
async fn add_drv(store: &dyn Store, mut drv: Derivation) -> StorePath {
    let out = drv.outputs[&OutputName::out()].path(store.dir(), &drv.name, &OutputName::out());
    if let Some(out) = out.unwrap() {
        drv.env.insert("out".into(), store.dir().path(&out).into());
    }
    let nar = file_nar(&drv.to_aterm(store.dir()).unwrap());
    let path = drv.path(store.dir()).unwrap();
    let info = PathInfo::new(path.clone(), hash(&nar), nar.len() as u64);
    let report = add(store, vec![item(&info, &nar)]).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    path
}

async fn realisations(store: &dyn Realisations) {
    let (out, nar) = sample(store.dir(), "out", b"out", []);
    let (other, other_nar) = sample(store.dir(), "other", b"other", []);
    add_all(store, &[(out.clone(), nar), (other.clone(), other_nar)]).await;
    let id = DrvOutput {
        drv: drv_path("realised"),
        output: OutputName::out(),
    };
    assert_eq!(store.realisation(&id).await.unwrap(), None);
    let mut first = Realisation {
        id: id.clone(),
        value: UnkeyedRealisation::new(out.path.clone()),
    };
    let keys = ["one-1", "two-1"].map(|name| SecretKey::generate(name).unwrap());
    let check = require(&keys[0]);
    let refused = store.register(&first, &check).await;
    assert!(
        matches!(refused, Err(Error::Untrusted { .. })),
        "{refused:?}"
    );
    assert_eq!(store.realisation(&id).await.unwrap(), None);
    let mut second = first.clone();
    first.sign(&keys[0]);
    store.register(&first, &check).await.unwrap();
    let found = store.realisation(&id).await.unwrap();
    assert_eq!(found, Some(first.value.clone()));
    second.sign(&keys[1]);
    store.register(&second, &SigCheck::Skip).await.unwrap();
    let found = store.realisation(&id).await.unwrap().unwrap();
    assert_eq!(found.signatures.len(), 2, "signatures come together");
    let mut lie = second.clone();
    lie.value.out_path = other.path;
    let refused = store.register(&lie, &SigCheck::Skip).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    assert_eq!(store.realisation(&id).await.unwrap(), Some(found));
    let dev = DrvOutput {
        output: OutputName::parse("dev").unwrap(),
        ..id
    };
    assert_eq!(store.realisation(&dev).await.unwrap(), None);
}

async fn legacy_realisations(store: &dyn Realisations) {
    let (dep, dep_nar) = sample(store.dir(), "dep", b"dep", []);
    let (out, nar) = sample(store.dir(), "out", b"out", []);
    add_all(store, &[(dep.clone(), dep_nar), (out.clone(), nar)]).await;
    let id = |text: &[u8]| legacy::LegacyDrvOutput {
        hash: Hash::digest(Algorithm::Sha256, text),
        output: OutputName::out(),
    };
    let needed = legacy::LegacyRealisation::new(id(b"dep"), dep.path.clone());
    let mut first = legacy::LegacyRealisation::new(id(b"out"), out.path.clone());
    first.dependent.insert(id(b"dep"), dep.path.clone());
    assert_eq!(store.legacy_realisation(&first.id).await.unwrap(), None);
    let key = SecretKey::generate("one-1").unwrap();
    let refused = store.register_legacy(&first, &require(&key)).await;
    assert!(
        matches!(refused, Err(Error::Untrusted { .. })),
        "{refused:?}"
    );
    let skip = SigCheck::Skip;
    store.register_legacy(&needed, &skip).await.unwrap();
    first.sign(&key);
    store.register_legacy(&first, &require(&key)).await.unwrap();
    let found = store.legacy_realisation(&first.id).await.unwrap();
    assert_eq!(found, Some(first.clone()));
    let mut second = first.clone();
    second.signatures.clear();
    second.sign(&SecretKey::generate("two-1").unwrap());
    store.register_legacy(&second, &skip).await.unwrap();
    let found = store.legacy_realisation(&first.id).await.unwrap().unwrap();
    assert_eq!(found.signatures.len(), 2, "signatures come together");
    let mut lie = first.clone();
    lie.out_path = dep.path;
    let refused = store.register_legacy(&lie, &skip).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    let known = store.legacy_realisation(&first.id).await.unwrap();
    assert_eq!(known, Some(found));
}

async fn build_logs(store: &dyn Logs) {
    let drv = drv_path("logged");
    assert!(store.build_log(&drv).await.unwrap().is_none());
    // Not text, and more than one chunk.
    let log: Vec<u8> = (0..300_000u32)
        .map(|i| (i.wrapping_mul(i) >> 9) as u8)
        .collect();
    let chunks: Vec<_> = log.chunks(65_537).map(|c| Ok(c.to_vec().into())).collect();
    let broken = [
        Ok(Bytes::from_static(b"half")),
        Err(Error::invalid("it broke off")),
    ];
    let failed = store.add_build_log(&drv, stream::iter(broken).boxed());
    assert!(failed.await.is_err());
    assert!(store.build_log(&drv).await.unwrap().is_none());
    let added = store.add_build_log(&drv, stream::iter(chunks).boxed());
    added.await.unwrap();
    let other = nar::from_bytes("another build, later");
    store.add_build_log(&drv, other).await.unwrap();
    let found = store.build_log(&drv).await.unwrap().expect("a log");
    let found: Vec<Bytes> = found.try_collect().await.unwrap();
    assert!(found.concat() == log, "the log came back changed");
    let empty = drv_path("silent");
    let added = store.add_build_log(&empty, nar::from_bytes(""));
    added.await.unwrap();
    let found = store.build_log(&empty).await.unwrap().expect("a log");
    let found: Vec<Bytes> = found.try_collect().await.unwrap();
    assert!(found.concat().is_empty());
    let no_drv = sample(store.dir(), "no-derivation", b"", []).0.path;
    let refused = store.add_build_log(&no_drv, nar::from_bytes("")).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}

fn require(key: &SecretKey) -> SigCheck {
    let keys = TrustedKeys::from_iter([key.public()]);
    SigCheck::Require(Arc::new(Policy::new(keys)))
}

fn drv_path(name: &str) -> StorePath {
    StorePath::from_digest(&[5; 20], &format!("{name}.drv")).unwrap()
}

async fn add_all<S: Store + ?Sized>(store: &S, samples: &[(PathInfo, Bytes)]) {
    let items = samples.iter().map(|(info, nar)| item(info, nar));
    let report = store
        .add(
            stream::iter(items.collect::<Vec<_>>()).boxed(),
            &SigCheck::Skip.into(),
        )
        .await
        .unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}

/// Metadata as it must come back, but for what a store may fill in by itself.
fn assert_same(found: &PathInfo, given: &PathInfo) {
    let mut found = found.clone();
    found.registration_time = given.registration_time;
    // A cache that signs adds its own.
    found
        .signatures
        .retain(|sig| given.signatures.contains(sig));
    assert_eq!(&found, given);
}

async fn refused(store: &dyn Store, info: &PathInfo, nar: NarStream, why: &str) {
    let added = store
        .add_one(info.clone(), nar, &SigCheck::Skip.into())
        .await;
    assert!(added.is_err(), "{why} was accepted");
    let found = store.info(&info.path).await.unwrap();
    assert_eq!(found, None, "{why} was refused and is visible all the same");
}

/// Adds `items`. Whoever watches is told of each path that is there then.
async fn add(store: &dyn Store, items: Vec<Result<(PathInfo, NarStream)>>) -> AddReport {
    let seen = Arc::new(SeenProgress::default());
    let options = AddOptions {
        progress: seen.clone(),
        ..SigCheck::Skip.into()
    };
    let report = store.add(stream::iter(items).boxed(), &options);
    let report = report.await.unwrap();
    let visible = seen.visible.lock().unwrap().clone();
    assert_eq!(visible, report.added, "told as visible, and added");
    report
}

/// What a store told of what it was given.
#[derive(Debug, Default)]
struct SeenProgress {
    visible: Mutex<Vec<StorePath>>,
    arrived: AtomicU64,
}

impl Progress for SeenProgress {
    fn arrived(&self, bytes: u64) {
        self.arrived.fetch_add(bytes, Ordering::Relaxed);
    }

    fn visible(&self, path: &StorePath) {
        self.visible.lock().unwrap().push(path.clone());
    }
}

async fn read(store: &dyn Store, path: &StorePath) -> Bytes {
    let chunks: Vec<Bytes> = store.nar(path).await.unwrap().try_collect().await.unwrap();
    chunks.concat().into()
}

fn item(info: &PathInfo, nar: &Bytes) -> Result<(PathInfo, NarStream)> {
    Ok((info.clone(), nar::from_bytes(nar.clone())))
}

fn lazy_panic() -> NarStream {
    nar::lazy(async { panic!("a NAR was read although the path is there") })
}

/// `n` paths, each of which refers to the one before it and to itself.
fn chain(dir: &StoreDir, n: usize) -> Vec<(PathInfo, Bytes)> {
    let mut chain: Vec<(PathInfo, Bytes)> = Vec::new();
    for i in 0..n {
        let before = chain.last().map(|(info, _)| info.path.clone());
        let (mut info, nar) = sample(dir, &format!("link-{i}"), format!("{i}").as_bytes(), before);
        info.references.insert(info.path.clone());
        chain.push((info, nar));
    }
    chain
}

fn sample(
    dir: &StoreDir,
    name: &str,
    content: &[u8],
    references: impl IntoIterator<Item = StorePath>,
) -> (PathInfo, Bytes) {
    let nar = file_nar(content);
    let digest = Hash::digest(Algorithm::Sha256, format!("{dir}:{name}").as_bytes());
    let digest: [u8; 20] = digest.compress(20).try_into().unwrap();
    let path = StorePath::from_digest(&digest, name).unwrap();
    let mut info = PathInfo::new(path, hash(&nar), nar.len() as u64);
    info.references = references.into_iter().collect();
    (info, nar)
}

fn hash(nar: &[u8]) -> NarHash {
    NarHash::try_from(Hash::digest(Algorithm::Sha256, nar)).unwrap()
}
