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

/// With the tables that Nix makes for realisations, as it does not make both at once.
#[tokio::test(flavor = "multi_thread")]
async fn conformance_of_what_only_some_can() {
    let folder = tempfile::tempdir().unwrap();
    let count = Cell::new(0);
    let make = || {
        count.set(count.get() + 1);
        async {
            let store = open(folder.path(), count.get(), 2).await;
            let database = rusqlite::Connection::open(store.config().database()).unwrap();
            database.execute_batch(REALISATIONS).unwrap();
            store
        }
    };
    tk_store::conformance::run_graph(make).await;
    tk_store::conformance::run_logs(make).await;
    tk_store::conformance::run_realisations(make).await;
    tk_store::conformance::run_legacy_realisations(make).await;
}

async fn open(folder: &Path, n: u32, jobs: usize) -> LocalStore {
    let mut config = LocalConfig::chroot(folder.join(n.to_string()));
    config.jobs = jobs.try_into().unwrap();
    LocalStore::open(config).await.unwrap()
}

const REALISATIONS: &str = "
create table BuildTraceV3 (
    id integer primary key autoincrement not null,
    drvPath text not null,
    outputName text not null,
    outputPath text not null,
    signatures text
);
create table Realisations (
    id integer primary key autoincrement not null,
    drvPath text not null,
    outputName text not null,
    outputPath integer not null,
    signatures text,
    foreign key (outputPath) references ValidPaths(id) on delete cascade
);
create table RealisationsRefs (
    referrer integer not null,
    realisationReference integer,
    foreign key (referrer) references Realisations(id) on delete cascade,
    foreign key (realisationReference) references Realisations(id) on delete restrict
);";
