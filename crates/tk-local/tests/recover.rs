//! The database is written out, read in, and made anew where it is lost.

mod common;

use common::{Sample, add_all, chain, open, sample};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Cursor,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_local::{
    LoadReport, LocalConfig, LocalStore, PathTruth, RecoverOptions, RecoverReport, RecoverWrite,
    ScanPaths,
};
use tk_nar::fs::remove_tree;
use tk_narinfo::{PathInfo, Policy, SecretKey, TrustedKeys};
use tk_path::{Algorithm, Method, References, StoreDir, StorePath};
use tk_store::{
    AddContent, Error, MemoryStore, SigCheck, Store, StoreExt, log::LogEvent, nar,
    registration_text, verify,
};

#[tokio::test]
async fn what_is_written_out_is_read_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let key = SecretKey::generate("k-1").unwrap();
    let mut samples = chain(20);
    samples[3].info.deriver = Some(StorePath::from_digest(&[3; 20], "x.drv").unwrap());
    for sample in &mut samples {
        sample.info.sign(store.dir(), &key).unwrap();
    }
    add_all(&store, &samples).await;
    let text = dump(&store).await;
    let before = infos(&store).await;
    // What is there keeps what the text does not say.
    let report = store.load_db(Cursor::new(text.clone())).await.unwrap();
    assert_eq!((report.registered, report.kept), (0, 20));
    assert_eq!(infos(&store).await, before);

    drop(store);
    forget(dir.path());
    let store = open(dir.path()).await;
    assert!(store.all().await.unwrap().is_empty());
    let report = store.load_db(Cursor::new(text.clone())).await.unwrap();
    let expected = LoadReport {
        registered: 20,
        kept: 0,
    };
    assert_eq!(report, expected);
    assert_eq!(dump(&store).await, text);
    verify_all(&store).await;
}

#[tokio::test]
async fn all_is_loaded_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(6);
    add_all(&store, &samples).await;
    let text = dump(&store).await;
    let last = &samples[5].info;
    drop(store);
    forget(dir.path());
    let store = open(dir.path()).await;
    add_all(&store, &samples[..1]).await;
    let record = |info: &PathInfo| registration_text(&StoreDir::default(), info);
    let mut unknown = last.clone();
    unknown.references = [StorePath::from_digest(&[9; 20], "unknown").unwrap()].into();
    let mut other = samples[0].info.clone();
    other.nar_hash = last.nar_hash;
    let absent = sample("absent", b"x").info;
    let mut circle = samples[1].info.clone();
    circle.references = [samples[2].info.path.clone()].into();
    let mut large = samples[1].info.clone();
    large.nar_size = 1 << 63;
    for (wrong, words) in [
        (text[..text.len() - 1].to_owned(), "cut off"),
        (format!("{text}junk\n"), "line "),
        (record(&unknown) + &text, "-unknown"),
        (record(&large) + &text, "9223372036854775808 is too large"),
        (text.clone() + &record(&other), "registered NAR hash"),
        (
            text.clone() + &record(&absent),
            "looking for the content of",
        ),
        (
            // The first record of a path counts.
            record(&circle) + &text,
            "refers to itself through others",
        ),
    ] {
        let failed = store.load_db(Cursor::new(wrong)).await;
        let error = failed.expect_err(words);
        assert!(
            error.to_line().contains(words),
            "{words}: {}",
            error.to_line()
        );
        assert_eq!(store.all().await.unwrap().len(), 1, "{words}");
    }
}

#[tokio::test]
async fn a_path_that_somebody_makes_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(2);
    add_all(&store, &samples).await;
    let text = dump(&store).await;
    drop(store);
    forget(dir.path());
    let store = open(dir.path()).await;
    let lock = store
        .real_dir()
        .join(format!("{}.lock", samples[1].info.path));
    let held = fs::File::create(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = store.load_db(Cursor::new(text.clone())).await.unwrap_err();
    assert!(
        error.to_line().contains("is being made by somebody"),
        "{error}"
    );
    drop(held);
    store.load_db(Cursor::new(text)).await.unwrap();
}

/// A store with paths of all kinds, whose database is lost.
struct Lost {
    dir: tempfile::TempDir,
    samples: Vec<Sample>,
    /// A file, a folder and a text that refers to the file, added by content.
    added: Vec<PathInfo>,
    before: BTreeMap<StorePath, PathInfo>,
    dump: String,
}

