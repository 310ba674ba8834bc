//! Dumping and unpacking on a real file system.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use common::{Short, Tree, random, sample, tree};
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};
use tk_nar::fs::{
    CaseHack, Dump, DumpError, DumpOptions, UnpackError, UnpackMetadata, UnpackOptions, Unpacker,
    dump, remove_tree, unpack, unpack_from,
};

fn dumped(path: &Path) -> Vec<u8> {
    let mut nar = Vec::new();
    let length = dump(path, &DumpOptions::default(), &mut nar).expect("it can be dumped");
    assert_eq!(length, nar.len() as u64);
    nar
}

fn with_threads(threads: usize) -> DumpOptions {
    let mut options = DumpOptions::default();
    options.threads = NonZeroUsize::new(threads).expect("not 0");
    options
}

/// A folder whose read-only contents can be removed.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempdir().expect("a folder"))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = remove_tree(self.0.path());
    }
}

/// Enough small files, big files and folders for many batches and more chunks than may wait.
fn mixed() -> Tree {
    let mut seed = 3;
    let mut bytes = |size: usize| {
        Tree::file(
            &(0..size)
                .map(|_| random(&mut seed) as u8)
                .collect::<Vec<_>>(),
        )
    };
    let mut folders = std::collections::BTreeMap::new();
    for folder in 0..40 {
        let mut entries = std::collections::BTreeMap::new();
        for file in 0..20 {
            entries.insert(format!("f{file}").into_bytes(), bytes(file * 97));
        }
        if folder % 10 == 3 {
            entries.insert(b"big".to_vec(), bytes(1_500_000));
        }
        folders.insert(format!("d{folder}").into_bytes(), Tree::Directory(entries));
    }
    Tree::Directory(folders)
}

#[test]
fn dump_is_the_encoders_archive() {
    for (name, tree) in [
        ("sample", sample()),
        (
            "file",
            Tree::File {
                executable: true,
                contents: b"x".into(),
            },
        ),
        ("empty file", Tree::file(b"")),
        ("link", Tree::Link(b"nowhere".into())),
        ("empty folder", Tree::directory([])),
        ("big file", Tree::file(&vec![1; 3 << 20])),
        ("block", Tree::file(&vec![2; 256 << 10])),
        ("mixed", mixed()),
    ] {
        let place = Place::new();
        let root = place.at("root");
        tree.make(&root);
        assert!(dumped(&root) == tree.nar(), "{name}");
    }
}

#[test]
fn any_number_of_threads_and_any_pace_give_the_same() {
    let place = Place::new();
    let root = place.at("root");
    let tree = mixed();
    tree.make(&root);
    let expected = tree.nar();
    for threads in [1, 2, 3, 8] {
        for pause in [0, 300, 3000] {
            let mut nar = Vec::new();
            let mut seed = threads as u64;
            for chunk in Dump::new(&root, &with_threads(threads)).expect("it is there") {
                nar.extend_from_slice(&chunk.expect("it can be read"));
                if pause > 0 {
                    sleep(Duration::from_micros(random(&mut seed) % pause));
                }
            }
            assert!(nar == expected, "{threads} threads, pause {pause}");
        }
    }
}

#[test]
fn chunks_outlive_their_dump() {
    let place = Place::new();
    mixed().make(&place.at("root"));
    let dump = Dump::new(&place.at("root"), &with_threads(2)).expect("it is there");
    let chunks: Vec<_> = dump.map(|chunk| chunk.expect("it can be read")).collect();
    assert!(chunks.iter().all(|chunk| !chunk.is_empty()));
    assert!(
        chunks
            .iter()
            .flat_map(|chunk| chunk.iter().copied())
            .eq(mixed().nar())
    );
}

#[test]
fn a_dump_dropped_early_stops_its_threads() {
    let place = Place::new();
    mixed().make(&place.at("root"));
    for taken in 0..6 {
        let mut dump = Dump::new(&place.at("root"), &with_threads(10)).expect("it is there");
        // No other test starts so many: its last thread tells whether the threads are gone.
        for _ in 0..taken {
            dump.next().expect("there is more").expect("it can be read");
        }
        drop(dump);
        let alive = fs::read_dir("/proc/self/task")
            .expect("Linux")
            .filter_map(Result::ok);
        let name =
            |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let alive = alive
            .map(name)
            .filter(|name| name.trim() == "nar-dump-8")
            .count();
        assert_eq!(alive, 0);
    }
}

