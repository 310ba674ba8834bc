//! Deleting what nothing needs.

mod common;

use common::{Sample, add_all, chain, open, sample};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{
    GarbageCollector, GcAction, GcOptions, GcReport, Result, Roots, Store, StoreExt,
    log::{Level, LogEvent},
};

async fn collect(store: &LocalStore, action: GcAction) -> GcReport {
    store
        .collect_garbage(&GcOptions::new(action), &())
        .await
        .unwrap()
}

async fn delete(store: &LocalStore, paths: &[&StorePath]) -> Result<GcReport> {
    let paths = paths.iter().map(|path| (*path).clone()).collect();
    let options = GcOptions::new(GcAction::DeleteSpecific(paths));
    store.collect_garbage(&options, &()).await
}

fn full<'a>(store: &LocalStore, samples: impl IntoIterator<Item = &'a Sample>) -> BTreeSet<String> {
    let full = |sample: &Sample| store.dir().path(&sample.info.path);
    samples.into_iter().map(full).collect()
}

fn entries(store: &LocalStore) -> BTreeSet<String> {
    let entries = store.real_dir().read_dir().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".links").collect()
}

async fn reopen(root: &Path, set: impl FnOnce(&mut LocalConfig)) -> LocalStore {
    let mut config = LocalConfig::chroot(root);
    set(&mut config);
    LocalStore::open(config).await.unwrap()
}

/// As somebody else who writes the database.
fn execute(root: &Path, sql: &str) {
    let database = LocalConfig::chroot(root).database();
    let database = rusqlite::Connection::open(database).unwrap();
    database.execute_batch(sql).unwrap();
}

