//! Trees as values, so that tests can make them as archives and on disk.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use tk_nar::{EncodeError, Encoder};

/// A file system tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    Directory(BTreeMap<Vec<u8>, Tree>),
    File { executable: bool, contents: Vec<u8> },
    Link(Vec<u8>),
}

impl Tree {
    pub fn file(contents: &[u8]) -> Tree {
        Tree::File {
            executable: false,
            contents: contents.to_vec(),
        }
    }

    pub fn directory<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
        Tree::Directory(entries.map(|(name, tree)| (name.into(), tree)).into())
    }

    pub fn nar(&self) -> Vec<u8> {
        let mut nar = Encoder::new(Vec::new());
        self.encode(&mut nar).expect("a tree is valid");
        nar.finish().expect("a tree is complete")
    }

    fn encode(&self, nar: &mut Encoder<Vec<u8>>) -> Result<(), EncodeError> {
        match self {
            Tree::Directory(entries) => {
                nar.directory()?;
                for (name, tree) in entries {
                    nar.entry(name)?;
                    tree.encode(nar)?;
                }
                nar.leave()
            }
            Tree::File {
                executable,
                contents,
            } => nar.file(*executable, contents),
            Tree::Link(target) => nar.symlink(target),
        }
    }

    pub fn make(&self, path: &Path) {
        match self {
            Tree::Directory(entries) => {
                fs::create_dir(path).expect("a new directory");
                for (name, tree) in entries {
                    tree.make(&path.join(OsStr::from_bytes(name)));
                }
            }
            Tree::File {
                executable,
                contents,
            } => {
                fs::write(path, contents).expect("a new file");
                let mode = if *executable { 0o744 } else { 0o644 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our file");
            }
            Tree::Link(target) => symlink(OsStr::from_bytes(target), path).expect("a new link"),
        }
    }
}

/// A tree with many of the awkward things: all bytes in names, empty files, sizes around the multiples of 8.
pub fn sample() -> Tree {
    let sizes = [0, 1, 7, 8, 9, 4095, 70_000];
    let mut entries: BTreeMap<Vec<u8>, Tree> = sizes
        .iter()
        .map(|&size| {
            let contents = (0..size).map(|i| (i % 251) as u8).collect();
            let executable = size % 2 == 1;
            (
                format!("file-{size}").into_bytes(),
                Tree::File {
                    executable,
                    contents,
                },
            )
        })
        .collect();
    entries.insert(b"not \xff utf-8 \x01\n".to_vec(), Tree::file(b"x"));
    entries.insert(vec![b'n'; 255], Tree::Link(vec![b't'; 4095]));
    entries.insert(
        b"dir.d".to_vec(),
        Tree::directory([("empty", Tree::directory([]))]),
    );
    entries.insert(
        b"dir".to_vec(),
        Tree::directory([("a", Tree::file(b"a")), ("b", Tree::Link(b"../x".into()))]),
    );
    Tree::Directory(entries)
}

pub fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..12).prop_map(|mut name| {
        name.iter_mut()
            .filter(|byte| matches!(byte, b'/' | 0))
            .for_each(|byte| *byte = b'x');
        if name == b"." || name == b".." {
            b"dot".to_vec()
        } else {
            name
        }
    })
}

pub fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (any::<bool>(), vec(any::<u8>(), 0..300)).prop_map(|(executable, contents)| Tree::File {
            executable,
            contents
        }),
        name().prop_map(Tree::Link),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        btree_map(name(), inner, 0..8).prop_map(Tree::Directory)
    })
}

/// Gives between 1 and 7 bytes a read, and now and then an interruption.
pub struct Short<R> {
    pub inner: R,
    pub seed: u64,
}

impl<R: Read> Read for Short<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = random(&mut self.seed) as usize % 8;
        if most == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = most.min(into.len());
        self.inner.read(&mut into[..most])
    }
}

/// The next number of a sequence that looks random enough for cutting input into pieces.
pub fn random(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}
