//! The disk cache: lifetimes, many writers, damage, and what Nix left.
#![cfg(feature = "disk-cache")]

use bytes::Bytes;
use rusqlite::Connection;
use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tk_cache::{
    disk_cache::{DiskCache, DiskCacheConfig},
    objects::{CachedNarInfo, NarInfoCache},
    observer::NetworkObserver,
};
use tk_narinfo::{Compression, NarInfo, PathInfo};
use tk_path::{Algorithm, Hash, HashPart, NarHash, StoreDir, StorePath};

/// A clock that the test sets, in seconds since 1970.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    fn config(&self) -> DiskCacheConfig {
        let clock = self.clone();
        DiskCacheConfig {
            clock: Arc::new(move || {
                UNIX_EPOCH + Duration::from_secs(clock.0.load(Ordering::Relaxed))
            }),
            ..DiskCacheConfig::default()
        }
    }
}

fn clock() -> Clock {
    Clock(Arc::new(AtomicU64::new(NOW)))
}

fn open(folder: &Path, config: DiskCacheConfig) -> Arc<DiskCache> {
    DiskCache::open(folder.join("narinfo.sqlite"), config).unwrap()
}

fn one(disk: &Arc<DiskCache>) -> Arc<dyn NarInfoCache> {
    disk.of(URL, &StoreDir::default())
}

fn path(name: &str) -> StorePath {
    let digest = Hash::digest(Algorithm::Sha256, name.as_bytes());
    let digest: [u8; 20] = digest.compress(20).try_into().unwrap();
    StorePath::from_digest(&digest, "thing").unwrap()
}

fn part(name: &str) -> HashPart {
    path(name).to_hash_part()
}

fn narinfo(name: &str) -> Bytes {
    let mut info = PathInfo::new(path(name), NarHash::digest(name.as_bytes()), 7);
    info.references = (0..8).map(|i| path(&format!("{name}/{i}"))).collect();
    let narinfo = NarInfo::new(info, format!("nar/{name}.nar"), Compression::None);
    narinfo.print(&StoreDir::default()).into()
}

fn present(name: &str) -> Option<CachedNarInfo> {
    Some(CachedNarInfo::Present(narinfo(name)))
}

fn put_present(cache: &dyn NarInfoCache, name: &str) {
    cache.put(&[(part(name), Some(narinfo(name)))]);
}

#[test]
fn answers_come_back_as_they_were_also_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let disk = open(folder.path(), clock().config());
    let cache = one(&disk);
    let (a, b, c) = (part("a"), part("b"), part("c"));
    assert_eq!(cache.get(&[a, b]), [None, None]);
    cache.put(&[(a, Some(narinfo("a"))), (b, None)]);
    let expected = [
        None,
        Some(CachedNarInfo::Absent),
        present("a"),
        present("a"),
    ];
    assert_eq!(cache.get(&[c, b, a, a]), expected);
    drop((cache, disk));
    let disk = open(folder.path(), clock().config());
    let cache = one(&disk);
    assert_eq!(cache.get(&[c, b, a, a]), expected);
    cache.put(&[(a, None)]);
    assert_eq!(cache.get(&[a]), [Some(CachedNarInfo::Absent)]);
    cache.forget(&[a, b]);
    assert_eq!(cache.get(&[a, b]), [None, None]);
    put_present(&*cache, "a");
    assert_eq!(cache.get(&[a]), [present("a")]);
    assert_eq!(cache.get(&[]), []);
}

#[test]
fn caches_are_told_apart_by_identity_and_store_directory() {
    let folder = TempDir::new().unwrap();
    let disk = open(folder.path(), clock().config());
    let (dir, other) = (StoreDir::default(), StoreDir::new("/gnu/store").unwrap());
    let caches = [
        disk.of("s3://eu.example/bucket", &dir),
        disk.of("s3://us.example/bucket", &dir),
        disk.of("s3://eu.example/bucket/prefix", &dir),
        disk.of("s3://eu.example/bucket", &other),
    ];
    for (i, cache) in caches.iter().enumerate() {
        assert_eq!(cache.get(&[part("a")]), [None], "{i}");
        assert_eq!(cache.cache_info(), None, "{i}");
        cache.put(&[(part("a"), Some(narinfo(&i.to_string())))]);
        cache.put_cache_info(Some(i.to_string().as_bytes()));
    }
    for (i, cache) in caches.iter().enumerate() {
        assert_eq!(cache.get(&[part("a")]), [present(&i.to_string())]);
        assert_eq!(cache.cache_info(), Some(Some(i.to_string().into())));
    }
}