/// A store that was filled by another process, so that this one holds nothing.
async fn filled(root: &Path, samples: &[Sample]) -> LocalStore {
    add_all(&open(root).await, samples).await;
    open(root).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_roots_reach_stays() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let samples = chain(8);
    let store = filled(&root, &samples).await;
    let link = folder.path().join("result");
    store
        .add_perm_root(&samples[3].info.path, &link)
        .await
        .unwrap();
    drop(store);
    let store = open(&root).await;
    let alive = full(&store, &samples[..4]);
    let dead = full(&store, &samples[4..]);
    let before = entries(&store);
    assert_eq!(collect(&store, GcAction::ReturnLive).await.paths, alive);
    let report = collect(&store, GcAction::ReturnDead).await;
    assert_eq!(report.paths, dead);
    let size: u64 = samples[4..].iter().map(|s| s.info.nar_size).sum();
    assert_eq!(report.bytes_freed, size);
    assert_eq!(entries(&store), before);
    let report = collect(&store, GcAction::DeleteDead).await;
    assert_eq!(report.paths, dead);
    let content: u64 = [13, 4_000, 70_000, 300_000].map(|n| n + 4 + 2).iter().sum();
    assert_eq!(
        report.bytes_freed, content,
        "file, link and program of each"
    );
    assert_eq!(entries(&store).len(), 4);
    assert_eq!(
        full(&store, &samples[..4]).len(),
        store.all().await.unwrap().len()
    );
    // Nothing is left to do, and the store goes on.
    assert_eq!(
        collect(&store, GcAction::DeleteDead).await,
        GcReport::default()
    );
    fs::remove_file(&link).unwrap();
    assert_eq!(collect(&store, GcAction::DeleteDead).await.paths, alive);
    add_all(&store, &samples).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_uses_stays() {
    let folder = tempfile::tempdir().unwrap();
    let samples = chain(4);
    let store = filled(folder.path(), &samples).await;
    store.add_temp_root(&samples[1].info.path).await.unwrap();
    // As another process that is about to add it.
    let coming = sample("coming", b"");
    let place = store.real_path(&coming.info.path);
    store.add_temp_root(&coming.info.path).await.unwrap();
    fs::write(&place, "half").unwrap();
    let report = collect(&store, GcAction::DeleteDead).await;
    assert_eq!(report.paths, full(&store, &samples[2..]));
    assert!(place.exists());
    drop(store);
    let store = open(folder.path()).await;
    assert_eq!(collect(&store, GcAction::DeleteDead).await.paths.len(), 3);
    assert!(!place.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits() {
    let folder = tempfile::tempdir().unwrap();
    let (mut samples, mut times) = (chain(3), Vec::new());
    for (age, name) in [(1_000, "old"), (2_000, "older"), (500, "young")] {
        samples.push(sample(name, &[b'x'; 1000]));
        times.push(format!(
            "update ValidPaths set registrationTime = {} where path like '%-{name}';",
            1_000_000_000 - age
        ));
    }
    let store = filled(folder.path(), &samples).await;
    execute(folder.path(), &times.concat());
    let mut options = GcOptions::new(GcAction::DeleteDead);
    options.keep_newer_than = Some(SystemTime::now() - Duration::from_secs(3600));
    let collect = async |options: &GcOptions| store.collect_garbage(options, &()).await.unwrap();
    options.max_freed = 0;
    assert_eq!(collect(&options).await.paths.len(), 0);
    // The oldest goes first, and the one that is over the limit is the last.
    options.max_freed = 1;
    assert_eq!(collect(&options).await.paths, full(&store, [&samples[4]]));
    options.max_freed = u64::MAX;
    assert_eq!(
        collect(&options).await.paths,
        full(&store, [&samples[3], &samples[5]])
    );
    options.keep_newer_than = None;
    assert_eq!(collect(&options).await.paths.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn left_overs() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["valid", "invalid", "being-made"];
    let samples = names.map(|name| sample(name, b"x"));
    let store = filled(folder.path(), &samples[..1]).await;
    store
        .add_perm_root(&samples[0].info.path, &folder.path().join("r"))
        .await
        .unwrap();
    drop(store);
    let store = open(folder.path()).await;
    let at = |name: &str| store.real_dir().join(name);
    let invalid = samples[1].info.path.as_str();
    fs::create_dir_all(at(invalid).join("a/b")).unwrap();
    let made = samples[2].info.path.as_str();
    fs::write(at(made), "half").unwrap();
    fs::write(at("odd"), "odd").unwrap();
    symlink("/elsewhere", at(".hidden")).unwrap();
    fs::create_dir(at("tmp-1")).unwrap();
    let (held, free) = (format!("{made}.lock"), format!("{invalid}.lock"));
    for name in [&held, &free] {
        fs::write(at(name), "").unwrap();
    }
    let lock = fs::File::open(at(&held)).unwrap();
    let scratch = fs::File::open(at("tmp-1")).unwrap();
    for file in [&lock, &scratch] {
        rustix::fs::flock(file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    }
    let expected: BTreeSet<_> = [invalid, "odd", ".hidden", &free]
        .map(|name| format!("{}/{name}", store.dir()))
        .into();
    let waiting = fs::File::open(at(&free)).unwrap();
    assert_eq!(collect(&store, GcAction::ReturnDead).await.paths, expected);
    assert_eq!(entries(&store).len(), 8);
    assert_eq!(collect(&store, GcAction::DeleteDead).await.paths, expected);
    let left = [samples[0].info.path.as_str(), "tmp-1", made, &held].map(str::to_owned);
    assert_eq!(entries(&store), left.into());
    assert_eq!(
        waiting.metadata().unwrap().len(),
        1,
        "whoever waits for it is told"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_read_keeps_what_it_refers_to() {
    let folder = tempfile::tempdir().unwrap();
    let samples = chain(2);
    let store = filled(folder.path(), &samples).await;
    drop(store);
    let old = "no-longer-a-name";
    let sql = format!("update ValidPaths set path = '/nix/store/{old}' where id = 2");
    execute(folder.path(), &sql);
    let store = open(folder.path()).await;
    fs::rename(
        store.real_path(&samples[1].info.path),
        store.real_dir().join(old),
    )
    .unwrap();
    assert_eq!(
        collect(&store, GcAction::DeleteDead).await,
        GcReport::default()
    );
    assert_eq!(entries(&store).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_that_cannot_be_known_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let samples = chain(2);
    let store = filled(folder.path(), &samples).await;
    let profiles = store.config().state.join("profiles");
    fs::rename(&profiles, folder.path().join("aside")).unwrap();
    fs::write(&profiles, "").unwrap();
    let options = GcOptions::new(GcAction::DeleteDead);
    let error = store.collect_garbage(&options, &()).await.unwrap_err();
    assert!(error.to_line().contains("profiles"), "{error}");
    assert_eq!(entries(&store).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn certain_paths() {
    let folder = tempfile::tempdir().unwrap();
    let mut samples = chain(5);
    samples.push(sample("alone", b"x"));
    let store = filled(folder.path(), &samples).await;
    let path = |at: usize| &samples[at].info.path;
    let link = folder.path().join("r");
    store.add_perm_root(path(1), &link).await.unwrap();
    drop(store);
    let store = open(folder.path()).await;
    let refused = async |paths: &[&StorePath], words: &str| {
        let line = delete(&store, paths).await.unwrap_err().to_line();
        assert!(
            line.contains("still alive") && line.contains(words),
            "{line}"
        );
        assert_eq!(entries(&store).len(), 6);
    };
    refused(&[path(0), path(5)], &link.display().to_string()).await;
    refused(&[path(3), path(5)], path(4).as_str()).await;
    let absent = sample("absent", b"x").info.path;
    let report = delete(&store, &[path(3), path(4), &absent]).await.unwrap();
    assert_eq!(report.paths.len(), 3);
    assert_eq!(entries(&store).len(), 4);
    let all = samples.iter().map(|s| s.info.path.clone()).collect();
    let mut options = GcOptions::new(GcAction::DeleteSpecific(all));
    options.skip_live = true;
    let report = store.collect_garbage(&options, &()).await.unwrap();
    assert!(
        report
            .paths
            .is_superset(&full(&store, [&samples[2], &samples[5]]))
    );
    assert_eq!(entries(&store).len(), 2);
    options = GcOptions::new(GcAction::DeleteSpecific([path(1).clone()].into()));
    options.ignore_liveness = true;
    store.collect_garbage(&options, &()).await.unwrap();
    assert_eq!(entries(&store), [path(0).as_str().to_owned()].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn derivers_and_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    // Two derivations that have the same output; the first is its deriver. And two outputs of the first.
    let names = ["a.drv", "b.drv", "out", "out-2"];
    let samples = names.map(|name| sample(name, b"x"));
    let [a, b, out, second] = samples.each_ref().map(|sample| full_of(&sample.info));
    for (outputs, derivations, rooted, expected) in [
        (false, true, 2, &[0, 2][..]),
        (false, false, 2, &[2]),
        (true, true, 2, &[0, 2, 3]),
        (true, false, 1, &[1, 2]),
        (false, true, 0, &[0]),
        (true, false, 0, &[0, 2, 3]),
    ] {
        drop(open(&root).await);
        let sql = format!(
            "delete from ValidPaths;
             insert into ValidPaths (id, path, hash, registrationTime, deriver) values
               (1, '{a}', 'x', 1, null), (2, '{b}', 'x', 1, null), (3, '{out}', 'x', 1, '{a}'),
               (4, '{second}', 'x', 1, '{a}');
             insert into DerivationOutputs values
               (1, 'out', '{out}'), (1, 'two', '{second}'), (2, 'out', '{out}');"
        );
        execute(&root, &sql);
        let store = reopen(&root, |config| {
            config.keep_outputs = outputs;
            config.keep_derivations = derivations;
        })
        .await;
        let profile = store.config().state.join("profiles/p");
        symlink(full_of(&samples[rooted].info), &profile).unwrap();
        let expected = full(&store, expected.iter().map(|at| &samples[*at]));
        let what = format!("outputs {outputs}, derivations {derivations}, root {rooted}");
        let live = collect(&store, GcAction::ReturnLive).await.paths;
        assert_eq!(live, expected, "{what}");
        collect(&store, GcAction::DeleteDead).await;
        assert_eq!(store.all().await.unwrap().len(), expected.len(), "{what}");
        fs::remove_file(profile).unwrap();
    }
}

fn full_of(info: &PathInfo) -> String {
    format!("/nix/store/{}", info.path)
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_links_go() {
    let folder = tempfile::tempdir().unwrap();
    let samples = [sample("kept", b"x")];
    let store = filled(folder.path(), &samples).await;
    store
        .add_perm_root(&samples[0].info.path, &folder.path().join("r"))
        .await
        .unwrap();
    let links = store.real_dir().join(".links");
    let used = store.real_path(&samples[0].info.path).join("file");
    fs::hard_link(used, links.join("used")).unwrap();
    fs::write(links.join("unused"), "12345").unwrap();
    assert_eq!(collect(&store, GcAction::ReturnDead).await.bytes_freed, 0);
    assert_eq!(
        collect(&store, GcAction::DeleteDead).await,
        GcReport::default()
    );
    assert_eq!(links.read_dir().unwrap().count(), 1);
}

/// Four that add, use and forget, beside one that collects without a pause: what one of them has just added, or
/// has found to be valid after it made a root, is whole until it lets go.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_beside_those_who_add() {
    let folder = tempfile::tempdir().unwrap();
    let samples = chain(12);
    drop(open(folder.path()).await);
    let (done, deleted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let collecting = async {
        let store = open(folder.path()).await;
        while !done.load(Ordering::Relaxed) {
            let report = collect(&store, GcAction::DeleteDead).await;
            deleted.fetch_add(report.paths.len(), Ordering::Relaxed);
        }
    };
    let adding = async {
        let until = SystemTime::now() + Duration::from_millis(1500);
        let mut turns = 0;
        while SystemTime::now() < until || deleted.load(Ordering::Relaxed) == 0 {
            let users = (0..4).map(|at| use_some(folder.path(), &samples[..=at * 3]));
            futures::future::join_all(users).await;
            turns += 1;
            // For a moment nobody holds anything.
            tokio::time::sleep(Duration::from_millis(turns % 40)).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(collecting, adding);
}

/// As a process of its own: its roots end with it.
async fn use_some(root: &Path, samples: &[Sample]) {
    let store = open(root).await;
    let client = tk_store::Sessions::session(&store, std::sync::Arc::new(()));
    let report = common::try_add(&*client.store, samples).await;
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    for Sample { info, .. } in samples {
        assert!(
            client.store.info(&info.path).await.unwrap().is_some(),
            "{}",
            info.path
        );
        tk_store::verify(&*client.store, info).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_does_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let samples = chain(2);
    let store = filled(folder.path(), &samples).await;
    let told = std::sync::Mutex::new(Vec::new());
    let log = |event: LogEvent| {
        if let LogEvent::Message {
            level: Level::Info,
            text,
        } = event
        {
            told.lock().unwrap().push(text);
        }
    };
    let options = GcOptions::new(GcAction::DeleteDead);
    store.collect_garbage(&options, &log).await.unwrap();
    let expected = [1, 0].map(|at| format!("deleting '{}'", full_of(&samples[at as usize].info)));
    assert_eq!(*told.lock().unwrap(), expected, "referrers first");
}
