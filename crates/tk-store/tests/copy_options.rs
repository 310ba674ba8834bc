//! What a copy leaves to others, sends again, and takes along beside the paths.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};
use support::{Library, Upstream};
use tk_narinfo::{
    PathInfo, Policy, SecretKey, TrustedKeys,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, ContentAddress, Derivation, DerivationOutput, Hash, InputOutputs, Inputs, Method,
    NarHash, OutputName, OutputsSpec, StoreDir, StorePath, modulo::Modulo,
};
use tk_store::conformance::file_nar;
use tk_store::{
    Abilities, AddOptions, AddSignatures, Error, Existing, MemoryStore, NarCheck, Realisations,
    SigCheck, Store, StoreExt,
    closure::missing_closure,
    copy::{
        CopyOptions, CopyReport, OutputPaths, Plan, Reach, Unanswered, Upstreams, Warning, logs,
        plan,
    },
    nar,
};

#[tokio::test]
async fn what_a_key_of_an_upstream_signed_stays_there() {
    let (key, other) = (key("upstream-1"), key("other-1"));
    let (src, paths) = chain(4).await;
    sign(&src, &paths[0], &key).await;
    sign(&src, &paths[1], &other).await;
    // A signature that was made for something else.
    let mut forged = src.require_info(&paths[2]).await.unwrap();
    forged.nar_size += 1;
    forged.sign(src.dir(), &key).unwrap();
    let signed = src.add_signatures(&paths[2], &forged.signatures);
    signed.await.unwrap();

    let options = upstreams(Upstreams {
        keys: TrustedKeys::from_iter([key.public()]),
        ..Upstreams::default()
    });
    let dst = MemoryStore::default();
    let (order, report) = copy(&src, &dst, &paths[3..], &options).await;
    assert_eq!(order, paths[1..]);
    assert_eq!(report.upstream, set(&paths[..1]));
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(report.copied.len(), 3);
    assert_eq!(dst.info(&paths[0]).await.unwrap(), None);

    // Without the keys the gap is mended.
    let (order, report) = copy(&src, &dst, &paths[3..], &keep()).await;
    assert_eq!(order, paths[..1]);
    assert!(report.upstream.is_empty());
}

#[tokio::test]
async fn an_upstream_that_is_asked_is_asked_once_for_what_is_missing() {
    let (src, paths) = chain(5).await;
    let dst = MemoryStore::default();
    copy(&src, &dst, &paths[..1], &keep()).await;
    let first = Upstream::with(&paths[..2]);
    let second = Upstream::with(&paths[..3]);
    let options = upstreams(Upstreams {
        caches: vec![first.clone(), second.clone()],
        ..Upstreams::default()
    });
    let (order, report) = copy(&src, &dst, &paths[4..], &options).await;
    assert_eq!(order, paths[3..]);
    assert_eq!(report.upstream, set(&paths[1..3]));
    assert_eq!(report.present, set(&paths[..1]));
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let asked = |u: &Upstream| u.asked.lock().unwrap().clone();
    assert_eq!(asked(&first), [set(&paths[1..])]);
    assert_eq!(asked(&second), [set(&paths[2..])]);
}

#[tokio::test]
async fn an_upstream_that_cannot_be_asked_never_has_anything() {
    let (src, paths) = chain(3).await;
    let holds = Upstream::with(&paths[..1]);
    let mut options = upstreams(Upstreams {
        caches: vec![Upstream::silent(), holds],
        ..Upstreams::default()
    });
    let dst = MemoryStore::default();
    let failed = plan(&*src, &dst, &set(&paths), &options).await;
    assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");

    options.upstreams.unanswered = Unanswered::Copy;
    let (order, report) = copy(&src, &dst, &paths, &options).await;
    assert_eq!(order, paths[1..], "the other one is asked all the same");
    let [Warning::Upstream { store, .. }] = &report.warnings[..] else {
        panic!("{:?}", report.warnings);
    };
    assert_eq!(store, "upstream://");
}

#[tokio::test]
async fn an_upstream_of_another_store_directory_is_an_error() {
    let (src, paths) = chain(1).await;
    let dir = StoreDir::new("/other/store").unwrap();
    let options = upstreams(Upstreams {
        caches: vec![Arc::new(MemoryStore::new(dir))],
        ..Upstreams::default()
    });
    let failed = plan(&*src, &MemoryStore::default(), &set(&paths), &options).await;
    assert!(matches!(failed, Err(Error::StoreDir { .. })), "{failed:?}");
}