#[test]
fn answers_live_as_long_as_configured_and_not_in_the_future() {
    const DAY: u64 = 24 * 60 * 60;
    for (later, positive, negative, info) in [
        (0, true, true, true),
        (29, true, true, true),
        (30, true, false, true),
        (7 * DAY - 1, true, false, true),
        (7 * DAY, true, false, false),
        (30 * DAY - 1, true, false, false),
        (30 * DAY, false, false, false),
    ] {
        let (folder, clock) = (TempDir::new().unwrap(), clock());
        let disk = open(folder.path(), clock.config());
        let cache = one(&disk);
        put_present(&*cache, "there");
        cache.put(&[(part("gone"), None)]);
        cache.put_cache_info(None);
        clock.set(NOW + later);
        let known = cache.get(&[part("there"), part("gone")]);
        assert_eq!(known[0].is_some(), positive, "{later}");
        assert_eq!(known[1].is_some(), negative, "{later}");
        assert_eq!(cache.cache_info() == Some(None), info, "{later}");
        // As after a boot without a clock: nothing of it counts, nor ever will by waiting.
        clock.set(NOW - 1);
        assert_eq!(cache.get(&[part("there"), part("gone")]), [None, None]);
        assert_eq!(cache.cache_info(), None);
    }
}

#[test]
fn what_is_old_is_removed_once_a_day() {
    let (folder, clock) = (TempDir::new().unwrap(), clock());
    let disk = open(folder.path(), clock.config());
    let cache = one(&disk);
    let rows = || -> i64 {
        let file = Connection::open(disk.path()).unwrap();
        file.query_row("select count(*) from answers", [], |row| row.get(0))
            .unwrap()
    };
    cache.put(&[(part("gone"), None)]);
    put_present(&*cache, "there");
    let day = 24 * 60 * 60;
    for (time, expected) in [
        (NOW + day - 1, 3),
        (NOW + day, 3), // the negative goes, the next comes
        (NOW + 31 * day, 2),
        // The clock was set back: all of it is from the future.
        (NOW - day, 1),
    ] {
        clock.set(time);
        put_present(&*cache, &time.to_string());
        assert_eq!(rows(), expected, "{time}");
    }
    // A cache of which nothing is known any more.
    disk.of("https://gone.example", &StoreDir::default())
        .put_cache_info(None);
    clock.set(NOW + 100 * day);
    put_present(&*cache, "new");
    let file = Connection::open(disk.path()).unwrap();
    let caches: Vec<String> = file
        .prepare("select identity from caches")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(caches, [URL]);
}

#[test]
fn threads_with_connections_of_their_own_write_at_once() {
    let folder = TempDir::new().unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let folder = folder.path();
            scope.spawn(move || {
                let disk = open(folder, DiskCacheConfig::default());
                let cache = one(&disk);
                for i in 0..50 {
                    put_present(&*cache, &format!("{writer}/{i}"));
                    assert_eq!(cache.get(&[part("no")]), [None]);
                }
            });
        }
    });
    let disk = open(folder.path(), DiskCacheConfig::default());
    let names: Vec<_> = (0..200).map(|i| format!("{}/{}", i / 50, i % 50)).collect();
    let parts: Vec<_> = names.iter().map(|name| part(name)).collect();
    let expected: Vec<_> = names.iter().map(|name| present(name)).collect();
    assert_eq!(one(&disk).get(&parts), expected);
    assert!(!folder.path().join("narinfo.sqlite.aside").exists());
}

