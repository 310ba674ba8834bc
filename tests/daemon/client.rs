//! Our client and real daemons.

use crate::support::{RigDaemon, each_version};
use std::{sync::Arc, time::Duration};
use tk_daemon::{DaemonConfig, DaemonStore, UnixTransport, worker::Version};
use tk_store::{GarbageCollector, GcAction, GcOptions, Graph, conformance as suite};

each_version!(async conformance);

/// The suite of all stores, with the daemon of each version and over older forms of the protocol.
async fn conformance(version: &'static str) {
    let Some(daemon) = RigDaemon::start(version, true) else {
        return;
    };
    suite::run(|| emptied(&daemon, |_| {})).await;
    // What it reads itself, and what the daemon sends.
    suite::run(|| emptied(&daemon, |config| config.real = Some(daemon.store()))).await;
    // NARs over several connections: nothing goes before what it refers to.
    suite::run(|| emptied(&daemon, |config| config.upload_connections = 3)).await;
    suite::run_graph(|| emptied(&daemon, |_| {})).await;
}

/// One connection, and every form in which paths are added.
#[tokio::test(flavor = "multi_thread")]
async fn conformance_of_old_protocols() {
    let Some(daemon) = RigDaemon::start("2.26", true) else {
        return;
    };
    for minor in [18, 21, 24, 31] {
        suite::run(|| {
            emptied(&daemon, |config| {
                config.version = Version::minor(minor);
                config.max_connections = 1;
            })
        })
        .await;
    }
}

/// The daemon's store, with nothing in it.
async fn emptied(daemon: &RigDaemon, change: impl FnOnce(&mut DaemonConfig)) -> DaemonStore {
    let store = open(daemon, |_| {});
    let all = GcOptions::new(GcAction::DeleteDead);
    for _ in 0..100 {
        store.collect_garbage(&all, &()).await.unwrap();
        if store.all_paths().await.unwrap().is_empty() {
            return open(daemon, change);
        }
        // A connection that was closed may still keep its temporary roots.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the daemon keeps {:?}", store.all_paths().await);
}

fn open(daemon: &RigDaemon, change: impl FnOnce(&mut DaemonConfig)) -> DaemonStore {
    let mut config = DaemonConfig::new(format!("unix://{}", daemon.socket().display()));
    config.timeout = Some(Duration::from_secs(20));
    change(&mut config);
    DaemonStore::new(Arc::new(UnixTransport::new(daemon.socket())), config)
}
