//! Equal files become one, and what is damaged is found and mended.

mod common;

use common::{Sample, add_all, chain, open, sample};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tk_local::LocalStore;
use tk_nar::fs::{DumpOptions, remove_tree};
use tk_path::{Algorithm, Hash, StorePath};
use tk_store::{
    FaultKind, MemoryStore, MetadataCheck, OptimiseReport, RepairSource, Store, StoreExt,
    StoreVerifyOptions, StoreVerifyReport, VerifyDepth,
    log::{Level, LogEvent},
    verify,
};

#[tokio::test]
async fn equal_files_become_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    // Each has a file of its own content, one that runs and a link; the first two are alike.
    let samples = [
        sample("a", b"same"),
        sample("b", b"same"),
        sample("c", b"#!"),
    ];
    add_all(&store, &samples).await;
    let report = store.optimise(&()).await.unwrap();
    // Of a and b: the file, the program, the link; of c: the program and the link.
    let saved = 2 * (4 + 2 + 4) - 4;
    let expected = OptimiseReport {
        files_linked: 5,
        bytes_saved: saved,
        failed: 0,
    };
    assert_eq!(report, expected);
    let at = |i: usize, name: &str| real(&store, &samples[i]).join(name);
    let inode = |path: PathBuf| path.symlink_metadata().unwrap().ino();
    assert_eq!(inode(at(0, "file")), inode(at(1, "file")));
    assert_eq!(inode(at(0, "link")), inode(at(2, "link")));
    // What runs is another file than what does not, with the same bytes.
    assert_ne!(inode(at(2, "file")), inode(at(2, "run")));
    for sample in &samples {
        let folder = real(&store, sample).metadata().unwrap();
        assert_eq!((folder.mode() & 0o7777, folder.mtime()), (0o555, 1));
    }
    assert_links_are_whole(&store);
    assert_eq!(links(&store).len(), 4);
    assert!(temporary(&store).is_empty());
    verify_all(&store, &samples).await;
    let again = store.optimise(&()).await.unwrap();
    assert_eq!(again, OptimiseReport::default());
}

#[tokio::test]
async fn what_somebody_may_write_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = [sample("a", b"same"), sample("b", b"same")];
    add_all(&store, &samples).await;
    set_mode(&real(&store, &samples[1]).join("file"), 0o644);
    let told = Words::default();
    let report = store.optimise(&told.sink()).await.unwrap();
    assert_eq!(report.files_linked, 2, "the program and the link");
    told.has(Level::Warn, "skipping suspicious writable file '");
    assert_eq!(
        real(&store, &samples[1])
            .join("file")
            .metadata()
            .unwrap()
            .nlink(),
        1
    );
}

/// Nix would put the damaged one in the place of the whole one.
#[tokio::test]
async fn a_damaged_entry_is_not_trusted() {
    for damage in ["damg", "longer than before"] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let (first, second) = ([sample("a", b"same")], [sample("b", b"same")]);
        add_all(&store, &first).await;
        store.optimise(&()).await.unwrap();
        write(&real(&store, &first[0]).join("file"), damage);
        add_all(&store, &second).await;
        let told = Words::default();
        store.optimise(&told.sink()).await.unwrap();
        told.has(Level::Warn, "removing corrupted link '");
        verify_all(&store, &second).await;
        assert_links_are_whole(&store);
    }
}

#[tokio::test]
async fn what_disappeared_is_unregistered_unless_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(6);
    add_all(&store, &samples).await;
    // The last two refer to each other's predecessors only; 0 to 2 are needed by 3.
    for gone in [0, 1, 4, 5] {
        remove_tree(&real(&store, &samples[gone])).unwrap();
    }
    let told = Words::default();
    let report = check(&store, VerifyDepth::Existence, RepairSource::Nothing, &told).await;
    assert!(report.errors_left);
    let kinds = |kind: FaultKind| -> BTreeSet<String> {
        let of_kind = report.faults.iter().filter(|fault| fault.kind == kind);
        of_kind.map(|fault| fault.subject.clone()).collect()
    };
    let full = |i: usize| store.dir().path(&samples[i].info.path);
    assert_eq!(kinds(FaultKind::Disappeared), [full(4), full(5)].into());
    let needed = kinds(FaultKind::DisappearedWithReferrers);
    assert_eq!(needed, [full(0), full(1)].into());
    told.has(Level::Info, "' disappeared, removing from database...");
    told.has(
        Level::Error,
        "' disappeared, but it still has valid referrers!",
    );
    let left: BTreeSet<_> = samples[..4].iter().map(|s| s.info.path.clone()).collect();
    assert_eq!(store.all().await.unwrap(), left);

    let report = check(&store, VerifyDepth::Existence, good(&samples).await, &told).await;
    assert!(!report.errors_left, "{report:?}");
    verify_all(&store, &samples[..4]).await;
}