#[test]
fn errors_name_the_file() {
    let place = Place::new();
    let root = place.at("root");
    Tree::directory([("a", Tree::file(b"a")), ("d", Tree::directory([]))]).make(&root);
    let fifo = root.join("d/fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).expect("a new fifo");
    assert!(
        fs::metadata(&fifo)
            .expect("it is there")
            .file_type()
            .is_fifo()
    );
    let error = dump(&root, &DumpOptions::default(), &mut Vec::new()).expect_err("a fifo");
    assert!(
        matches!(&error, DumpError::Unsupported { path, .. } if *path == fifo),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        format!(
            "{} is a fifo; only regular files, directories and symlinks can be archived",
            fifo.display()
        )
    );
    assert!(matches!(
        Dump::new(&fifo, &DumpOptions::default()),
        Err(DumpError::Unsupported { .. })
    ));
    assert!(matches!(
        Dump::new(&place.at("none"), &DumpOptions::default()),
        Err(DumpError::Io { .. })
    ));
}

#[test]
fn an_error_comes_after_what_stands_before_it_and_ends_the_dump() {
    let place = Place::new();
    let root = place.at("root");
    let tree = mixed();
    tree.make(&root);
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("d39/zz"), rustix::fs::Mode::RWXU)
        .expect("a new fifo");
    for threads in [1, 4] {
        let mut dump = Dump::new(&root, &with_threads(threads)).expect("it is there");
        let mut nar = Vec::new();
        let error = loop {
            match dump.next().expect("an error comes first") {
                Ok(chunk) => nar.extend_from_slice(&chunk),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, DumpError::Unsupported { .. }), "{error}");
        assert!(dump.next().is_none());
        assert!(tree.nar().starts_with(&nar));
    }
}

#[test]
fn depth_is_limited() {
    let place = Place::new();
    let mut path = place.at("root");
    for _ in 0..64 {
        path.push("d");
    }
    fs::create_dir_all(&path).expect("new folders");
    let error =
        dump(&place.at("root"), &DumpOptions::default(), &mut Vec::new()).expect_err("65 levels");
    assert!(
        matches!(&error, DumpError::TooDeep { path: deep } if *deep == path),
        "{error}"
    );
    fs::remove_dir(&path).expect("the last");
    dumped(&place.at("root"));
    // A file or a link is a node too: no decoder would take it.
    let leaf = path.with_file_name("f");
    fs::write(&leaf, "x").expect("a new file");
    let error = dump(&place.at("root"), &DumpOptions::default(), &mut Vec::new());
    let error = error.expect_err("65 nodes");
    assert!(
        matches!(&error, DumpError::TooDeep { path: deep } if *deep == leaf),
        "{error}"
    );
    fs::remove_file(&leaf).expect("there");
    std::os::unix::fs::symlink("x", &leaf).expect("a new link");
    dump(&place.at("root"), &DumpOptions::default(), &mut Vec::new()).expect_err("65 nodes");
}

#[test]
fn a_file_with_more_than_its_size_is_an_error() {
    let error = dump(
        Path::new("/proc/self/status"),
        &DumpOptions::default(),
        &mut Vec::new(),
    )
    .expect_err("size is 0");
    assert!(
        matches!(&error, DumpError::Changed { path } if path == Path::new("/proc/self/status")),
        "{error}"
    );
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let place = Place::new();
    let path = place.at("shrinks");
    let file = File::create(&path).expect("a new file");
    file.set_len(64 << 20).expect("a sparse file");
    let mut dump = Dump::new(&path, &with_threads(1)).expect("it is there");
    dump.next()
        .expect("a chunk")
        .expect("the first chunk can be read");
    file.set_len(100).expect("our file");
    let error = dump.find_map(Result::err).expect("it ended early");
    assert!(
        matches!(&error, DumpError::Changed { path: changed } if *changed == path),
        "{error}"
    );
}

#[test]
fn a_file_that_grows_while_it_is_read_is_an_error() {
    let place = Place::new();
    let path = place.at("grows");
    let mut file = File::create(&path).expect("a new file");
    file.set_len(64 << 20).expect("a sparse file");
    let mut dump = Dump::new(&path, &with_threads(1)).expect("it is there");
    dump.next()
        .expect("a chunk")
        .expect("the first chunk can be read");
    use std::io::Seek;
    file.seek(std::io::SeekFrom::End(0)).expect("our file");
    file.write_all(b"more").expect("our file");
    let error = dump
        .find_map(Result::err)
        .expect("it has more than it said");
    assert!(matches!(error, DumpError::Changed { .. }), "{error}");
}