/// The test runs itself as the other processes.
#[test]
fn processes_write_at_once_and_some_are_killed() {
    const ROLE: &str = "TK_DISK_CACHE_WRITER";
    if let Some(folder) = env::var_os(ROLE) {
        let disk = open(folder.as_ref(), DiskCacheConfig::default());
        let cache = one(&disk);
        for round in 0.. {
            let names: Vec<_> = (0..100).map(|i| format!("{round}/{i}")).collect();
            let answers = names.iter().map(|name| (part(name), Some(narinfo(name))));
            cache.put(&answers.collect::<Vec<_>>());
            println!("\nround {round}");
        }
    }
    let folder = TempDir::new().unwrap();
    let writer = || {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "processes_write_at_once_and_some_are_killed",
                "--nocapture",
            ])
            .env(ROLE, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines.map_while(Result::ok))
    };
    let mut writers: Vec<_> = (0..3).map(|_| writer()).collect();
    for (i, (child, lines)) in writers.iter_mut().enumerate() {
        let last = format!("round {}", 3 + i);
        assert!(lines.any(|line| line == last), "writer {i} ended early");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let disk = open(folder.path(), DiskCacheConfig::default());
    for name in ["0/0", "1/50", "3/99"] {
        assert_eq!(one(&disk).get(&[part(name)]), [present(name)], "{name}");
    }
    let file = Connection::open(disk.path()).unwrap();
    let whole: String = file
        .query_row("pragma integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(whole, "ok");
    assert!(!folder.path().join("narinfo.sqlite.aside").exists());
}

#[test]
fn damage_anywhere_costs_answers_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let names: Vec<_> = (0..60).map(|i| i.to_string()).collect();
    let answers: Vec<_> = names
        .iter()
        .map(|name| (part(name), Some(narinfo(name))))
        .collect();
    let parts: Vec<_> = names.iter().map(|name| part(name)).collect();
    one(&open(folder.path(), DiskCacheConfig::default())).put(&answers);
    let file = folder.path().join("narinfo.sqlite");
    let good = fs::read(&file).unwrap();
    assert!(!folder.path().join("narinfo.sqlite-wal").exists());

    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut whole = 0;
    for round in 0..300 {
        let mut bad = good.clone();
        match round % 4 {
            // The header and the first page decide most.
            0 => bad[next(200)] ^= 1 << next(8),
            1 => bad[next(good.len())] ^= 1 << next(8),
            2 => bad.truncate(next(good.len())),
            _ => {
                let (at, len) = (next(good.len()), next(5000));
                let end = good.len().min(at + len);
                bad[at..end].fill(next(256) as u8);
            }
        }
        fs::write(&file, &bad).unwrap();
        let disk = open(folder.path(), DiskCacheConfig::default());
        let cache = one(&disk);
        let known = cache.get(&parts);
        for (name, known) in names.iter().zip(&known) {
            assert!(known.is_none() || *known == present(name), "round {round}");
        }
        whole += usize::from(known.iter().all(Option::is_some));
        // It may take one more fault to be noticed, but then it works again.
        cache.put(&answers);
        cache.put(&answers);
        let again = cache.get(&parts);
        assert!(again.iter().all(Option::is_some), "round {round}");
        drop((cache, disk));
        for beside in ["-wal", "-shm"] {
            let _ = fs::remove_file(folder.path().join(format!("narinfo.sqlite{beside}")));
        }
    }
    assert!(whole < 200, "the damage was not where it matters: {whole}");
}

#[test]
fn what_is_damaged_while_it_is_open_is_mended() {
    let folder = TempDir::new().unwrap();
    let disks = [(); 2].map(|()| open(folder.path(), DiskCacheConfig::default()));
    let caches = disks.each_ref().map(one);
    let answers: Vec<_> = (0..200)
        .map(|i| (part(&i.to_string()), Some(narinfo(&i.to_string()))))
        .collect();
    caches[0].put(&answers);
    let tool = Connection::open(disks[0].path()).unwrap();
    tool.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))
        .unwrap();
    drop(tool);
    let size = fs::metadata(disks[0].path()).unwrap().len();
    assert!(size > 40_000);
    let mut bytes = fs::read(disks[0].path()).unwrap();
    bytes[4096..].fill(0xa5);
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(disks[0].path());
    file.unwrap().write_all_at(&bytes, 0).unwrap();
    let other = DiskCache::open(disks[0].path(), DiskCacheConfig::default()).unwrap();
    for cache in [one(&other), caches[1].clone(), caches[0].clone()] {
        cache.get(&[part("1")]);
        cache.put(&answers);
        cache.put(&answers);
        assert_eq!(cache.get(&[part("1")]), [present("1")]);
    }
}