#[tokio::test]
async fn what_the_source_lacks_may_lie_upstream() {
    let (all, paths) = chain(3).await;
    let upstream = Upstream::with(&paths[..1]);
    let src = Arc::new(MemoryStore::default());
    let mut elsewhere = AddOptions::new(SigCheck::Skip);
    elsewhere.elsewhere = Arc::new(set(&paths[..1]));
    add(&all, &*src, &paths[1..], &elsewhere).await;
    let dst = MemoryStore::default();
    let refused = plan(&*src, &dst, &set(&paths[2..]), &keep()).await;
    assert!(
        matches!(refused, Err(Error::MissingReference { .. })),
        "{refused:?}"
    );
    let mut options = upstreams(Upstreams {
        caches: vec![upstream],
        ..Upstreams::default()
    });
    for reach in [Reach::Closure, Reach::Missing] {
        options.reach = reach;
        let dst = MemoryStore::default();
        let (order, report) = copy(&src, &dst, &paths[2..], &options).await;
        assert_eq!(order, paths[1..], "{reach:?}");
        assert!(report.failed.is_empty(), "{:?}", report.failed);
    }
    // Only the root, whose reference the destination lacks.
    options.reach = Reach::Roots;
    let (order, report) = copy(&src, &dst, &paths[1..2], &options).await;
    assert_eq!(order, paths[1..2]);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert!(report.upstream.is_empty(), "it was never to be copied");
}

#[tokio::test]
async fn what_is_there_is_replaced_when_that_is_asked_for() {
    let (src, paths) = chain(3).await;
    let dst = MemoryStore::default();
    copy(&src, &dst, &paths[1..2], &keep()).await;
    let key = key("again-1");
    let mut options = keep();
    options.existing = Existing::Replace;
    options.sign = vec![Arc::new(key.clone())];
    options.upstreams.keys = TrustedKeys::from_iter([key.public()]);
    for reach in [Reach::Closure, Reach::Missing] {
        options.reach = reach;
        let (order, report) = copy(&src, &dst, &paths[2..], &options).await;
        assert_eq!(order, paths);
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        assert!(report.replaced.is_superset(&set(&paths[..2])));
        assert!(report.present.is_empty());
    }
    for path in &paths {
        let info = dst.require_info(path).await.unwrap();
        assert_eq!(info.signatures.len(), 1, "the new metadata is there");
    }
    // Content that is not what it should be leaves what is there alone.
    let info = dst.require_info(&paths[0]).await.unwrap();
    let mut replace = AddOptions::new(SigCheck::Skip);
    replace.existing = Existing::Replace;
    let lie = dst.add_one(info.clone(), nar::from_bytes("?"), &replace);
    assert!(matches!(lie.await, Err(Error::Mismatch { .. })));
    assert_eq!(dst.require_info(&paths[0]).await.unwrap(), info);
}

#[tokio::test]
async fn realisations_go_after_their_paths() {
    let (src, paths) = chain(2).await;
    let drv = drv("made");
    let id = |output: &str| DrvOutput {
        drv: drv.clone(),
        output: OutputName::parse(output).unwrap(),
    };
    let realisation = Realisation {
        id: id("out"),
        value: UnkeyedRealisation::new(paths[1].clone()),
    };
    src.register(&realisation, &SigCheck::Skip).await.unwrap();
    let from = able(&src);
    let mut outputs = OutputPaths::default();
    let wanted = OutputsSpec::one(OutputName::out());
    let found = outputs.find(&from, &drv, &wanted).await.unwrap();
    assert_eq!(found, paths[1..]);
    let unknown = OutputsSpec::one(OutputName::parse("dev").unwrap());
    let error = OutputPaths::default().find(&from, &drv, &unknown).await;
    assert!(matches!(error, Err(Error::NotFound { .. })), "{error:?}");

    let dst = Arc::new(MemoryStore::default());
    let key = key("sign-1");
    let check = require(&key);
    let (_, mut report) = copy(&src, &*dst, &paths[1..], &keep()).await;
    outputs
        .clone()
        .copy(&able(&dst), &check, &[], &mut report)
        .await;
    let [(path, Error::Untrusted { .. })] = &report.failed[..] else {
        panic!("{report:?}");
    };
    assert_eq!(*path, paths[1]);

    let mut report = CopyReport::default();
    let keys = [Arc::new(key)];
    outputs
        .clone()
        .copy(&able(&dst), &check, &keys, &mut report)
        .await;
    assert_eq!(report.realisations.len(), 1, "{report:?}");
    let known = dst.realisation(&id("out")).await.unwrap().unwrap();
    assert_eq!(known.out_path, paths[1]);
    assert_eq!(known.signatures.len(), 1);

    // Nothing is told of a path that did not arrive, nor to a store that cannot keep it.
    let empty = Arc::new(MemoryStore::default());
    let mut report = CopyReport {
        failed: vec![(paths[1].clone(), Error::invalid("it broke"))],
        ..CopyReport::default()
    };
    outputs
        .clone()
        .copy(&able(&empty), &SigCheck::Skip, &[], &mut report)
        .await;
    assert_eq!(empty.realisation(&id("out")).await.unwrap(), None);
    let mut report = CopyReport::default();
    let mute = Abilities::of(empty);
    outputs.copy(&mute, &SigCheck::Skip, &[], &mut report).await;
    assert!(
        matches!(report.warnings[..], [Warning::Realisation { .. }]),
        "{report:?}"
    );
    assert!(report.failed.is_empty());
}