#[test]
fn the_root_can_be_a_link_and_is_not_followed() {
    let place = Place::new();
    Tree::file(b"x").make(&place.at("file"));
    symlink("file", place.at("link")).expect("a new link");
    assert_eq!(dumped(&place.at("link")), Tree::Link(b"file".into()).nar());
    fs::create_dir(place.at("folder")).expect("a new folder");
    symlink("folder", place.at("to-folder")).expect("a new link");
    assert_eq!(
        dumped(&place.at("to-folder/")),
        Tree::Link(b"folder".into()).nar()
    );
}

#[test]
fn a_huge_directory_is_dumped_in_order() {
    let place = Place::new();
    let root = place.at("root");
    let names = (0..20_000_u64).map(|n| {
        (
            format!("{:x}", n.wrapping_mul(0x9e37_79b9)).into_bytes(),
            Tree::file(b""),
        )
    });
    let tree = Tree::Directory(names.collect());
    tree.make(&root);
    assert!(dumped(&root) == tree.nar());
}

#[test]
fn executable_is_what_the_owner_may_do() {
    let place = Place::new();
    for (mode, executable) in [
        (0o644, false),
        (0o655, false),
        (0o744, true),
        (0o100, true),
        (0o500, true),
    ] {
        let path = place.at(&format!("{mode:o}"));
        Tree::file(b"x").make(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our file");
        if fs::File::open(&path).is_err() {
            continue;
        }
        assert_eq!(
            dumped(&path),
            Tree::File {
                executable,
                contents: b"x".into()
            }
            .nar(),
            "{mode:o}"
        );
    }
}

fn each_below(root: &Path, check: &mut impl FnMut(&Path, fs::Metadata)) {
    let metadata = fs::symlink_metadata(root).expect("it is there");
    if metadata.is_dir() {
        for entry in fs::read_dir(root).expect("a folder") {
            each_below(&entry.expect("an entry").path(), check);
        }
    }
    check(root, metadata);
}

#[test]
fn canonical_metadata() {
    for (name, tree) in [
        ("sample", sample()),
        ("mixed", mixed()),
        ("file", Tree::file(b"x")),
        ("link", Tree::Link(b"x".into())),
    ] {
        let place = Place::new();
        let dest = place.at("dest");
        let nar = tree.nar();
        let length = unpack(&*nar, &dest, &UnpackOptions::default()).expect(name);
        assert_eq!(length, nar.len() as u64);
        assert!(dumped(&dest) == nar, "{name}");
        each_below(&dest, &mut |path, metadata| {
            assert_eq!(
                (metadata.mtime(), metadata.mtime_nsec()),
                (1, 0),
                "{}",
                path.display()
            );
            let mode = metadata.mode() & 0o7777;
            let expected = match metadata.file_type() {
                kind if kind.is_symlink() => return,
                kind if kind.is_dir() => 0o555,
                _ => {
                    if mode & 0o111 == 0 {
                        0o444
                    } else {
                        0o555
                    }
                }
            };
            assert_eq!(mode, expected, "{}", path.display());
        });
    }
}

#[test]
fn plain_metadata_and_any_number_of_threads() {
    for threads in [1, 2, 8] {
        let place = Place::new();
        let dest = place.at("dest");
        let nar = mixed().nar();
        let threads = NonZeroUsize::new(threads).expect("not 0");
        let mut options = UnpackOptions::default();
        options.metadata = UnpackMetadata::Plain;
        options.threads = threads;
        unpack(
            Short {
                inner: &*nar,
                seed: 1,
            },
            &dest,
            &options,
        )
        .expect("valid");
        assert!(dumped(&dest) == nar);
        let mtime = fs::metadata(&dest).expect("it is there").mtime();
        assert!(mtime > 1_000_000_000, "{mtime}");
        fs::write(dest.join("d0/new"), "").expect("folders are writable");
    }
}

#[test]
fn an_existing_destination_is_never_touched() {
    let place = Place::new();
    let nar = sample().nar();
    for tree in [
        Tree::file(b"mine"),
        Tree::directory([("a", Tree::file(b"mine"))]),
        Tree::Link(b"nowhere".into()),
    ] {
        let dest = place.at("dest");
        tree.make(&dest);
        let error = unpack(&*nar, &dest, &UnpackOptions::default()).expect_err("it exists");
        assert!(
            matches!(&error, UnpackError::Exists { path } if *path == dest),
            "{error}"
        );
        assert_eq!(dumped(&dest), tree.nar());
        remove_tree(&dest).expect("ours");
    }
    let error = unpack(
        &*nar,
        &place.at("no/such/parent"),
        &UnpackOptions::default(),
    )
    .expect_err("no parent");
    assert!(matches!(error, UnpackError::Io { .. }), "{error}");
}

#[test]
fn a_failed_unpack_leaves_nothing() {
    let place = Place::new();
    let mut nar = mixed().nar();
    let last = nar.len() - 10;
    nar[last] ^= 1;
    let dest = place.at("dest");
    let error =
        unpack(&*nar, &dest, &UnpackOptions::default()).expect_err("the last word is damaged");
    assert!(matches!(error, UnpackError::Nar(_)), "{error}");
    assert!(fs::symlink_metadata(&dest).is_err());
}

#[test]
fn unpack_from_leaves_what_follows() {
    let place = Place::new();
    let mut nar = sample().nar();
    nar.extend_from_slice(b"behind");
    let mut rest = nar.as_slice();
    unpack_from(&mut rest, &place.at("dest"), &UnpackOptions::default()).expect("valid");
    assert_eq!(rest, b"behind");
}

#[test]
fn the_push_form() {
    let place = Place::new();
    let nar = sample().nar();
    let mut unpacker =
        Unpacker::new(&place.at("dest"), &UnpackOptions::default()).expect("it is free");
    for piece in nar.chunks(13) {
        unpacker.feed(piece).expect("valid");
    }
    assert_eq!(unpacker.finish().expect("complete"), nar.len() as u64);
    assert!(dumped(&place.at("dest")) == nar);

    let mut unpacker =
        Unpacker::new(&place.at("more"), &UnpackOptions::default()).expect("it is free");
    unpacker.feed(&nar).expect("valid");
    assert!(matches!(unpacker.feed(b"x"), Err(UnpackError::Nar(_))));
    assert!(matches!(unpacker.feed(b"x"), Err(UnpackError::Failed)));
    unpacker.discard();
    assert!(!place.at("more").exists());

    let mut unpacker =
        Unpacker::new(&place.at("half"), &UnpackOptions::default()).expect("it is free");
    unpacker.feed(&nar[..nar.len() / 2]).expect("so far");
    drop(unpacker);
    assert!(place.at("half").exists());
}

#[test]
fn many_small_folders_need_few_descriptors() {
    let place = Place::new();
    let chain = |leaf: usize| {
        let mut tree = Tree::directory([("f", Tree::file(&[b'x'; 20][..leaf % 20]))]);
        for _ in 0..50 {
            tree = Tree::directory([("d", tree), ("e", Tree::file(b"e"))]);
        }
        tree
    };
    let tree = Tree::Directory(
        (0..60)
            .map(|n| (format!("chain{n:02}").into_bytes(), chain(n)))
            .collect(),
    );
    let dest = place.at("dest");
    let nar = tree.nar();
    let most = std::sync::atomic::AtomicUsize::new(0);
    struct Watch<'a>(&'a [u8], &'a std::sync::atomic::AtomicUsize);
    impl std::io::Read for Watch<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            self.1.fetch_max(open, std::sync::atomic::Ordering::Relaxed);
            let most = into.len().min(5000);
            self.0.read(&mut into[..most])
        }
    }
    unpack(Watch(&nar, &most), &dest, &UnpackOptions::default()).expect("valid");
    // Other tests of this process have files open too.
    let most = most.into_inner();
    assert!(most < 900, "{most} descriptors were open");
    assert!(dumped(&dest) == nar);
}

