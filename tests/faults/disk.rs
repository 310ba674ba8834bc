//! A disk that is full, with room for none, some and nearly all of what a command writes.
//!
//! The disk is a small file system in memory that only this test sees: it is started again in a
//! mount namespace of its own.

use super::{
    invariants,
    support::{
        machine::{Done, Machine},
        made, report, skip, test_name,
    },
    sweep::TABLE,
};
use std::{env, path::Path, process::Command};

#[test]
fn push() {
    alone(|| fills(&Job::Push));
}

#[test]
fn pull() {
    alone(|| fills(&Job::Pull));
}

#[test]
fn add() {
    alone(|| fills(&Job::Add));
}

/// What fills the disk.
#[derive(Debug)]
enum Job {
    Push,
    Pull,
    Add,
}

impl Job {
    /// The command that writes to `disk`.
    fn line(&self, cache: &str, disk: &str, top: &str) -> String {
        match self {
            Job::Push => {
                format!("push --store ./store --to file://{disk}/c --compression none {top}")
            }
            Job::Pull => format!("pull --no-check-sigs --from {cache} --to {disk} {top}"),
            Job::Add => format!("add --store {disk} one two three four"),
        }
    }

    async fn invariant(&self, disk: &Path) -> Result<(), String> {
        match self {
            Job::Push => invariants::cache(&disk.join("c")).await,
            Job::Pull | Job::Add => invariants::local(disk).await,
        }
    }

    /// Bytes that are taken before the first path is there.
    fn base(&self) -> usize {
        match self {
            Job::Push => 64 << 10,
            // What Nix reserves for its collector, and the database.
            Job::Pull | Job::Add => (8 << 20) + (768 << 10),
        }
    }
}

/// The job on disks of several sizes: it says that the disk is full, what is there holds, and when
/// there is room again the same command comes to its end.
fn fills(job: &Job) {
    let machine = Machine::new();
    let paths = made::fill(&machine.home().join("store"), &[SIZE; PATHS]);
    let top = format!("/nix/store/{}", paths.last().expect("some"));
    let cache = machine.cache("cache");
    machine.ok(&format!("push --store ./store --to {cache} {top}"));
    for (seed, name) in ["one", "two", "three", "four"].into_iter().enumerate() {
        machine.write(name, made::noise(seed as u64 + 9, SIZE));
    }
    let disk = machine.home().join("disk");
    std::fs::create_dir(&disk).expect("a folder");
    let line = job.line(&cache, &disk.to_string_lossy(), &top);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let holds = || {
        runtime
            .block_on(job.invariant(&disk))
            .unwrap_or_else(|w| panic!("{w}"))
    };
    let on_disk = |size: usize| {
        let size = format!("size={size}");
        mount(&["-t", "tmpfs", "-o", &size, "none"], &disk);
    };
    let unmount = || {
        let unmounted = Command::new("umount").arg(&disk).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    };
    on_disk(ROOMY);
    machine.ok(&line);
    let whole = taken(&disk);
    unmount();
    // Nothing at all, some of the paths, and all but the last pages: what is small and written last.
    let sizes = [PAGE, job.base() / 2].into_iter();
    let sizes = sizes.chain((0..PATHS).map(|room| job.base() + room * SIZE));
    let sizes = sizes.chain((1..=LAST_PAGES).map(|pages| whole - pages * PAGE));
    let mut full = 0;
    for size in sizes {
        on_disk(size);
        let done = machine.run(&line);
        full += usize::from(tells_that_it_is_full(&done));
        // Before the next writer, but where a database can be opened.
        mount(&["-o", &format!("remount,size={ROOMY}")], &disk);
        holds();
        machine.ok(&line);
        holds();
        unmount();
    }
    let line = format!(
        "  {:<34} full at {full} sizes\n",
        format!("{job:?}, a disk").to_lowercase()
    );
    report(TABLE, &line);
    assert!(full >= PATHS, "only {full} disks were full");
}

/// Bytes that are taken on the disk.
fn taken(disk: &Path) -> usize {
    let space = rustix::fs::statvfs(disk).expect("it is mounted");
    ((space.f_blocks - space.f_bfree) * space.f_frsize) as usize
}

/// Whether the command failed, for this reason.
fn tells_that_it_is_full(done: &Done) -> bool {
    if done.status == 0 {
        return false;
    }
    assert_eq!(done.status, 2, "{done:?}");
    let words = done.err.to_lowercase();
    assert!(!words.contains("panicked"), "{done:?}");
    assert!(FULL.iter().any(|full| words.contains(full)), "{done:?}");
    true
}

/// Runs `test` where mounts are its own; skips it where that cannot be.
fn alone(test: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        return test();
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["-r", "-m"]);
        unshare
    };
    let probe = unshare()
        .args(["sh", "-c", "mount -t tmpfs none /mnt"])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skip(&test_name(), "this machine mounts no tmpfs for us");
    }
    let again = unshare()
        .arg(env::current_exe().expect("this program"))
        .args([&*test_name(), "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("unshare starts");
    let said = String::from_utf8_lossy(&again.stdout);
    let errors = String::from_utf8_lossy(&again.stderr);
    assert!(
        again.status.success() && said.contains("1 passed"),
        "{said}{errors}"
    );
}

fn mount(args: &[&str], folder: &Path) {
    let mounted = Command::new("mount").args(args).arg(folder).status();
    assert!(
        mounted.is_ok_and(|status| status.success()),
        "mount {args:?}"
    );
}

/// What the system, and SQLite, say of a full disk.
const FULL: [&str; 2] = ["no space left on device", "disk is full"];

const PATHS: usize = 4;
/// Bytes of each.
const SIZE: usize = 400 << 10;
/// What a file of a few bytes takes.
const PAGE: usize = 4 << 10;
const LAST_PAGES: usize = 16;
/// Bytes of a disk that is not full.
const ROOMY: usize = 64 << 20;

/// Set where the test runs in a namespace of its own.
const ALONE: &str = "TK_FAULTS_ALONE";