/// By the derivation alone, as people name outputs, and with another derivation in between.
#[tokio::test]
async fn older_realisations_are_found_by_the_derivation() {
    let (src, paths) = chain(2).await;
    let dir = StoreDir::default();
    let hash = Hash::digest(Algorithm::Sha256, b"");
    let how = ContentAddress {
        method: Method::Nar,
        hash,
    };
    let mut modulo = Modulo::for_realisations(dir.clone());
    let mut drvs = BTreeMap::new();
    let mut last = None;
    for (n, path) in paths.iter().enumerate() {
        let drv = Derivation {
            name: format!("floating{n}"),
            outputs: [(
                OutputName::out(),
                DerivationOutput::Floating(how.method_algorithm()),
            )]
            .into(),
            inputs: Inputs {
                drvs: std::mem::take(&mut drvs),
                ..Inputs::default()
            },
            platform: "any".into(),
            builder: "/bin/sh".into(),
            args: vec![],
            env: BTreeMap::new(),
        };
        let drv_path = drv.path(&dir).unwrap();
        let text = file_nar(&drv.to_aterm(&dir).unwrap());
        let mut info = PathInfo::new(drv_path.clone(), NarHash::digest(&text), text.len() as u64);
        info.references = drv.inputs.drvs.keys().cloned().collect();
        let options = SigCheck::Skip.into();
        let added = src.add_one(info, nar::from_bytes(text), &options);
        added.await.unwrap();
        let hash = modulo.realisation_hash(&drv).unwrap().unwrap();
        let output = OutputName::out();
        let known =
            legacy::LegacyRealisation::new(legacy::LegacyDrvOutput { hash, output }, path.clone());
        src.register_legacy(&known, &SigCheck::Skip).await.unwrap();
        modulo.add(drv_path.clone(), &drv).unwrap();
        let needed = InputOutputs {
            outputs: [OutputName::out()].into(),
            ..InputOutputs::default()
        };
        drvs.insert(drv_path.clone(), needed);
        last = Some((drv_path, known));
    }
    let (drv, known) = last.unwrap();
    let from = able(&src);
    let map = from.output_map(&drv).await.unwrap();
    assert_eq!(map[&OutputName::out()].as_ref(), Some(&paths[1]));
    let mut outputs = OutputPaths::default();
    let found = outputs.find(&from, &drv, &OutputsSpec::All).await.unwrap();
    assert_eq!(found, paths[1..]);
    let dst = Arc::new(MemoryStore::default());
    let (_, mut report) = copy(&src, &*dst, &paths, &keep()).await;
    let to = able(&dst);
    outputs.copy(&to, &SigCheck::Skip, &[], &mut report).await;
    let told = dst.legacy_realisation(&known.id).await.unwrap();
    assert_eq!(told, Some(known));
}

