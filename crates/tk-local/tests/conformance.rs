//! The suite that every store must pass.

use std::{cell::Cell, path::Path};
use tk_local::{LocalConfig, LocalStore};

#[tokio::test(flavor = "multi_thread")]
async fn conformance() {
    run(1).await;
    run(4).await;
}

/// On one thread a store that waits for itself would hang.
#[tokio::test(flavor = "current_thread")]
async fn conformance_on_one_thread() {
    run(2).await;
}

async fn run(jobs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let count = Cell::new(0);
    tk_store::conformance::run(|| {
        count.set(count.get() + 1);
        open(folder.path(), count.get(), jobs)
    })
    .await;
}

async fn open(folder: &Path, n: u32, jobs: usize) -> LocalStore {
    let mut config = LocalConfig::chroot(folder.join(n.to_string()));
    config.jobs = jobs.try_into().unwrap();
    LocalStore::open(config).await.unwrap()
}