#[test]
fn remove_tree_does_not_follow_links() {
    let place = Place::new();
    Tree::directory([("kept", Tree::file(b"x"))]).make(&place.at("outside"));
    Tree::directory([
        ("link", Tree::Link(b"../outside".into())),
        ("d", Tree::directory([("f", Tree::file(b""))])),
    ])
    .make(&place.at("root"));
    fs::set_permissions(place.at("root/d"), fs::Permissions::from_mode(0o555)).expect("ours");
    fs::set_permissions(place.at("root"), fs::Permissions::from_mode(0o555)).expect("ours");
    remove_tree(&place.at("root")).expect("ours");
    assert!(!place.at("root").exists());
    assert!(place.at("outside/kept").exists());
    symlink("outside", place.at("link")).expect("a new link");
    remove_tree(&place.at("link/")).expect("ours");
    assert!(place.at("outside/kept").exists());
    assert_eq!(
        remove_tree(&place.at("none"))
            .expect_err("nothing there")
            .kind(),
        std::io::ErrorKind::NotFound
    );
}

const HACK: CaseHack = CaseHack::On;

#[test]
fn case_hack_both_ways() {
    let place = Place::new();
    let leaf = |text: &str| Tree::file(text.as_bytes());
    let tree = Tree::directory([
        ("FOO", leaf("1")),
        ("Foo", Tree::directory([("A", leaf("a")), ("a", leaf("b"))])),
        ("bar", leaf("2")),
        ("foo", leaf("3")),
    ]);
    let dest = place.at("dest");
    let mut options = UnpackOptions::default();
    options.case_hack = HACK;
    unpack(&*tree.nar(), &dest, &options).expect("valid");
    for name in [
        "FOO",
        "Foo~nix~case~hack~1/A",
        "Foo~nix~case~hack~1/a~nix~case~hack~1",
        "foo~nix~case~hack~2",
        "bar",
    ] {
        assert!(dest.join(name).exists(), "{name}");
    }
    let mut nar = Vec::new();
    let mut options = DumpOptions::default();
    options.case_hack = HACK;
    dump(&dest, &options, &mut nar).expect("it can be dumped");
    assert!(nar == tree.nar());
    assert!(dumped(&dest) != nar);
}