#[test]
fn a_file_of_somebody_else_is_moved_aside_unharmed() {
    let folder = TempDir::new().unwrap();
    let (file, aside) = (
        folder.path().join("narinfo.sqlite"),
        folder.path().join("narinfo.sqlite.aside"),
    );
    for text in ["not a database at all", "SQLite format 3"] {
        fs::write(&file, text.repeat(100)).unwrap();
        put_present(&*one(&open(folder.path(), DiskCacheConfig::default())), "a");
        assert_eq!(fs::read_to_string(&aside).unwrap(), text.repeat(100));
        let disk = open(folder.path(), DiskCacheConfig::default());
        assert_eq!(one(&disk).get(&[part("a")]), [present("a")]);
        fs::remove_file(&file).unwrap();
    }
    let foreign = Connection::open(&file).unwrap();
    foreign
        .execute_batch("create table precious (x); insert into precious values (42)")
        .unwrap();
    drop(foreign);
    put_present(&*one(&open(folder.path(), DiskCacheConfig::default())), "a");
    let foreign = Connection::open(&aside).unwrap();
    let x: i64 = foreign
        .query_row("select x from precious", [], |row| row.get(0))
        .unwrap();
    assert_eq!(x, 42);
}

/// What people are warned of.
#[derive(Debug, Default)]
struct Warnings(Mutex<Vec<String>>);

impl NetworkObserver for Warnings {
    fn warned(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// A stopped process, a backup, a home on another machine: thousands of paths do not wait for it.
#[test]
fn who_holds_the_lock_is_waited_for_once() {
    let folder = TempDir::new().unwrap();
    let told = Arc::new(Warnings::default());
    let config = DiskCacheConfig {
        observer: told.clone(),
        ..DiskCacheConfig::default()
    };
    let cache = one(&open(folder.path(), config));
    put_present(&*cache, "before");
    let other = Connection::open(folder.path().join("narinfo.sqlite")).unwrap();
    other.execute_batch("begin immediate").unwrap();
    // Waiting for each would take an hour.
    for n in 0..2_000 {
        put_present(&*cache, &format!("{n}"));
        assert_eq!(cache.get(&[part("before")]), [present("before")]);
    }
    let warnings = told.0.lock().unwrap().clone();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("locked"), "{warnings:?}");
    other.execute_batch("rollback").unwrap();
    put_present(&*cache, "after");
    assert_eq!(
        cache.get(&[part("after"), part("0")]),
        [present("after"), None]
    );
}

#[test]
fn an_empty_file_and_missing_folders_are_made_into_one() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("narinfo.sqlite"), "").unwrap();
    put_present(&*one(&open(folder.path(), DiskCacheConfig::default())), "a");
    let deep = folder.path().join("some/where");
    put_present(&*one(&open(&deep, DiskCacheConfig::default())), "a");
    assert!(deep.join("narinfo.sqlite").exists());
    let blocked = folder.path().join("narinfo.sqlite/below.sqlite");
    let error = DiskCache::open(blocked, DiskCacheConfig::default()).unwrap_err();
    assert!(error.to_line().contains("narinfo.sqlite"), "{error}");
}

/// The folder of Nix, with what it wrote.
fn nix_folder(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let file = Connection::open(folder.path().join(name)).unwrap();
    file.execute_batch(FROM_NIX).unwrap();
    // As Nix has it.
    file.pragma_update(None, "journal_mode", "wal").unwrap();
    folder
}

fn with_nix(folder: &Path, nix: &Path, clock: &Clock) -> Arc<DiskCache> {
    let config = DiskCacheConfig {
        nix: Some(nix.to_owned()),
        ..clock.config()
    };
    open(folder, config)
}

fn nix_parts() -> [HashPart; 3] {
    [NIX_PRESENT, NIX_ABSENT, "00000000000000000000000000000000"]
        .map(|part| HashPart::parse(part).unwrap())
}