#[tokio::test]
async fn older_realisations_bring_what_they_depend_on_first() {
    let (src, paths) = chain(3).await;
    let id = |n: usize| legacy::LegacyDrvOutput {
        hash: Hash::digest(Algorithm::Sha256, &[n as u8]),
        output: OutputName::out(),
    };
    for (n, path) in paths.iter().enumerate() {
        let mut known = legacy::LegacyRealisation::new(id(n), path.clone());
        let before = paths[..n].iter().enumerate();
        known.dependent = before.map(|(n, path)| (id(n), path.clone())).collect();
        let registered = src.register_legacy(&known, &SigCheck::Skip);
        registered.await.unwrap();
    }
    let from = able(&src);
    let mut outputs = OutputPaths::default();
    assert_eq!(outputs.find_legacy(&from, &id(9)).await.unwrap(), None);
    let found = outputs.find_legacy(&from, &id(2)).await.unwrap();
    assert_eq!(found.as_ref(), Some(&paths[2]));
    let (dst, mut report) = (Arc::new(MemoryStore::default()), CopyReport::default());
    outputs
        .copy(&able(&dst), &SigCheck::Skip, &[], &mut report)
        .await;
    let expected: Vec<_> = (0..3).map(|n| id(n).to_string()).collect();
    assert_eq!(report.realisations, expected);
}

#[tokio::test]
async fn logs_that_are_not_there_yet_are_copied() {
    let drvs: Vec<_> = ["a", "b", "c", "broken"].map(drv).into();
    let from = Arc::new(Library::default());
    let to = Arc::new(Library::default());
    for name in ["a", "b", "broken"] {
        from.put(&drv(name), &format!("log of {name}"));
    }
    to.put(&drvs[1], "an older log");
    let (src, dst) = (from.abilities(), to.abilities());
    let mut report = CopyReport::default();
    logs(&src, &dst, &set(&drvs), &mut report).await;
    assert_eq!(report.logs, drvs[..1]);
    let [
        Warning::Log {
            drv: Some(broken), ..
        },
    ] = &report.warnings[..]
    else {
        panic!("{:?}", report.warnings);
    };
    assert_eq!(*broken, drvs[3]);
    assert_eq!(to.get(&drvs[0]).as_deref(), Some("log of a"));
    assert_eq!(to.get(&drvs[1]).as_deref(), Some("an older log"));

    let mut report = CopyReport::default();
    let mute = Abilities::of(Arc::new(MemoryStore::default()));
    logs(&src, &mute, &set(&drvs), &mut report).await;
    assert!(matches!(
        report.warnings[..],
        [Warning::Log { drv: None, .. }]
    ));
}

#[tokio::test]
async fn derivers_are_those_of_all_that_was_looked_at() {
    let (src, paths) = chain(2).await;
    let made = Arc::new(MemoryStore::default());
    for (n, path) in paths.iter().enumerate() {
        let mut info = src.require_info(path).await.unwrap();
        info.deriver = Some(drv(&format!("maker-{n}")));
        let nar = src.nar(path).await.unwrap();
        let any = SigCheck::Skip.into();
        made.add_one(info, nar, &any).await.unwrap();
    }
    let dst = MemoryStore::default();
    copy(&made, &dst, &paths[..1], &keep()).await;
    let Plan { derivers, .. } = plan(&*made, &dst, &set(&paths), &keep()).await.unwrap();
    assert_eq!(derivers, set(&[drv("maker-0"), drv("maker-1")]));
}

/// What a store knows of itself is no business of the next one.
#[tokio::test]
async fn what_only_the_source_can_know_stays_there() {
    let (src, paths) = chain(1).await;
    let mut info = src.require_info(&paths[0]).await.unwrap();
    (info.ultimate, info.registration_time) = (true, 1_700_000_000);
    let mut replace = AddOptions::new(SigCheck::Skip);
    replace.existing = Existing::Replace;
    let nar = src.nar(&paths[0]).await.unwrap();
    src.add_one(info, nar, &replace).await.unwrap();
    let dst = MemoryStore::default();
    copy(&src, &dst, &paths, &keep()).await;
    let copied = dst.require_info(&paths[0]).await.unwrap();
    assert!(!copied.ultimate);
    assert_eq!(copied.registration_time, 0);
}

#[tokio::test]
async fn an_upstream_has_no_say_on_paths_that_it_was_not_asked_about() {
    let (src, paths) = chain(2).await;
    let dst = MemoryStore::default();
    copy(&src, &dst, &paths[..1], &keep()).await;
    let mut options = upstreams(Upstreams {
        caches: vec![Upstream::talkative(&paths)],
        ..Upstreams::default()
    });
    options.existing = Existing::Replace;
    let plan = plan(&*src, &dst, &set(&paths[1..]), &options)
        .await
        .unwrap();
    assert_eq!(plan.upstream, set(&paths[1..]));
    let missing: Vec<_> = plan.missing.iter().map(|info| &info.path).collect();
    assert_eq!(missing, [&paths[0]], "what is replaced is sent");
}