impl Lost {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let samples = chain(9);
        add_all(&store, &samples).await;
        let added = add_content(&store).await;
        let (before, dump) = (infos(&store).await, dump(&store).await);
        drop(store);
        Lost {
            dir,
            samples,
            added,
            before,
            dump,
        }
    }

    fn config(&self) -> LocalConfig {
        LocalConfig::chroot(self.dir.path())
    }

    fn database(&self) -> PathBuf {
        self.config().database()
    }

    async fn recover(&self, options: RecoverOptions) -> RecoverReport {
        LocalStore::recover(self.config(), options, &())
            .await
            .unwrap()
    }

    fn records(&self) -> Vec<PathInfo> {
        let dir = StoreDir::default();
        let records = tk_store::RegistrationReader::new(&dir, self.dump.as_bytes());
        records.collect::<Result<_, _>>().unwrap()
    }
}

#[tokio::test]
async fn from_a_dump() {
    let lost = Lost::new().await;
    fs::write(lost.database(), "certainly not a database").unwrap();
    fs::write(lost.database().with_file_name("ca-schema"), "4").unwrap();
    let mut options = RecoverOptions::new(SigCheck::Skip);
    options.dump = lost.records();
    let report = lost.recover(options).await;
    assert!(report.left_out.is_empty(), "{:?}", report.left_out);
    assert!(
        report
            .recovered
            .values()
            .all(|truth| *truth == PathTruth::Dump)
    );
    let old = report.old.unwrap();
    assert_eq!(fs::read(old).unwrap(), b"certainly not a database");
    let store = open(lost.dir.path()).await;
    verify_all(&store).await;
    let mut after = infos(&store).await;
    for (path, info) in &mut after {
        info.registration_time = lost.before[path].registration_time;
    }
    // Content addresses are found again.
    assert_eq!(after, lost.before);
    // It is a database as any other.
    add_all(&store, &[sample("more", b"more")]).await;
    let left = |name: &str| lost.database().with_file_name(name).exists();
    assert!(!left("recover") && !left("ca-schema"));
}

#[tokio::test]
async fn from_what_a_trusted_key_signed() {
    let lost = Lost::new().await;
    forget(lost.dir.path());
    let key = SecretKey::generate("k-1").unwrap();
    let cache = MemoryStore::default();
    let mut signed = chain(9);
    for sample in &mut signed[..6] {
        sample.info.sign(&StoreDir::default(), &key).unwrap();
    }
    add_all(&cache, &signed).await;
    // One of them was changed, and so is not what was signed.
    change(&real(&lost, 2));
    let policy = Policy::new(TrustedKeys::from_iter([key.public()]));
    let mut options = RecoverOptions::new(SigCheck::Require(Arc::new(policy)));
    options.from = vec![Arc::new(cache)];
    options.write = RecoverWrite::DryRun;
    let report = lost.recover(options).await;
    assert!(!lost.database().exists());
    let of = |i: usize| report.recovered.get(&lost.samples[i].info.path);
    for i in [0, 1] {
        assert!(matches!(of(i), Some(PathTruth::Narinfo { .. })), "{i}");
    }
    // What is changed, and what refers to it; what is not signed.
    for i in 2..9 {
        assert_eq!(of(i), None, "{i}");
    }
    let why = |i: usize| &report.left_out[&lost.samples[i].info.path];
    assert!(why(2).contains("was modified! expected hash"), "{}", why(2));
    assert!(why(3).contains("which is not valid"), "{}", why(3));
    assert!(why(8).contains("nobody knows it"), "{}", why(8));
    for info in &lost.added {
        assert_eq!(report.recovered[&info.path], PathTruth::ContentAddress);
    }
}

