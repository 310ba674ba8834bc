//! Walks a tree in archive order and cuts it into batches that threads can encode independently.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use super::CaseHack;
use super::descriptors::{descriptors, dumped_directories};
use super::error::DumpError;
use super::names::Names;
use crate::grammar::{self, MAX_DEPTH, WordSink};

/// Files and links of one batch.
const MAX_ENTRIES: usize = 128;
/// Raw bytes of one segment; well below the size of a block.
const MAX_RAW: usize = 4096;

/// An open directory and its sorted names.
#[derive(Debug)]
pub(super) struct WalkedDirectory {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) names: Names,
}

impl WalkedDirectory {
    pub(super) fn path_of(&self, index: usize) -> PathBuf {
        self.path
            .join(OsStr::from_bytes(self.names.on_disk(index).to_bytes()))
    }
}

/// A run of an archive that one thread encodes.
#[derive(Debug, Default)]
pub(super) struct EncodeBatch {
    pub(super) segments: Vec<Segment>,
    entries: usize,
    directories: usize,
}

#[derive(Debug)]
pub(super) enum Segment {
    /// Bytes of the archive as they are.
    Raw(Vec<u8>),
    /// Entries of a directory that are files or symlinks.
    Entries(Arc<WalkedDirectory>, Range<usize>),
    /// The root, which is a file or a symlink.
    Root(PathBuf, FileType),
}

impl EncodeBatch {
    fn is_full(&self, directories: usize) -> bool {
        self.entries >= MAX_ENTRIES || self.directories >= directories
    }

    fn raw(&mut self) -> &mut Vec<u8> {
        if !matches!(self.segments.last(), Some(Segment::Raw(raw)) if raw.len() < MAX_RAW / 2) {
            self.segments.push(Segment::Raw(Vec::new()));
        }
        match self.segments.last_mut() {
            Some(Segment::Raw(raw)) => raw,
            _ => unreachable!("it was pushed above"),
        }
    }
}

/// The walk itself: the open directories above the next entry.
#[derive(Debug)]
pub(super) struct TreeWalk {
    root: Option<(PathBuf, FileType)>,
    levels: Vec<(Arc<WalkedDirectory>, usize)>,
    hack: CaseHack,
    /// Open directories a batch may refer to. A dump holds at most 64 (the depth) + so many × threads of them, and a
    /// file for each thread.
    directories: usize,
}

impl TreeWalk {
    /// Looks at the root; a symlink is not followed.
    pub(super) fn new(path: &Path, hack: CaseHack) -> Result<Self, DumpError> {
        // Without a trailing slash, which would follow a symlink.
        let path: PathBuf = path.components().collect();
        let stat = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| DumpError::io("look at", path.clone(), error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile | FileType::Symlink | FileType::Directory => {}
            _ => {
                return Err(DumpError::Unsupported {
                    path,
                    kind: kind_name(kind),
                });
            }
        }
        Ok(Self {
            root: Some((path, kind)),
            levels: Vec::new(),
            hack,
            directories: dumped_directories(descriptors()),
        })
    }

    /// The next batch; `None` at the end of the tree. After an error the walk is over.
    pub(super) fn next_batch(&mut self) -> Result<Option<EncodeBatch>, DumpError> {
        let mut batch = EncodeBatch::default();
        if let Some((path, kind)) = self.root.take() {
            self.start(path, kind, &mut batch)?;
        }
        while !batch.is_full(self.directories) && !self.levels.is_empty() {
            self.advance(&mut batch)?;
        }
        Ok(if batch.segments.is_empty() {
            None
        } else {
            Some(batch)
        })
    }

    fn start(
        &mut self,
        path: PathBuf,
        kind: FileType,
        batch: &mut EncodeBatch,
    ) -> Result<(), DumpError> {
        batch.raw().put(&grammar::MAGIC);
        batch.raw().put(&grammar::NODE_BEGIN);
        if kind != FileType::Directory {
            batch.segments.push(Segment::Root(path, kind));
            batch.entries += 1;
            return Ok(());
        }
        batch.raw().put(&grammar::DIRECTORY);
        let root = open_directory(CWD, &path, path.clone(), self.hack)?;
        self.levels.push((Arc::new(root), 0));
        Ok(())
    }

    fn advance(&mut self, batch: &mut EncodeBatch) -> Result<(), DumpError> {
        let depth = self.levels.len();
        let Some((directory, next)) = self.levels.last_mut() else {
            return Ok(());
        };
        let names = &directory.names;
        if *next == names.len() {
            self.levels.pop();
            batch.raw().put(if self.levels.is_empty() {
                &grammar::CLOSE
            } else {
                &grammar::CLOSE_BOTH
            });
            return Ok(());
        }
        // Whatever it is: a file is a node as well.
        if depth >= MAX_DEPTH {
            let path = directory.path_of(*next);
            return Err(DumpError::TooDeep { path });
        }
        let most = names.len().min(*next + MAX_ENTRIES - batch.entries);
        let leaf = |index: &usize| {
            matches!(
                names.kind(*index),
                FileType::RegularFile | FileType::Symlink
            )
        };
        let run = *next
            ..(*next..most)
                .take_while(leaf)
                .last()
                .map_or(*next, |last| last + 1);
        if !run.is_empty() {
            batch.entries += run.len();
            batch.directories += 1;
            *next = run.end;
            batch
                .segments
                .push(Segment::Entries(directory.clone(), run));
            return Ok(());
        }
        let index = *next;
        *next += 1;
        let directory = directory.clone();
        self.enter(&directory, index, batch)
    }

    fn enter(
        &mut self,
        parent: &WalkedDirectory,
        index: usize,
        batch: &mut EncodeBatch,
    ) -> Result<(), DumpError> {
        let path = parent.path_of(index);
        if parent.names.kind(index) != FileType::Directory {
            return Err(DumpError::Unsupported {
                path,
                kind: kind_name(parent.names.kind(index)),
            });
        }
        batch.raw().put_entry(parent.names.in_archive(index));
        batch.raw().put(&grammar::DIRECTORY);
        let child = open_directory(&parent.fd, parent.names.on_disk(index), path, self.hack)?;
        self.levels.push((Arc::new(child), 0));
        Ok(())
    }
}

fn open_directory(
    parent: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg,
    path: PathBuf,
    hack: CaseHack,
) -> Result<WalkedDirectory, DumpError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(error) => return Err(DumpError::io("open", path, error)),
    };
    let mut names = Names::read(&fd).map_err(|source| DumpError::Io {
        doing: "list",
        path: path.clone(),
        source,
    })?;
    if let Err((first, second)) = names.sort(hack) {
        return Err(DumpError::CaseCollision {
            path,
            first,
            second,
        });
    }
    for index in 0..names.len() {
        if names.in_archive(index).is_empty() {
            return Err(DumpError::EmptyName {
                path: path.join(OsStr::from_bytes(names.on_disk(index).to_bytes())),
            });
        }
        // Some file systems do not tell the type while listing.
        if names.kind(index) == FileType::Unknown {
            let stat = rustix::fs::statat(&fd, names.on_disk(index), AtFlags::SYMLINK_NOFOLLOW);
            let path = || path.join(OsStr::from_bytes(names.on_disk(index).to_bytes()));
            let stat = stat.map_err(|error| DumpError::io("look at", path(), error))?;
            names.set_kind(index, FileType::from_raw_mode(stat.st_mode));
        }
    }
    Ok(WalkedDirectory { fd, path, names })
}

pub(super) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of unknown type",
    }
}