/// All files of a folder, with a digest of their content and their time. Of SQLite's shared memory
/// (`-shm`), which is one for all connections of a process, only that it is there.
fn snapshot(folder: &Path) -> Vec<(String, Option<(Hash, SystemTime)>)> {
    let file = |path: PathBuf| {
        let content = fs::read(&path).unwrap();
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        let name = path.display().to_string();
        let digest = Hash::digest(Algorithm::Sha256, &content);
        let shared = name.ends_with("-shm");
        (name, (!shared).then_some((digest, changed)))
    };
    let files = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|entry| file(entry.unwrap().path())).collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

#[test]
fn positives_of_nix_are_taken_and_nothing_is_written_there() {
    for version in 6..=8 {
        let name = &format!("binary-cache-v{version}.sqlite");
        let (folder, nix, clock) = (TempDir::new().unwrap(), nix_folder(name), clock());
        let before = snapshot(nix.path());
        assert_eq!(before.len(), 1, "Nix has ended: no log");
        let disk = with_nix(folder.path(), nix.path(), &clock);
        let cache = disk.of(NIX_URL, &StoreDir::default());
        let known = cache.get(&nix_parts());
        assert_eq!(known[1..], [None, None], "negatives are not believed");
        let Some(CachedNarInfo::Present(text)) = &known[0] else {
            panic!("{known:?}");
        };
        assert_eq!(String::from_utf8_lossy(text), NIX_NARINFO);

        for (url, dir) in [
            ("http://localhost:8141", "/nix/store"),
            (NIX_URL, "/gnu/store"),
            ("s3://bucket", "/nix/store"),
        ] {
            let other = disk.of(url, &StoreDir::new(dir).unwrap());
            assert_eq!(other.get(&nix_parts()), [None, None, None], "{url} {dir}");
        }
        assert_eq!(snapshot(nix.path()), before);

        // What turned out to be wrong stays forgotten, until somebody says so again.
        cache.forget(&nix_parts()[..1]);
        assert_eq!(cache.get(&nix_parts()), [None, None, None]);
        cache.put(&[(nix_parts()[0], None)]);
        assert_eq!(cache.get(&nix_parts())[0], Some(CachedNarInfo::Absent));
        clock.set(NIX_TIME + 30 * 24 * 60 * 60);
        assert_eq!(cache.get(&nix_parts()), [None, None, None]);
    }
}

/// A cache that invents narinfos without end fills the disk no further than that.
#[test]
fn the_older_half_is_forgotten_when_there_is_too_much() {
    let (folder, clock) = (TempDir::new().unwrap(), clock());
    let config = DiskCacheConfig {
        max_bytes: 1 << 20,
        ..clock.config()
    };
    let disk = open(folder.path(), config);
    let cache = one(&disk);
    let large = Bytes::from(vec![b'x'; 100 << 10]);
    for n in 0..50 {
        clock.set(1000 + n);
        cache.put(&[(part(&n.to_string()), Some(large.clone()))]);
    }
    assert!(fs::metadata(disk.path()).unwrap().len() < 3 << 20);
    let known = |n: u64| cache.get(&[part(&n.to_string())])[0].is_some();
    assert!(known(49) && !known(0));
}

/// Whoever asks anew learns what is new, and so do all after him.
#[test]
fn what_was_remembered_before_does_not_count_for_who_asks_anew() {
    let (folder, clock) = (TempDir::new().unwrap(), clock());
    let disk = open(folder.path(), clock.config());
    clock.set(1000);
    put_present(&*one(&disk), "a");
    one(&disk).put_cache_info(Some(b"StoreDir: /nix/store\n"));
    clock.set(1001);
    let anew = disk.of_now(URL, &StoreDir::default());
    assert_eq!(anew.get(&[part("a")]), [None]);
    assert_eq!(anew.cache_info(), None);
    anew.put(&[(part("a"), None)]);
    assert_eq!(anew.get(&[part("a")]), [Some(CachedNarInfo::Absent)]);
    assert_eq!(one(&disk).get(&[part("a")]), [Some(CachedNarInfo::Absent)]);
}