/// A content address takes the place of a signature, so it must be that of what is there.
#[tokio::test]
async fn a_content_address_vouches_for_no_other_content() {
    let lost = Lost::new().await;
    forget(lost.dir.path());
    // The first is a file that nothing but its content makes; the last two are whole.
    let mut claimed = lost.added.clone();
    let file = lost.config().real.join(claimed[0].path.as_str());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "damaged").unwrap();
    let mut encoder = tk_nar::Encoder::new(Vec::new());
    encoder.file(false, b"damaged").unwrap();
    let nar = encoder.finish().unwrap();
    let hash = tk_path::Hash::digest(Algorithm::Sha256, &nar);
    claimed[0].nar_hash = hash.try_into().unwrap();
    claimed[0].nar_size = nar.len() as u64;
    let mut options = RecoverOptions::new(SigCheck::Skip);
    options.dump = claimed;
    let report = lost.recover(options).await;
    let why = &report.left_out[&lost.added[0].path];
    assert!(why.contains("content address"), "{why}");
    assert_eq!(report.recovered[&lost.added[1].path], PathTruth::Dump);
    // The text refers to the file.
    assert!(report.left_out.contains_key(&lost.added[2].path));
}

/// What was committed is in the old database, and none of it gets into the new one.
#[tokio::test]
async fn the_old_journal_stays_with_the_old_database() {
    let lost = Lost::new().await;
    let file = lost.database();
    let journal = file.with_file_name("db.sqlite-wal");
    let store = open(lost.dir.path()).await;
    add_all(&store, &[sample("late", b"late")]).await;
    let killed = (fs::read(&file).unwrap(), fs::read(&journal).unwrap());
    assert!(!killed.1.is_empty());
    drop(store);
    let mut options = RecoverOptions::new(SigCheck::Skip);
    options.dump = lost.records();
    fs::write(&file, &killed.0).unwrap();
    fs::write(&journal, &killed.1).unwrap();
    let report = lost.recover(options).await;
    assert!(!journal.exists());
    // All is in the one file.
    let alone = lost.dir.path().join("alone.sqlite");
    fs::copy(report.old.unwrap(), &alone).unwrap();
    let old = rusqlite::Connection::open(&alone).unwrap();
    let rows = old.query_row("select count(*) from ValidPaths", [], |row| row.get(0));
    assert_eq!(rows, Ok(lost.before.len() as i64 + 1));

    // The database is lost, its journal is not.
    fs::remove_file(&file).unwrap();
    fs::write(&journal, &killed.1).unwrap();
    let mut options = RecoverOptions::new(SigCheck::Skip);
    options.dump = lost.records();
    let report = lost.recover(options).await;
    assert!(report.old.is_none() && !journal.exists());
    let store = open(lost.dir.path()).await;
    assert_eq!(store.all().await.unwrap().len(), lost.before.len());
    verify_all(&store).await;
}

#[tokio::test]
async fn a_newer_schema_is_not_replaced() {
    let lost = Lost::new().await;
    let schema = lost.database().with_file_name("schema");
    let bytes = fs::read(lost.database()).unwrap();
    fs::write(&schema, "11").unwrap();
    let options = RecoverOptions::new(SigCheck::Skip);
    let failed = LocalStore::recover(lost.config(), options, &()).await;
    let error = failed.unwrap_err().to_line();
    assert!(error.contains("has schema 11, newer"), "{error}");
    assert_eq!(fs::read(lost.database()).unwrap(), bytes);
    assert_eq!(fs::read_to_string(schema).unwrap(), "11");
}

/// Whoever added a path after they were listed would lose it.
#[tokio::test]
async fn others_are_locked_out_while_sources_are_asked() {
    let lost = Lost::new().await;
    let cache = MemoryStore::default();
    add_all(&cache, &chain(1)).await;
    // Nobody signed it, which is told at once.
    let policy = Policy::new(TrustedKeys::default());
    let mut options = RecoverOptions::new(SigCheck::Require(Arc::new(policy)));
    options.from = vec![Arc::new(cache)];
    let lock = fs::File::open(lost.database().with_file_name("big-lock")).unwrap();
    let asked = std::sync::Mutex::new(Vec::new());
    let log = |event: LogEvent| {
        if matches!(&event, LogEvent::Message { text, .. } if !text.contains("stays invalid")) {
            let operation = rustix::fs::FlockOperation::NonBlockingLockShared;
            asked
                .lock()
                .unwrap()
                .push(rustix::fs::flock(&lock, operation));
        }
    };
    let report = LocalStore::recover(lost.config(), options, &log).await;
    assert!(!report.unwrap().left_out.is_empty());
    let busy = Err(rustix::io::Errno::WOULDBLOCK);
    assert_eq!(*asked.lock().unwrap(), [busy]);
}