#[test]
fn case_hack_collisions_are_errors() {
    let place = Place::new();
    let made = "a~nix~case~hack~1";
    let mut options = UnpackOptions::default();
    options.case_hack = HACK;
    for names in [["A", "a", made], ["A", "A~nix~case~hack~1", "a"]] {
        let tree = Tree::Directory(names.map(|name| (name.into(), Tree::file(b""))).into());
        let dest = place.at("dest");
        let error = unpack(&*tree.nar(), &dest, &options).expect_err("names collide");
        assert!(
            matches!(error, UnpackError::CaseCollision { .. }),
            "{error}"
        );
        assert!(!dest.exists());
    }
    let mut options = DumpOptions::default();
    options.case_hack = HACK;
    Tree::directory([("a", Tree::file(b"")), (made, Tree::file(b""))]).make(&place.at("twins"));
    let error = dump(&place.at("twins"), &options, &mut Vec::new()).expect_err("names collide");
    assert!(matches!(error, DumpError::CaseCollision { .. }), "{error}");
    Tree::directory([("~nix~case~hack~1", Tree::file(b""))]).make(&place.at("nameless"));
    let error =
        dump(&place.at("nameless"), &options, &mut Vec::new()).expect_err("nothing is left");
    assert!(matches!(error, DumpError::EmptyName { .. }), "{error}");
}

#[test]
fn names_are_bytes() {
    let place = Place::new();
    let tree = Tree::Directory(
        [
            (b"\xff\xfe\n".to_vec(), Tree::Link(b"\x80".into())),
            (b"ok".to_vec(), Tree::file(b"")),
        ]
        .into(),
    );
    unpack(&*tree.nar(), &place.at("dest"), &UnpackOptions::default()).expect("valid");
    assert!(fs::symlink_metadata(place.at("dest").join(OsStr::from_bytes(b"\xff\xfe\n"))).is_ok());
    assert!(dumped(&place.at("dest")) == tree.nar());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn unpack_and_dump_give_the_archive_back(tree in tree(), hack: bool, seed: u64) {
        let place = Place::new();
        let case_hack = if hack { CaseHack::On } else { CaseHack::Off };
        let nar = tree.nar();
        let dest = place.at("dest");
        let mut unpacking = UnpackOptions::default();
        unpacking.case_hack = case_hack;
        unpack(Short { inner: &*nar, seed }, &dest, &unpacking).expect("valid");
        let (mut dumping, mut again) = (DumpOptions::default(), Vec::new());
        dumping.case_hack = case_hack;
        dump(&dest, &dumping, &mut again).expect("it can be dumped");
        prop_assert!(again == nar);
    }
}
