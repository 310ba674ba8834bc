//! A push that is killed at any moment leaves a cache that is closed in itself, and the next push
//! sends only what had not arrived.

use super::{Served, Source};
use crate::{cli::Machine, support::servers::S3};
use futures::TryStreamExt;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use tk_cache::{
    bucket::{BucketConfig, BucketObjects, CloudEnvironment},
    http::ClientConfig,
    objects::Objects,
};
use tk_narinfo::NarInfo;
use tk_path::StoreDir;

#[test]
fn killed_pushes_to_a_server() {
    let Some(served) = Served::start(false) else {
        return;
    };
    let source = Source::new(60, &[7, 23, 41]);
    let machine = &source.machine;
    let whole = duration(&source, &format!("{}/whole", served.nginx.url), &[]);
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
        let _over = Over(&over);
        let mut sent_again = 0;
        for n in 1..=KILLS {
            let before = nars(&root);
            kill_after(
                &source,
                &cache,
                &[],
                whole.mul_f64(f64::from(n) / f64::from(KILLS)),
            );
            assert_closed(&root);
            sent_again += changed(&before, &nars(&root));
        }
        let before = nars(&root);
        machine.ok(&format!(
            "push --store ./store --to {cache} {}",
            source.top()
        ));
        sent_again += changed(&before, &nars(&root));
        over.store(true, Ordering::Relaxed);
        let looks = watcher.join().unwrap();
        assert!(looks > 10, "{looks} looks at the cache while it was filled");
        // What was under way when it was killed may go twice (a few at a time, so small are they),
        // what had arrived not: without a memory it would be some thirty each time.
        assert!(
            sent_again <= 6 * KILLS as usize,
            "{sent_again} NARs were sent again"
        );
    });
    assert_eq!(narinfos(&root).len(), 60);
    let other = Machine::new();
    let top = source.top();
    other.ok(&format!(
        "pull --from {cache} --to ./store --no-check-sigs {top}"
    ));
}

/// The same with a bucket. Besides, no upload in parts may be left open.
#[test]
fn killed_pushes_to_a_bucket() {
    let Some(ceph) = S3::ceph() else { return };
    for bucket in ["whole", "cache"] {
        ceph.make_bucket(bucket);
    }
    let source = Source::new(40, &[3, 17, 31]);
    let (env, top) = (ceph.env(), source.top());
    let whole = duration(&source, &ceph.uri("whole"), &env);
    let cache = ceph.uri("cache");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&ceph, "cache", &over));
        let _over = Over(&over);
        for n in 1..=KILLS {
            kill_after(
                &source,
                &cache,
                &env,
                whole.mul_f64(f64::from(n) / f64::from(KILLS)),
            );
        }
        let mut push = source
            .machine
            .command(["push", "--store", "./store", "--to", &cache, &top]);
        let done = source.machine.done(push.envs(env.iter().cloned()).output());
        assert_eq!(done.status, 0, "{done:?}");
        over.store(true, Ordering::Relaxed);
        let looks = watcher.join().unwrap();
        assert!(looks > 3, "{looks} looks at the cache while it was filled");
    });
    let open = ceph.open_uploads("cache");
    assert!(open.contains("ListMultipartUploadsResult"), "{open}");
    assert!(!open.contains("<UploadId>"), "{open}");
    let other = Machine::new();
    let mut pull = other.command([
        "pull",
        "--no-check-sigs",
        "--from",
        &cache,
        "--to",
        "./s",
        &top,
    ]);
    let done = other.done(pull.envs(env.iter().cloned()).output());
    assert_eq!(done.status, 0, "{done:?}");
}

/// Ends the watcher also when the test fails, which would wait for it for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long a push to an empty cache takes when nobody kills it.
fn duration(source: &Source, cache: &str, env: &[(&str, String)]) -> Duration {
    let start = Instant::now();
    let top = source.top();
    let mut push = source
        .machine
        .command(["push", "--store", "./store", "--to", cache, &top]);
    let done = source.machine.done(push.envs(env.iter().cloned()).output());
    assert_eq!(done.status, 0, "{done:?}");
    start.elapsed()
}

fn kill_after(source: &Source, cache: &str, env: &[(&str, String)], wait: Duration) {
    let top = source.top();
    let mut push = source
        .machine
        .command(["push", "--store", "./store", "--to", cache, &top]);
    push.envs(env.iter().cloned());
    let mut child = push
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(wait);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Reads all narinfos again and again; each must have its NAR and its references.
fn watch(ceph: &S3, bucket: &str, over: &AtomicBool) -> usize {
    let environment = CloudEnvironment {
        variables: ceph
            .env()
            .into_iter()
            .map(|(n, v)| (n.to_owned(), v))
            .collect(),
        home: None,
    };
    let endpoint = ceph.endpoint.clone();
    let parameter = |name: &str| (name == "endpoint").then(|| endpoint.clone());
    let client = ClientConfig::default();
    let config = BucketConfig::from_parts("s3", bucket, &parameter, environment, client).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let objects = BucketObjects::open(config).unwrap();
        let mut looks = 0;
        while !over.load(Ordering::Relaxed) {
            let names: Vec<String> = objects.list("").try_collect().await.unwrap();
            for name in names.iter().filter(|name| name.ends_with(".narinfo")) {
                let text = objects.read(name, 1 << 20).await.unwrap().unwrap();
                let narinfo = NarInfo::parse(&StoreDir::default(), text).unwrap();
                let path = &narinfo.info.path;
                let nar = objects.look(&narinfo.url).await.unwrap();
                let size = nar.unwrap_or_else(|| panic!("the NAR of {path}")).size;
                assert_eq!(size, narinfo.file_size, "{path}");
                for reference in &narinfo.info.references {
                    let other = format!("{}.narinfo", reference.hash_part());
                    // The list may be older than the narinfo.
                    let there =
                        names.contains(&other) || objects.look(&other).await.unwrap().is_some();
                    assert!(there, "{path} is visible before {reference}");
                }
            }
            looks += 1;
        }
        looks
    })
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