#[tokio::test]
async fn by_scanning() {
    let lost = Lost::new().await;
    forget(lost.dir.path());
    // A path that was being written when its process was killed, and one that was changed.
    let real_dir = lost.config().real;
    let unfinished = StorePath::from_digest(&[8; 20], "unfinished").unwrap();
    fs::create_dir(real_dir.join(unfinished.as_str())).unwrap();
    fs::write(real_dir.join(unfinished.as_str()).join("half"), "h").unwrap();
    change(&real(&lost, 8));
    // What a process that was killed left beside a path is none, and nothing refers to it.
    let beside = |suffix: &str| real_dir.join(format!("{}{suffix}", lost.added[0].path));
    fs::create_dir(beside(".chroot")).unwrap();
    fs::write(beside(".check"), "second").unwrap();
    fs::write(beside(".lock"), "d").unwrap();
    let held = StorePath::from_digest(&[7; 20], "gone.lock").unwrap();
    fs::write(real_dir.join(held.as_str()), "").unwrap();
    let mut options = RecoverOptions::new(SigCheck::Skip);
    options.scan = ScanPaths::Yes;
    let report = lost.recover(options).await;
    let left: BTreeSet<_> = report.left_out.keys().cloned().collect();
    assert_eq!(left, [unfinished, lost.samples[8].info.path.clone()].into());
    for sample in &lost.samples[..8] {
        assert_eq!(report.recovered[&sample.info.path], PathTruth::Scanned);
    }
    let store = open(lost.dir.path()).await;
    verify_all(&store).await;
    // The samples do not name each other, the content that was added does.
    for info in &lost.added {
        let found = store.require_info(&info.path).await.unwrap();
        assert_eq!((&found.ca, &found.references), (&info.ca, &info.references));
        assert_eq!(report.recovered[&info.path], PathTruth::ContentAddress);
    }
}

#[tokio::test]
async fn nobody_else_may_use_the_store() {
    let lost = Lost::new().await;
    let store = open(lost.dir.path()).await;
    let bytes = fs::read(lost.database()).unwrap();
    let options = RecoverOptions::new(SigCheck::Skip);
    let error = LocalStore::recover(lost.config(), options, &())
        .await
        .unwrap_err();
    assert!(matches!(&error, Error::Invalid { .. }), "{error:?}");
    assert!(error.to_line().contains("in use"), "{error}");
    assert_eq!(fs::read(lost.database()).unwrap(), bytes);
    drop(store);
}

async fn add_content(store: &LocalStore) -> Vec<PathInfo> {
    let mut added: Vec<PathInfo> = Vec::new();
    for (name, method) in [
        ("flat", Method::Flat),
        ("whole", Method::Nar),
        ("text", Method::Text),
    ] {
        let mut references = References::default();
        let mut content = name.to_owned();
        if method == Method::Text {
            content += &store.dir().path(&added[0].path);
            references.others.insert(added[0].path.clone());
        }
        let mut encoder = tk_nar::Encoder::new(Vec::new());
        encoder.file(false, content.as_bytes()).unwrap();
        let nar = nar::from_bytes(encoder.finish().unwrap());
        let info = store.add_content(name, method, Algorithm::Sha256, &references, nar);
        added.push(info.await.unwrap());
    }
    added
}

async fn infos(store: &LocalStore) -> BTreeMap<StorePath, PathInfo> {
    let mut infos = BTreeMap::new();
    for path in store.all().await.unwrap() {
        let info = store.require_info(&path).await.unwrap();
        infos.insert(path, info);
    }
    infos
}

async fn dump(store: &LocalStore) -> String {
    let infos = infos(store).await;
    infos
        .values()
        .map(|info| registration_text(store.dir(), info))
        .collect()
}

async fn verify_all(store: &LocalStore) {
    for info in infos(store).await.values() {
        verify(store, info).await.unwrap();
    }
}

/// Loses the database, not the content.
fn forget(root: &Path) {
    remove_tree(&root.join("nix/var/nix/db")).unwrap();
}

fn real(lost: &Lost, i: usize) -> PathBuf {
    lost.config().real.join(lost.samples[i].info.path.as_str())
}

fn change(folder: &Path) {
    let file = folder.join("file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "changed").unwrap();
}