#[tokio::test]
async fn what_is_found_present_is_told() {
    let (src, paths) = chain(3).await;
    let dst = MemoryStore::default();
    copy(&src, &dst, &paths[..2], &keep()).await;
    let missing = missing_closure(&*src, &dst, [paths[2].clone()], &SigCheck::Skip);
    let (missing, present) = missing.await.unwrap();
    assert!(missing.infos.keys().eq(&paths[2..]));
    assert_eq!(present, set(&paths[1..2]));
}

#[tokio::test]
async fn a_copy_of_nothing_tidies_the_destination() {
    let (src, paths) = chain(1).await;
    let dst = Upstream::with(&paths);
    copy(&src, &*dst, &paths, &keep()).await;
    assert_eq!(dst.tidied.load(Ordering::Relaxed), 1);
}

#[test]
fn an_endless_nar_is_not_read_to_its_end() {
    let nar = file_nar(&[0; 5000]);
    let path = StorePath::from_digest(&[1; 20], "endless").unwrap();
    // The grammar still expects thousands of bytes.
    let info = PathInfo::new(path, NarHash::digest(&nar), 1000);
    let mut check = NarCheck::new(&info, "test://");
    check.update(&nar[..1000]).unwrap();
    let longer = check.update(&nar[1000..1001]);
    assert!(matches!(longer, Err(Error::Mismatch { .. })), "{longer:?}");
}

/// Paths, each of which refers to the one before it, with no content address to stand by.
async fn chain(n: usize) -> (Arc<MemoryStore>, Vec<StorePath>) {
    let store = MemoryStore::default();
    let mut paths: Vec<StorePath> = Vec::new();
    for i in 0..n {
        let content = file_nar(format!("{i}").as_bytes());
        let hash = NarHash::digest(&content);
        let path = StorePath::from_digest(&[i as u8 + 1; 20], &format!("link-{i}")).unwrap();
        let mut info = PathInfo::new(path.clone(), hash, content.len() as u64);
        info.references = paths.last().cloned().into_iter().collect();
        let any = SigCheck::Skip.into();
        let added = store.add_one(info, nar::from_bytes(content), &any);
        added.await.unwrap();
        paths.push(path);
    }
    (Arc::new(store), paths)
}

async fn add(src: &MemoryStore, dst: &dyn Store, paths: &[StorePath], options: &AddOptions) {
    for path in paths {
        let info = src.require_info(path).await.unwrap();
        let nar = src.nar(path).await.unwrap();
        dst.add_one(info, nar, options).await.unwrap();
    }
}

/// Plans and runs; the paths in the order of the plan, and the report.
async fn copy(
    src: &Arc<MemoryStore>,
    dst: &dyn Store,
    roots: &[StorePath],
    options: &CopyOptions,
) -> (Vec<StorePath>, CopyReport) {
    let plan = plan(&**src, dst, &set(roots), options).await.unwrap();
    let order = plan.missing.iter().map(|info| info.path.clone()).collect();
    let src: Arc<dyn Store> = src.clone();
    (order, plan.run(&src, dst, Arc::new(())).await.unwrap())
}

async fn sign(store: &MemoryStore, path: &StorePath, key: &SecretKey) {
    let mut info = store.require_info(path).await.unwrap();
    info.sign(store.dir(), key).unwrap();
    let added = store.add_signatures(path, &info.signatures);
    added.await.unwrap();
}

fn keep() -> CopyOptions {
    CopyOptions::new(SigCheck::Skip)
}

fn upstreams(upstreams: Upstreams) -> CopyOptions {
    let mut options = keep();
    options.upstreams = upstreams;
    options
}

fn set(paths: &[StorePath]) -> BTreeSet<StorePath> {
    paths.iter().cloned().collect()
}

fn key(name: &str) -> SecretKey {
    SecretKey::generate(name).unwrap()
}

fn require(key: &SecretKey) -> SigCheck {
    SigCheck::Require(Arc::new(Policy::new(TrustedKeys::from_iter(
        [key.public()],
    ))))
}

fn drv(name: &str) -> StorePath {
    StorePath::from_digest(&[9; 20], &format!("{name}.drv")).unwrap()
}

fn able(store: &Arc<MemoryStore>) -> Abilities {
    Abilities {
        realisations: Some(store.clone()),
        ..Abilities::of(store.clone())
    }
}
