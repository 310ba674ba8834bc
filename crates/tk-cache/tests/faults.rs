//! Pushes that are killed, and disks that are full. Each runs in a process of its own: this test
//! binary, started again with [`PUSH_TO`] set.

mod support;

use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    collections::BTreeSet,
    env,
    fs::File,
    hash::{BuildHasher, RandomState},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use support::{add, assert_invariant, config, item, open, sample, tree};
use tempfile::TempDir;
use tk_narinfo::PathInfo;
use tk_store::{SigCheck, Store};

#[test]
fn killed_pushes_leave_only_complete_paths() {
    if let Some(folder) = env::var_os(PUSH_TO) {
        push(Path::new(&folder));
        return;
    }
    const NAME: &str = "killed_pushes_leave_only_complete_paths";
    let whole = TempDir::new().unwrap();
    let begin = Instant::now();
    assert!(this_binary(NAME, whole.path()).status().unwrap().success());
    let duration = begin.elapsed();
    let expected = tree(whole.path());
    assert_eq!(expected.len(), 1 + 2 * closure().len(), "{expected:?}");

    let random = RandomState::new();
    let mut seen = BTreeSet::new();
    for round in 0..50u64 {
        let folder = TempDir::new().unwrap();
        let mut child = this_binary(NAME, folder.path()).spawn().unwrap();
        let part = (random.hash_one(round) % 1000) as f64 / 1000.0;
        std::thread::sleep(duration.mul_f64(part));
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        runtime().block_on(assert_invariant(folder.path()));
        seen.insert(tree(folder.path()).len());
        push(folder.path());
        runtime().block_on(assert_invariant(folder.path()));
        let now = tree(folder.path());
        assert!(
            now.is_superset(&expected),
            "{:?}",
            expected.difference(&now)
        );
        let left: Vec<_> = now.difference(&expected).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
    // Otherwise the moments were not spread over the push.
    assert!(
        seen.len() > 5,
        "states that were seen, by number of files: {seen:?}"
    );
}

#[test]
fn files_over_the_limit_fail_alone() {
    let (small, small_nar) = sample("small", b"small", []);
    let (big, big_nar) = sample("big", &noise(3 << 20), []);
    if let Some(folder) = env::var_os(PUSH_TO) {
        runtime().block_on(async {
            let cache = open(config(Path::new(&folder))).await;
            let report = add(&cache, vec![item(&big, &big_nar), item(&small, &small_nar)]).await;
            assert_eq!(report.added, [small.path]);
            let [(path, error)] = &report.failed[..] else {
                panic!("{report:?}");
            };
            assert_eq!(*path, big.path);
            let line = error.to_line();
            assert!(
                line.starts_with("writing the NAR of") && line.contains("too large"),
                "{line}"
            );
        });
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""]);
    let child = again(
        shell.arg(env::current_exe().unwrap()),
        "files_over_the_limit_fail_alone",
        folder.path(),
    );
    let output = child.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(tree(folder.path()).len(), 3, "{:?}", tree(folder.path()));
    runtime().block_on(assert_invariant(folder.path()));
}

#[test]
fn a_full_disk_ends_the_push() {
    const NAME: &str = "a_full_disk_ends_the_push";
    let (small, small_nar) = sample("small", b"small", []);
    let (big, big_nar) = sample("big", &noise(8 << 20), [small.path.clone()]);
    if let Some(folder) = env::var_os(PUSH_TO) {
        let folder = Path::new(&folder);
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=2m", "none"])
            .arg(folder);
        assert!(mount.status().unwrap().success());
        let root = folder.join("cache");
        runtime().block_on(async {
            let cache = open(config(&root)).await;
            let items = vec![item(&small, &small_nar), item(&big, &big_nar)];
            let items = stream::iter(items).boxed();
            let error = cache
                .add(items, &SigCheck::Skip.into())
                .await
                .unwrap_err()
                .to_line();
            assert!(error.contains("No space left on device"), "{error}");
            assert!(error.contains(root.to_str().unwrap()), "{error}");
            assert_invariant(&root).await;
            let left: Vec<PathBuf> = tree(&root).into_iter().collect();
            assert!(
                !left.iter().any(|file| file.starts_with("nar/.tmp")),
                "{left:?}"
            );
            // Where there is room again, it goes on.
            let more = Command::new("mount")
                .args(["-o", "remount,size=20m"])
                .arg(folder)
                .status();
            assert!(more.unwrap().success());
            let report = add(&cache, vec![item(&small, &small_nar), item(&big, &big_nar)]).await;
            assert_eq!(report.added.len(), 2, "{report:?}");
        });
        return;
    }
    // A mount of its own, as root or in a user namespace.
    let unshare = |args: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["-r", "-m"]).args(args);
        unshare
    };
    let probe = "mount -t tmpfs none /mnt";
    if !unshare(&["sh", "-c", probe])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        skip(NAME, "this machine mounts no tmpfs for us");
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut unshare = unshare(&[]);
    let child = again(
        unshare.arg(env::current_exe().unwrap()),
        NAME,
        folder.path(),
    );
    let output = child.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// As the tests of the whole do: seen by the user, and counted by tests/run.
fn skip(name: &str, reason: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: {name}: {reason}\n").as_bytes());
    if let Some(file) = env::var_os("TK_SKIPS") {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(file)
            .unwrap();
        file.write_all(format!("{name}\t{reason}\t{name}\n").as_bytes())
            .unwrap();
    }
}

fn push(folder: &Path) {
    runtime().block_on(async {
        let cache = open(config(folder)).await;
        let closure = closure();
        let report = add(
            &cache,
            closure.iter().map(|(info, nar)| item(info, nar)).collect(),
        )
        .await;
        assert_eq!(report.added.len(), closure.len(), "{:?}", report.failed);
    });
}

/// Forty paths, each with references to the two before it; some of several frames.
fn closure() -> Vec<(PathInfo, Bytes)> {
    let mut closure: Vec<(PathInfo, Bytes)> = Vec::new();
    for i in 0..40 {
        let before = closure
            .iter()
            .rev()
            .take(2)
            .map(|(info, _)| info.path.clone());
        let before: Vec<_> = before.collect();
        let size = if i % 13 == 5 {
            5 << 20
        } else {
            1000 << (i % 8)
        };
        let mut content = noise(size);
        content.extend([i as u8; 100]);
        closure.push(sample(&format!("path-{i}"), &content, before));
    }
    closure
}

/// Bytes that do not compress.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn this_binary(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    again(&mut command, test, folder);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn again<'a>(command: &'a mut Command, test: &str, folder: &Path) -> &'a mut Command {
    command
        .args([test, "--exact", "--nocapture"])
        .env(PUSH_TO, folder)
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .unwrap()
}

const PUSH_TO: &str = "TK_CACHE_TEST_PUSH_TO";
