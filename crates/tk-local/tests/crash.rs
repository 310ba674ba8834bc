//! A process that adds or collects is killed, at many moments: what is left opens, and holds no lie.

mod common;

use common::{CHILD, Sample, add_all, chain, open, run_and_kill};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tk_local::LocalStore;
use tk_store::{GarbageCollector, GcAction, GcOptions, Store, StoreExt, verify};

/// Plays both parts: run again with the variable set, it is the process that gets killed.
#[test]
fn killed_at_any_moment() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(root) = std::env::var_os(CHILD) {
        runtime.block_on(async { add_all(&open(root.as_ref()).await, &samples()).await });
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let samples = samples();
    let begin = Instant::now();
    let kill = |root: &Path, delay| run_and_kill("killed_at_any_moment", root, delay);
    assert!(!kill(&folder.path().join("whole"), None));
    let whole = begin.elapsed();
    let mut kills = 0;
    // Each root is killed a few times before a new one begins, so that left-overs meet.
    for attempt in 0..ATTEMPTS {
        let root = folder.path().join((attempt / 3).to_string());
        let delay = whole * (attempt * 37 % 100) / 130;
        kills += u32::from(kill(&root, Some(delay)));
        runtime.block_on(examine(&root, &samples));
    }
    assert!(
        kills > 10,
        "only {kills} of {ATTEMPTS} were killed at work, of {whole:?}"
    );
    for root in folder.path().read_dir().unwrap() {
        runtime.block_on(complete(&root.unwrap().path(), &samples));
    }
}

/// The same for one that deletes all that was added, again and again.
#[test]
fn a_collector_is_killed_at_any_moment() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(root) = std::env::var_os(CHILD) {
        runtime.block_on(async {
            loop {
                add_all(&open(root.as_ref()).await, &samples()).await;
                let options = GcOptions::new(GcAction::DeleteDead);
                let store = open(root.as_ref()).await;
                store.collect_garbage(&options, &()).await.unwrap();
            }
        });
    }
    let folder = tempfile::tempdir().unwrap();
    let samples = samples();
    for attempt in 0..ATTEMPTS / 2 {
        let delay = Duration::from_millis(u64::from(attempt * 37 % 100) * 5);
        let name = "a_collector_is_killed_at_any_moment";
        assert!(run_and_kill(name, folder.path(), Some(delay)));
        runtime.block_on(examine(folder.path(), &samples));
    }
    runtime.block_on(complete(folder.path(), &samples));
}

/// Every row has its content and its references.
async fn examine(root: &Path, samples: &[Sample]) {
    let store = open(root).await;
    let valid = store.all().await.unwrap();
    for path in &valid {
        let info = store.require_info(path).await.unwrap();
        verify(&store, &info).await.unwrap();
        assert!(info.references.is_subset(&valid), "{path}");
        assert!(samples.iter().any(|s| s.info.path == *path));
    }
}

/// What is missing can be added, and nothing temporary remains.
async fn complete(root: &Path, samples: &[Sample]) {
    let store: LocalStore = open(root).await;
    add_all(&store, samples).await;
    examine(root, samples).await;
    let all = samples.iter().map(|s| s.info.path.clone()).collect();
    assert_eq!(store.valid(&all).await.unwrap(), all);
    let real = store.real_dir().to_owned();
    drop(store);
    for entry in real.read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("-tk-tmp-"), "{name} is left over");
    }
}

fn samples() -> Vec<Sample> {
    chain(120)
}

const ATTEMPTS: u32 = 45;
