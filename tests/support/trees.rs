//! Trees on disk: packed, and looked at.
#![allow(dead_code, reason = "each test uses its part")]

use rustix::fs::statvfs;
use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;
use tk_nar::fs::{DumpOptions, dump, remove_tree};

/// By path, the mode and either the contents or the target.
pub type Snapshot = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// The NAR of the tree at `path`.
pub fn packed(path: &Path) -> Vec<u8> {
    let mut nar = Vec::new();
    dump(path, &DumpOptions::default(), &mut nar).expect("readable");
    nar
}

/// What the tree at `root` is; the root itself has the empty path.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    visit(root, root, &mut found);
    found
}

fn visit(root: &Path, path: &Path, found: &mut Snapshot) {
    let meta = path.symlink_metadata().expect("readable");
    let value = match () {
        () if meta.is_symlink() => fs::read_link(path)
            .expect("a link")
            .into_os_string()
            .into_encoded_bytes(),
        () if meta.is_dir() => Vec::new(),
        () => fs::read(path).expect("readable"),
    };
    let name = path.strip_prefix(root).expect("inside").to_owned();
    found.insert(name, (meta.mode(), value));
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("readable").flatten() {
            visit(root, &entry.path(), found);
        }
    }
}

/// A temporary folder for many files, and for stores, whose folders nobody may write to. It lies in
/// memory where there is room: on some disks removing a file takes milliseconds.
pub struct Scratch(Option<TempDir>);

impl Scratch {
    /// An empty one.
    pub fn new() -> Scratch {
        let memory = Path::new(MEMORY);
        let roomy = statvfs(memory).is_ok_and(|fs| fs.f_bavail * fs.f_frsize >= ROOM);
        let folder = if roomy && env::var_os("TMPDIR").is_none() {
            TempDir::new_in(memory)
        } else {
            TempDir::new()
        };
        Scratch(Some(folder.expect("a temporary folder")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("there until dropped").path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take() {
            let _ = remove_tree(&folder.keep());
        }
    }
}

const MEMORY: &str = "/dev/shm";
/// Bytes that must be free there: several times what any test needs.
const ROOM: u64 = 1 << 30;
