//! Turns the events of an archive into files: small ones in batches for the pool, others at once.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::CWD;

use super::descriptors::{descriptors, unpacked_directories};
use super::error::UnpackError;
use super::make::{MadeDirectory, Maker, write_all};
use super::options::UnpackOptions;
use super::pool::{MakeBatch, MakePool};
use super::{CASE_HACK_SUFFIX, CaseHack};
use crate::decode::Event;

/// A tree in the making.
#[derive(Debug)]
pub(super) struct UnpackTree {
    destination: PathBuf,
    created: bool,
    hack: CaseHack,
    maker: Arc<Maker>,
    pool: MakePool,
    batch: MakeBatch,
    levels: Vec<UnpackLevel>,
    /// The name of the next node, as it will be on disk.
    name: CString,
    file: Option<File>,
    /// Directories that may be incomplete before everything waits for the pool.
    most_open: usize,
}

#[derive(Debug)]
struct UnpackLevel {
    directory: Arc<MadeDirectory>,
    /// With the case hack: names so far in lower case, and how often; `None` for names that the hack made.
    seen: HashMap<Vec<u8>, Option<u32>>,
}

#[derive(Debug)]
enum File {
    /// Contents go to the batch.
    Small {
        name: Range<usize>,
        executable: bool,
        contents: usize,
    },
    /// Contents go to disk as they come.
    Large { fd: OwnedFd, executable: bool },
}

impl UnpackTree {
    pub(super) fn new(destination: PathBuf, options: &UnpackOptions) -> Self {
        let maker = Arc::new(Maker::new(options.metadata));
        Self {
            destination,
            created: false,
            hack: options.case_hack,
            pool: MakePool::new(maker.clone(), options.threads),
            maker,
            batch: MakeBatch::default(),
            levels: Vec::new(),
            name: CString::default(),
            file: None,
            most_open: unpacked_directories(descriptors()),
        }
    }

    /// Whether something was made at the destination.
    pub(super) fn created(&self) -> bool {
        self.created
    }

    pub(super) fn take(&mut self, event: Event<'_>) -> Result<(), UnpackError> {
        match event {
            Event::Directory => self.directory(),
            Event::Entry { name } => self.entry(name),
            Event::LeaveDirectory => match self.levels.pop() {
                Some(level) => self.maker.release(level.directory),
                None => Ok(()),
            },
            Event::Regular {
                executable, size, ..
            } => self.regular(executable, size),
            Event::Contents(piece) => self.contents(piece),
            Event::EndRegular => self.end_regular(),
            Event::Symlink { target } => self.symlink(target),
            Event::End => Ok(()),
        }
    }

    /// The error of a thread, if one failed meanwhile.
    pub(super) fn check(&self) -> Result<(), UnpackError> {
        self.pool.check()
    }

    /// Waits for the threads.
    pub(super) fn finish(&mut self) -> Result<(), UnpackError> {
        self.pool.finish(std::mem::take(&mut self.batch))
    }

    fn directory(&mut self) -> Result<(), UnpackError> {
        if self.batch.len() >= ENOUGH_ITEMS || self.batch.directories() >= MAX_DIRECTORIES {
            self.flush()?;
        }
        if self.maker.open_directories() >= self.most_open {
            self.flush()?;
            self.pool.drain()?;
        }
        let directory = match self.levels.last() {
            None => {
                let root = self.maker.root(&self.destination)?;
                self.created = true;
                root
            }
            Some(level) => self.maker.directory(&level.directory, &self.name)?,
        };
        self.levels.push(UnpackLevel {
            directory,
            seen: HashMap::new(),
        });
        Ok(())
    }

    fn entry(&mut self, name: &[u8]) -> Result<(), UnpackError> {
        let mut name = name.to_vec();
        if self.hack == CaseHack::On
            && let Some(level) = self.levels.last_mut()
        {
            name = level.hacked(name)?;
        }
        // The decoder lets no NUL through.
        self.name = CString::new(name).unwrap_or_default();
        Ok(())
    }

