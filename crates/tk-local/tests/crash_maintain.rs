//! A process that looks after a store is killed, at many moments: the store is as whole as it was, and the
//! next one brings the work to its end.

mod common;

use common::{CHILD, Sample, add_all, chain, open, run_and_kill};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Instant};
use tk_local::{LocalConfig, LocalStore, RecoverOptions, ScanPaths};
use tk_store::{
    Maintain, MemoryStore, RepairSource, SigCheck, StoreExt, StoreVerifyOptions, VerifyDepth,
    verify,
};

/// Plays both parts: run again with the variable set, it is the process that gets killed.
#[test]
fn killed_while_it_looks_after_a_store() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(root) = std::env::var_os(CHILD) {
        return runtime.block_on(look_after(root.as_ref()));
    }
    let folder = tempfile::tempdir().unwrap();
    let samples = samples();
    let root = |n: u32| folder.path().join(n.to_string());
    runtime.block_on(prepare(&root(0), &samples));
    let begin = Instant::now();
    let kill =
        |root: &Path, delay| run_and_kill("killed_while_it_looks_after_a_store", root, delay);
    assert!(!kill(&root(0), None));
    let whole = begin.elapsed();
    let mut kills = 0;
    for attempt in 0..ATTEMPTS {
        let root = root(1 + attempt / 3);
        if attempt % 3 == 0 {
            runtime.block_on(prepare(&root, &samples));
        }
        let delay = whole * (attempt * 37 % 100) / 100;
        kills += u32::from(kill(&root, Some(delay)));
        runtime.block_on(examine(&root));
        if attempt % 3 == 2 {
            runtime.block_on(complete(&root, &samples));
        }
    }
    assert!(
        kills > ATTEMPTS / 3,
        "only {kills} were killed at work, of {whole:?}"
    );
}

/// A store with many equal files and some damaged ones.
async fn prepare(root: &Path, samples: &[Sample]) {
    let store = open(root).await;
    add_all(&store, samples).await;
    for sample in samples.iter().step_by(4) {
        let file = store.real_path(&sample.info.path).join("file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&file, "damaged").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    }
}

/// What the process does that gets killed: all that there is to do.
async fn look_after(root: &Path) {
    let samples = samples();
    let store = open(root).await;
    store.optimise(&()).await.unwrap();
    mend(&store, &samples).await;
    drop(store);
    let mut options = RecoverOptions::new(SigCheck::Skip);
    options.dump = samples.iter().map(|sample| sample.info.clone()).collect();
    options.scan = ScanPaths::Yes;
    let config = LocalConfig::chroot(root);
    let report = LocalStore::recover(config, options, &()).await.unwrap();
    assert_eq!(report.recovered.len(), samples.len());
}

async fn mend(store: &LocalStore, samples: &[Sample]) {
    let good = MemoryStore::default();
    add_all(&good, samples).await;
    let mut options = StoreVerifyOptions::default();
    options.depth = VerifyDepth::Contents;
    options.repair = RepairSource::Stores(vec![Arc::new(good)]);
    let report = store.verify_store(&options, &()).await.unwrap();
    assert!(!report.errors_left, "{:?}", report.faults);
}

/// All is valid that was, and nothing is damaged that was not.
async fn examine(root: &Path) {
    let store = LocalStore::open_existing(LocalConfig::chroot(root))
        .await
        .unwrap();
    let samples = samples();
    assert_eq!(store.all().await.unwrap().len(), samples.len());
    for (i, sample) in samples.iter().enumerate() {
        let info = store.require_info(&sample.info.path).await.unwrap();
        assert_eq!(info.references, sample.info.references);
        if i % 4 != 0 {
            verify(&store, &info).await.unwrap();
        }
    }
}

/// The next process brings it to its end.
async fn complete(root: &Path, samples: &[Sample]) {
    look_after(root).await;
    let store = open(root).await;
    for sample in samples {
        let info = store.require_info(&sample.info.path).await.unwrap();
        verify(&store, &info).await.unwrap();
        let file = store.real_path(&sample.info.path).metadata().unwrap();
        assert_eq!(file.permissions().mode() & 0o7777, 0o555);
    }
}

fn samples() -> Vec<Sample> {
    chain(60)
}

const ATTEMPTS: u32 = 15;