#[test]
fn a_nix_that_is_at_work_is_read_with_its_log() {
    let (folder, nix, clock) = (
        TempDir::new().unwrap(),
        nix_folder("binary-cache-v7.sqlite"),
        clock(),
    );
    let writer = Connection::open(nix.path().join("binary-cache-v7.sqlite")).unwrap();
    writer.execute("delete from NARs", []).unwrap();
    let before = snapshot(nix.path());
    assert_eq!(before.len(), 3, "a log and its index");
    let disk = with_nix(folder.path(), nix.path(), &clock);
    let cache = disk.of(NIX_URL, &StoreDir::default());
    assert_eq!(cache.get(&nix_parts()), [None, None, None]);
    assert_eq!(snapshot(nix.path()), before);

    // Somebody else's rows that are no narinfos.
    let refill = FROM_NIX
        .lines()
        .find(|line| line.contains(NIX_PRESENT))
        .unwrap();
    for (column, value) in [
        ("url", "'nar/x\nSig: evil:AAAA'"),
        ("narHash", "'md5:x'"),
        ("namePart", "NULL"),
        ("narSize", "-1"),
        ("narSize", "x'00'"),
    ] {
        writer.execute("delete from NARs", []).unwrap();
        writer.execute(refill, []).unwrap();
        assert!(cache.get(&nix_parts())[0].is_some(), "before {column}");
        let spoil = format!("update NARs set {column} = {value}");
        writer.execute(&spoil, []).unwrap();
        assert_eq!(cache.get(&nix_parts())[0], None, "{column}");
    }
    writer.execute("delete from NARs", []).unwrap();
    writer.execute(refill, []).unwrap();
    writer.execute_batch("begin exclusive").unwrap();
    let _ = cache.get(&nix_parts());
    writer.execute_batch("commit").unwrap();
    assert!(cache.get(&nix_parts())[0].is_some());
}

#[test]
fn files_that_are_not_nix_s_are_no_answers() {
    let (folder, nix) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let disk = with_nix(folder.path(), nix.path(), &clock());
    let cache = disk.of(NIX_URL, &StoreDir::default());
    let file = nix.path().join("binary-cache-v8.sqlite");
    assert_eq!(cache.get(&nix_parts()), [None, None, None], "not there");
    fs::write(&file, "no database").unwrap();
    assert_eq!(cache.get(&nix_parts()), [None, None, None], "no database");
    fs::remove_file(&file).unwrap();
    let other = Connection::open(&file).unwrap();
    other.execute_batch("create table NARs (x)").unwrap();
    assert_eq!(
        cache.get(&nix_parts()),
        [None, None, None],
        "another schema"
    );
    // The older file still counts.
    let old = Connection::open(nix.path().join("binary-cache-v7.sqlite")).unwrap();
    old.execute_batch(FROM_NIX).unwrap();
    assert!(cache.get(&nix_parts())[0].is_some());
}

const URL: &str = "https://cache.example/folder";
const NOW: u64 = NIX_TIME + 10;

const FROM_NIX: &str = include_str!("data/binary-cache-v7.sql");
const NIX_URL: &str = "http://localhost:8140";
const NIX_TIME: u64 = 1_795_471_975;
const NIX_PRESENT: &str = "y9xsr1hg3kf7xbva2dgqpagj6x6555a3";
const NIX_ABSENT: &str = "ksndzbhi1maykqax5lj5q2wzn5in9gk8";
const NIX_NARINFO: &str = "\
StorePath: /nix/store/y9xsr1hg3kf7xbva2dgqpagj6x6555a3-a
URL: nar/0kwnzfnhkydqkdls2rc7ag3w795w1ffd9m2vl1ys33y5hsg961lz.nar.xz
Compression: xz
FileHash: sha256:0kwnzfnhkydqkdls2rc7ag3w795w1ffd9m2vl1ys33y5hsg961lz
FileSize: 124
NarHash: sha256:11hap619k9yv29jfxdq44d7fxwks93qsw8w8iwbgdjwxni9zsxlj
NarSize: 120
References: \n\
Sig: t-1:N0TqLDQGO5hR4jQ4x4esKkb8IjQ0psww4gP+HdavcPbldV1QZ/TFX6gdph+HutAjueq3lzInFbytXaNZPhw5Dw==
CA: fixed:r:sha256:11hap619k9yv29jfxdq44d7fxwks93qsw8w8iwbgdjwxni9zsxlj
";
