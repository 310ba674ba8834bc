//! A push that is killed at any moment leaves a cache that is closed in itself, and the next push
//! sends only what had not arrived.

use super::{Served, Source};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use tk_narinfo::NarInfo;
use tk_path::StoreDir;

#[test]
fn killed_pushes_to_a_server() {
    let Some(served) = Served::start(false) else {
        return;
    };
    let source = Source::new(60, &[7, 23, 41]);
    let (machine, top) = (&source.machine, source.top());
    // How long it takes when nobody kills it.
    let whole = format!("{}/whole", served.nginx.url);
    let start = std::time::Instant::now();
    machine.ok(&format!("push --store ./store --to {whole} {top}"));
    let whole = start.elapsed();

    let root = served.path().join("cache");
    let cache = format!("{}/cache", served.nginx.url);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                assert_closed(&root);
                looks += 1;
            }
            looks
        });
        let mut sent_again = 0;
        for n in 1..=KILLS {
            let before = nars(&root);
            let push = ["push", "--store", "./store", "--to", &cache, &top];
            let mut push = machine.command(push);
            let mut child = push
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            thread::sleep(whole.mul_f64(f64::from(n) / f64::from(KILLS)));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_closed(&root);
            sent_again += changed(&before, &nars(&root));
        }
        let before = nars(&root);
        machine.ok(&format!("push --store ./store --to {cache} {top}"));
        sent_again += changed(&before, &nars(&root));
        over.store(true, Ordering::Relaxed);
        let looks = watcher.join().unwrap();
        assert!(looks > 10, "{looks} looks at the cache while it was filled");
        // What was under way when it was killed may go twice, what had arrived not.
        assert!(
            sent_again <= KILLS as usize,
            "{sent_again} NARs were sent again"
        );
    });
    assert_eq!(narinfos(&root).len(), 60);
    let other = crate::cli::Machine::new();
    other.ok(&format!(
        "pull --from {cache} --to ./store --no-check-sigs {top}"
    ));
}

/// How many of the NARs that were there before were written again.
fn changed(before: &BTreeMap<String, (u64, i64)>, after: &BTreeMap<String, (u64, i64)>) -> usize {
    before
        .iter()
        .filter(|(name, was)| after.get(*name) != Some(was))
        .count()
}

/// Names, with what tells one file from its successor.
fn nars(root: &Path) -> BTreeMap<String, (u64, i64)> {
    let Ok(entries) = fs::read_dir(root.join("nar")) else {
        return BTreeMap::new();
    };
    let nar = |entry: fs::DirEntry| {
        let meta = entry.metadata().ok()?;
        Some((
            entry.file_name().into_string().ok()?,
            (meta.ino(), meta.mtime_nsec()),
        ))
    };
    entries.flatten().filter_map(nar).collect()
}

fn narinfos(root: &Path) -> Vec<NarInfo> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let parse = |entry: fs::DirEntry| {
        let path = entry.path();
        (path.extension()? == "narinfo").then(|| {
            let text = fs::read(&path).unwrap();
            NarInfo::parse(&StoreDir::default(), text).unwrap_or_else(|e| panic!("{path:?}: {e}"))
        })
    };
    entries.flatten().filter_map(parse).collect()
}

/// Every narinfo that is there has its NAR and the narinfos of its references.
fn assert_closed(root: &Path) {
    for narinfo in narinfos(root) {
        let path = &narinfo.info.path;
        let nar = root.join(&narinfo.url);
        let size = fs::metadata(&nar)
            .unwrap_or_else(|e| panic!("the NAR of {path}: {e}"))
            .len();
        assert_eq!(Some(size), narinfo.file_size, "{path}");
        for reference in &narinfo.info.references {
            let other = root.join(format!("{}.narinfo", reference.hash_part()));
            assert!(other.exists(), "{path} is visible before {reference}");
        }
        thread::sleep(Duration::from_micros(50));
    }
}

const KILLS: u32 = 30;
