//! NARs of trees: ours against `nix-store --dump`, `--restore` and `nix hash path`.

use crate::support::{
    Rig, VERSIONS, quick, rig, skip, test_name,
    trees::{packed, snapshot},
};
use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Stdio,
};
use tempfile::TempDir;
use tk_nar::fs::{DumpOptions, UnpackMetadata, UnpackOptions, dump, unpack};
use tk_path::{Algorithm, Hash, Hasher};

#[test]
fn dump_and_hash_are_those_of_nix() {
    let temp = TempDir::new().expect("a folder");
    for path in odd_trees(temp.path()) {
        let nar = packed(&path);
        for rig in VERSIONS.iter().filter_map(|version| rig(version)) {
            let theirs = rig.run("nix-store", ["--dump", text(&path)]);
            assert!(theirs == nar, "{} of {}", path.display(), rig.version);
            let hash = rig.run(
                "nix",
                ["hash", "path", "--type", "sha256", "--base32", text(&path)],
            );
            let ours = Hash::digest(Algorithm::Sha256, &nar).to_string();
            let theirs = String::from_utf8(hash).expect("a hash");
            assert_eq!(ours, format!("sha256:{}", theirs.trim()), "{}", rig.version);
        }
    }
}

#[test]
fn dump_of_a_real_tree_is_that_of_nix() {
    let tree = Path::new("/usr/share");
    if quick() || !tree.is_dir() {
        return skip(&test_name(), "takes /usr/share, and time");
    }
    let Some(rig) = rig("2.34") else { return };
    let mut ours = Hasher::new(Algorithm::Sha256);
    let length = dump(tree, &DumpOptions::default(), &mut ours).expect("readable");
    let mut child = rig.command("nix-store");
    let mut child = child
        .arg("--dump")
        .arg(tree)
        .stdout(Stdio::piped())
        .spawn()
        .expect("nix starts");
    let mut theirs = Hasher::new(Algorithm::Sha256);
    let copied = io::copy(child.stdout.as_mut().expect("a pipe"), &mut theirs).expect("readable");
    assert!(child.wait().expect("waited for").success());
    assert_eq!((length, ours.finish()), (copied, theirs.finish()));
}

#[test]
fn unpack_is_the_restore_of_nix() {
    let temp = TempDir::new().expect("a folder");
    for (i, path) in odd_trees(temp.path()).into_iter().enumerate() {
        let nar = packed(&path);
        let file = temp.path().join(format!("{i}.nar"));
        fs::write(&file, &nar).expect("writable");
        let ours = temp.path().join(format!("{i}.ours"));
        let mut options = UnpackOptions::default();
        options.metadata = UnpackMetadata::Plain;
        unpack(&nar[..], &ours, &options).expect("unpacked");
        for rig in VERSIONS.iter().filter_map(|version| rig(version)) {
            let theirs = temp.path().join(format!("{i}.{}", rig.version));
            restore(&rig, &file, &theirs);
            assert_eq!(
                snapshot(&ours),
                snapshot(&theirs),
                "{} of {}",
                path.display(),
                rig.version
            );
        }
    }
}

fn restore(rig: &Rig, nar: &Path, dest: &Path) {
    let mut command = rig.command("nix-store");
    command
        .arg("--restore")
        .arg(dest)
        .stdin(File::open(nar).expect("readable"));
    assert!(command.status().expect("nix starts").success());
}

/// A file, a program, a link, an empty folder, and a tree of odd names and sizes.
fn odd_trees(temp: &Path) -> Vec<PathBuf> {
    let write = |path: &Path, contents: &[u8], mode: u32| {
        fs::write(path, contents).expect("writable");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("owned");
    };
    let [file, program, link, empty, deep] =
        ["file", "program", "link", "empty", "tree"].map(|name| temp.join(name));
    write(&file, b"text\n", 0o644);
    write(&program, b"#!/bin/sh\n", 0o700);
    symlink("../no where/\u{e9}", &link).expect("writable");
    fs::create_dir(&empty).expect("writable");
    fs::create_dir_all(deep.join("a/b/c/d/e")).expect("writable");
    fs::create_dir_all(deep.join("a.b")).expect("writable");
    for (i, size) in [
        0usize, 1, 7, 8, 9, 4095, 4096, 65_535, 65_536, 65_537, 3_000_000,
    ]
    .into_iter()
    .enumerate()
    {
        let mode = if i % 2 == 0 { 0o644 } else { 0o755 };
        let contents: Vec<u8> = (0..size).map(|n| (n * 31 / 7) as u8).collect();
        write(&deep.join(format!("a/size {size}")), &contents, mode);
    }
    // Bytes decide the order, and names need not be UTF-8.
    for name in [
        &b"Z"[..],
        b"a-",
        b"a0",
        b"\xff\xfe",
        b"~",
        b" ",
        b"\\n\n",
        "ä".as_bytes(),
    ] {
        write(&deep.join(OsStr::from_bytes(name)), name, 0o600);
    }
    write(&deep.join("x".repeat(255)), b"", 0o654);
    symlink("/", deep.join("a/b/root")).expect("writable");
    vec![file, program, link, empty, deep]
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