/// A folder that is not mounted is no reason to forget what is in it.
#[tokio::test]
async fn an_empty_folder_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(3);
    add_all(&store, &samples).await;
    for sample in &samples {
        remove_tree(&real(&store, sample)).unwrap();
    }
    let options = StoreVerifyOptions::default();
    let error = tk_store::Maintain::verify_store(&store, &options, &()).await;
    let line = error.unwrap_err().to_line();
    assert!(line.contains("mounted"), "{line}");
    assert_eq!(store.all().await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_damaged_is_found_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(12);
    add_all(&store, &samples).await;
    store.optimise(&()).await.unwrap();
    let damages: [(usize, Damage); 8] = [
        (0, |path| write(&path.join("file"), "other")),
        (1, |path| set_mode(&path.join("file"), 0o555)),
        (2, |path| set_mode(&path.join("run"), 0o444)),
        (3, |path| {
            change(path, || fs::remove_file(path.join("link")))
        }),
        (4, |path| change(path, || fs::write(path.join("more"), ""))),
        (5, |path| {
            remove_tree(path).unwrap();
            fs::write(path, "no folder").unwrap();
        }),
        (6, |path| {
            remove_tree(path).unwrap();
            symlink("/etc", path).unwrap();
        }),
        (7, |path| {
            change(path, || {
                let name = path.join("socket");
                std::os::unix::net::UnixListener::bind(name).map(drop)
            })
        }),
    ];
    // Files that are shared are damaged for all.
    for (i, damage) in damages {
        unshare(&real(&store, &samples[i]));
        damage(&real(&store, &samples[i]));
    }
    let told = Words::default();
    let bad = |report: &StoreVerifyReport| -> BTreeSet<String> {
        report
            .faults
            .iter()
            .map(|fault| fault.subject.clone())
            .collect()
    };
    let report = check(&store, VerifyDepth::Contents, RepairSource::Nothing, &told).await;
    let expected: BTreeSet<_> = (0..8)
        .map(|i| store.dir().path(&samples[i].info.path))
        .collect();
    assert_eq!(bad(&report), expected);
    assert!(report.errors_left);
    told.has(Level::Error, "' was modified! expected hash 'sha256:");

    let report = check(
        &store,
        VerifyDepth::Contents,
        RepairSource::Substituters,
        &told,
    )
    .await;
    assert!(report.errors_left);
    told.has(Level::Error, "cannot repair path '");
    let report = check(&store, VerifyDepth::Contents, good(&samples).await, &told).await;
    assert_eq!(bad(&report), expected);
    assert!(!report.errors_left && report.faults.iter().all(|fault| fault.mended));
    told.has(Level::Info, "copying path '");
    verify_all(&store, &samples).await;
    let report = check(&store, VerifyDepth::Contents, RepairSource::Nothing, &told).await;
    assert_eq!((report.faults, report.verified), (Vec::new(), Some(12)));
}

/// What another store has under the same name is not what was registered here.
#[tokio::test]
async fn other_content_of_the_same_name_repairs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = [sample("a", b"ours"), sample("z", b"z")];
    add_all(&store, &samples).await;
    let before = store.require_info(&samples[0].info.path).await.unwrap();
    write(&real(&store, &samples[0]).join("file"), "bad");
    let told = Words::default();
    let theirs = good(&[sample("a", b"theirs")]).await;
    let report = check(&store, VerifyDepth::Contents, theirs, &told).await;
    assert!(report.errors_left);
    assert!(
        report.faults[0].line.contains("cannot repair path"),
        "{report:?}"
    );
    assert_eq!(
        store.require_info(&samples[0].info.path).await.unwrap(),
        before
    );
}

#[tokio::test]
async fn entries_of_links_are_checked_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(3);
    add_all(&store, &samples).await;
    store.optimise(&()).await.unwrap();
    let entry = store.real_dir().join(".links").join("0".repeat(52));
    fs::write(&entry, "stray").unwrap();
    let told = Words::default();
    let report = check(&store, VerifyDepth::Contents, RepairSource::Nothing, &told).await;
    assert_eq!(report.faults[0].kind, FaultKind::LinkModified);
    told.has(Level::Error, "was modified! expected hash '0000");
    assert!(entry.exists());
    let report = check(&store, VerifyDepth::Contents, good(&samples).await, &told).await;
    assert!(!report.errors_left && !entry.exists());
    told.has(Level::Info, "removed link '");
}

