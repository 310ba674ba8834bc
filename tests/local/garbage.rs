//! Collectors beside those who add, ours and Nix's in turn: nothing that is held is lost, and the store stays
//! as it must be.

use super::{PLAIN, inputs, made_up, open, text, verify_with};
use crate::support::{Rig, each_version, rig};
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tk_store::{GarbageCollector, GcAction, GcOptions, Sessions, SigCheck, StoreExt, nar, verify};

each_version!(async we_collect_while_nix_adds);

async fn we_collect_while_nix_adds(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    let files = inputs(&temp.path().join("in"));
    let store = open(&root).await;
    let (until, mut turns, mut deleted) = (Instant::now() + LONG, 0, 0);
    let mut adding = nix(&rig, &root)
        .args(["--add"])
        .args(&files)
        .spawn()
        .unwrap();
    while Instant::now() < until || turns == 0 {
        let options = GcOptions::new(GcAction::DeleteDead);
        let report = store.collect_garbage(&options, &()).await.unwrap();
        deleted += report.paths.len();
        if let Some(ended) = adding.try_wait().unwrap() {
            assert!(
                ended.success(),
                "Nix {version} could not add: {}",
                said(&mut adding)
            );
            turns += 1;
            adding = nix(&rig, &root)
                .args(["--add"])
                .args(&files)
                .spawn()
                .unwrap();
        }
    }
    assert!(adding.wait().unwrap().success(), "{}", said(&mut adding));
    assert!(deleted > 0, "nothing was deleted in {turns} turns");
    verify_with(&rig, &root);
}

each_version!(async nix_collects_while_we_add);

/// Four at once, each as a client that lets go at the end of its turn.
async fn nix_collects_while_we_add(version: &'static str) {
    let Some(rig) = rig(version) else { return };
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("root");
    drop(open(&root).await);
    let (done, collected) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let collecting = tokio::task::spawn_blocking({
        let (root, done, collected) = (root.clone(), done.clone(), collected.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                let ended = nix(&rig, &root).arg("--gc").status().unwrap();
                assert!(ended.success(), "Nix {} could not collect", rig.version);
                collected.fetch_add(1, Ordering::Relaxed);
            }
            rig
        }
    });
    let until = Instant::now() + LONG;
    let mut turns = 0;
    while Instant::now() < until || collected.load(Ordering::Relaxed) < 2 {
        let users = (1..5).map(|user| add_and_look(&root, user * 2));
        futures::future::join_all(users).await;
        turns += 1;
    }
    done.store(true, Ordering::Relaxed);
    let rig = collecting.await.unwrap();
    assert!(turns > 0);
    verify_with(&rig, &root);
}

/// Adds paths, and finds all of them whole while the client is there.
///
/// None refers to another: Nix's collector, once it has looked at what refers to a path, deletes all of that,
/// also what it is told meanwhile (only the one that it looked at last is safe, `deleteReferrersClosure`).
async fn add_and_look(root: &Path, count: usize) {
    let store = open(root).await;
    let client = store.session(Arc::new(()));
    let (mut infos, options) = (Vec::new(), SigCheck::Skip.into());
    for at in 0..count {
        let (info, nar) = made_up(&format!("held-{at}"), []);
        let added = client
            .store
            .add_one(info.clone(), nar::from_bytes(nar), &options);
        added.await.unwrap();
        infos.push(info);
    }
    let paths: BTreeSet<_> = infos.iter().map(|info| info.path.clone()).collect();
    assert_eq!(client.store.valid(&paths).await.unwrap(), paths);
    for info in &infos {
        verify(&*client.store, info).await.unwrap();
    }
}

fn nix(rig: &Rig, root: &Path) -> std::process::Command {
    let mut command = rig.command("nix-store");
    command.args(["--store", text(root)]).args(PLAIN);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn said(child: &mut Child) -> String {
    child.stderr.take().map_or(String::new(), |said| {
        std::io::read_to_string(said).unwrap_or_default()
    })
}

const LONG: Duration = Duration::from_secs(2);