    fn regular(&mut self, executable: bool, size: u64) -> Result<(), UnpackError> {
        let directory = self.levels.last().map(|level| &level.directory);
        if directory.is_some() && size <= SMALL {
            if self.batch.arena.len() >= ENOUGH_BYTES || self.batch.len() >= MAX_ITEMS {
                self.flush()?;
            }
            let name = self.batch.put_text(self.name.as_bytes());
            self.file = Some(File::Small {
                contents: name.end,
                name,
                executable,
            });
            return Ok(());
        }
        let fd = match directory {
            Some(directory) => {
                self.maker
                    .begin_file(Some(directory), self.name.as_c_str(), executable)
            }
            None => self
                .maker
                .begin_file(None, self.destination.as_path(), executable),
        };
        let fd = fd.map_err(|fault| self.fault(fault))?;
        self.created = true;
        self.file = Some(File::Large { fd, executable });
        Ok(())
    }

    fn contents(&mut self, piece: &[u8]) -> Result<(), UnpackError> {
        match &self.file {
            Some(File::Large { fd, .. }) => write_all(fd, piece).map_err(|fault| self.fault(fault)),
            Some(File::Small { .. }) => {
                self.batch.arena.extend_from_slice(piece);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn end_regular(&mut self) -> Result<(), UnpackError> {
        match (self.file.take(), self.levels.last()) {
            (Some(File::Large { fd, executable }), _) => self
                .maker
                .complete(&fd, executable)
                .map_err(|fault| self.fault(fault)),
            (
                Some(File::Small {
                    name,
                    executable,
                    contents,
                }),
                Some(level),
            ) => {
                self.batch
                    .file(&level.directory, name, executable, contents);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn symlink(&mut self, target: &[u8]) -> Result<(), UnpackError> {
        let Some(level) = self.levels.last() else {
            let target = CString::new(target).unwrap_or_default();
            let made = self.maker.link_at(CWD, self.destination.as_path(), &target);
            made.map_err(|error| self.fault(("create the link", error)))?;
            self.created = true;
            return Ok(());
        };
        let name = self.batch.put_text(self.name.as_bytes());
        let target = self.batch.put_text(target);
        self.batch.link(&level.directory, name, target);
        if self.batch.len() >= MAX_ITEMS {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), UnpackError> {
        if !self.batch.is_empty() {
            self.batch = self.pool.submit(std::mem::take(&mut self.batch))?;
        }
        Ok(())
    }

    fn fault(&self, (doing, error): (&'static str, rustix::io::Errno)) -> UnpackError {
        let path = match self.levels.last() {
            Some(level) => level.directory.path_of(&self.name),
            None => self.destination.clone(),
        };
        UnpackError::io(doing, path, error)
    }
}

impl UnpackLevel {
    /// The name to use on a file system that ignores case.
    fn hacked(&mut self, mut name: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
        let collision = |level: &UnpackLevel, name: &[u8]| UnpackError::CaseCollision {
            path: level.directory.path().join(OsStr::from_bytes(name)),
        };
        let number = match self.seen.get_mut(&name.to_ascii_lowercase()) {
            None => {
                self.seen.insert(name.to_ascii_lowercase(), Some(0));
                return Ok(name);
            }
            Some(Some(count)) => {
                *count += 1;
                *count
            }
            Some(None) => return Err(collision(self, &name)),
        };
        name.extend_from_slice(CASE_HACK_SUFFIX);
        name.extend_from_slice(number.to_string().as_bytes());
        match self.seen.insert(name.to_ascii_lowercase(), None) {
            None => Ok(name),
            Some(_) => Err(collision(self, &name)),
        }
    }
}

/// Files up to this size are made by the pool.
const SMALL: u64 = 256 * 1024;
/// A batch with this much in its arena is handed over before the next file.
const ENOUGH_BYTES: usize = 1024 * 1024;
/// A batch with so many items is handed over when the directory changes, so that threads work in different ones.
const ENOUGH_ITEMS: usize = 32;
const MAX_ITEMS: usize = 1024;
const MAX_DIRECTORIES: usize = 16;