#[tokio::test]
async fn metadata_is_looked_at_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let samples = chain(4);
    add_all(&store, &samples).await;
    let at = |i: usize| real(&store, &samples[i]);
    set_mode(&at(0).join("file"), 0o644);
    set_mode(&at(1), 0o755);
    fs::File::open(at(2).join("run"))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    let told = Words::default();
    let report = check(&store, VerifyDepth::Contents, RepairSource::Nothing, &told).await;
    assert!(report.faults.is_empty(), "as Nix: {report:?}");
    let mut options = StoreVerifyOptions::default();
    options.depth = VerifyDepth::Contents;
    options.metadata = MetadataCheck::Canonical;
    let report = tk_store::Maintain::verify_store(&store, &options, &())
        .await
        .unwrap();
    let lines: Vec<_> = report
        .faults
        .iter()
        .map(|fault| fault.line.as_str())
        .collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for words in [
        "has mode 644, not 444",
        "has mode 755, not 555",
        "was modified at ",
    ] {
        assert!(lines.iter().any(|line| line.contains(words)), "{lines:?}");
    }
}

async fn check(
    store: &LocalStore,
    depth: VerifyDepth,
    repair: RepairSource,
    told: &Words,
) -> StoreVerifyReport {
    let mut options = StoreVerifyOptions::default();
    options.depth = depth;
    options.repair = repair;
    let sink = told.sink();
    tk_store::Maintain::verify_store(store, &options, &sink)
        .await
        .unwrap()
}

/// A store that has all of `samples` whole.
async fn good(samples: &[Sample]) -> RepairSource {
    let store = MemoryStore::default();
    add_all(&store, samples).await;
    RepairSource::Stores(vec![Arc::new(store)])
}

type Damage = fn(&Path);

#[derive(Clone, Default)]
struct Words(Arc<Mutex<Vec<(Level, String)>>>);

impl Words {
    fn sink(&self) -> impl Fn(LogEvent) + Send + Sync + use<> {
        let words = self.0.clone();
        move |event| {
            if let LogEvent::Message { level, text } = event {
                words.lock().unwrap().push((level, text));
            }
        }
    }

    fn has(&self, level: Level, words: &str) {
        let told = self.0.lock().unwrap();
        let found = told
            .iter()
            .any(|(l, text)| *l == level && text.contains(words));
        assert!(found, "{words} is not in {told:?}");
    }
}

async fn verify_all(store: &LocalStore, samples: &[Sample]) {
    for sample in samples {
        let info = store.require_info(&sample.info.path).await.unwrap();
        verify(store, &info).await.unwrap();
    }
}

fn assert_links_are_whole(store: &LocalStore) {
    for entry in links(store) {
        let mut nar = Vec::new();
        tk_nar::fs::dump(&entry, &DumpOptions::default(), &mut nar).unwrap();
        let hash = tk_path::nix32::encode(Hash::digest(Algorithm::Sha256, &nar).as_bytes());
        assert_eq!(entry.file_name(), Some(OsStr::new(&hash)));
    }
}

fn links(store: &LocalStore) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.real_dir().join(".links")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn temporary(store: &LocalStore) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.real_dir()).unwrap();
    let entries = entries.map(|entry| entry.unwrap().path());
    let is_ours = |path: &PathBuf| path.to_string_lossy().contains(".tmp-link");
    entries.filter(is_ours).collect()
}

fn real(store: &LocalStore, sample: &Sample) -> PathBuf {
    let path: &StorePath = &sample.info.path;
    store.real_path(path)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Damages a file in place, with all that share it.
fn write(file: &Path, content: &str) {
    set_mode(file, 0o644);
    fs::write(file, content).unwrap();
    set_mode(file, 0o444);
}

fn change(folder: &Path, work: impl FnOnce() -> std::io::Result<()>) {
    set_mode(folder, 0o755);
    work().unwrap();
    set_mode(folder, 0o555);
}

/// Makes the files of a folder its own again.
fn unshare(folder: &Path) {
    change(folder, || {
        for name in ["file", "run"] {
            let (file, copy) = (folder.join(name), folder.join("copy"));
            fs::copy(&file, &copy)?;
            fs::rename(copy, file)?;
        }
        Ok(())
    });
}
