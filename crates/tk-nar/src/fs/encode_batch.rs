//! Encodes one batch into blocks, stopping wherever a block is full.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use super::block::{BLOCK, Block};
use super::error::DumpError;
use super::walk::{EncodeBatch, Segment, kind_name};
use crate::grammar::{self, MAX_TARGET, WordSink};

/// Room that is left before an entry begins: more than all words around a file or of a whole symlink.
const HEADROOM: usize = 8 * 1024;
/// Room for what follows a file's contents.
const TAIL: usize = 8 + 32;
/// A file up to this size is not torn over two blocks: it costs one read.
const WHOLE: usize = 32 * 1024;
/// What is hashed, compressed or passed from one core to another comes in pieces of this size: that is a fifth faster
/// than whole blocks.
pub(super) const PIECE: usize = 64 * 1024;
/// A file with so much left to read is large, in bytes.
const LARGE: u64 = 1024 * 1024;

/// A batch on its way into blocks.
#[derive(Debug)]
pub(super) struct BatchEncoder {
    batch: EncodeBatch,
    segment: usize,
    /// How many entries of the segment are done.
    done: usize,
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    fd: OwnedFd,
    executable: bool,
    started: bool,
    size: u64,
    left: u64,
    /// Whether a read asked for more than `left` and got no more, which proves that the file did not grow.
    ended: bool,
}

impl BatchEncoder {
    pub(super) fn new(batch: EncodeBatch) -> Self {
        Self {
            batch,
            segment: 0,
            done: 0,
            open: None,
        }
    }

    /// Fills `block` up; true once the batch is complete.
    /// Of a file larger than `piece` no more than that goes into one block.
    pub(super) fn fill(&mut self, block: &mut Block, piece: usize) -> Result<bool, DumpError> {
        loop {
            if let Some(file) = &mut self.open {
                match file.copy(block, piece) {
                    Ok(true) => {}
                    Ok(false) => return Ok(false),
                    Err(fault) => return Err(fault.of(self.path())),
                }
                self.open = None;
                self.close_entry(block);
            }
            if block.room() < HEADROOM {
                return Ok(false);
            }
            match self.batch.segments.get(self.segment) {
                None => return Ok(true),
                Some(Segment::Raw(raw)) => {
                    block.put(raw);
                    self.segment += 1;
                }
                Some(Segment::Entries(_, run)) if run.start + self.done == run.end => {
                    // Dropping the segment can close its directory.
                    self.batch.segments[self.segment] = Segment::Raw(Vec::new());
                    self.segment += 1;
                    self.done = 0;
                }
                Some(Segment::Root(..)) if self.done == 1 => self.segment += 1,
                Some(_) => self.begin(block).map_err(|fault| fault.of(self.path()))?,
            }
        }
    }

    /// Whether it is in the middle of a file of many blocks: reading one costs less than passing it from one core to
    /// another does.
    pub(super) fn is_in_large_file(&self) -> bool {
        let left = self.open.as_ref().map_or(0, |file| file.left);
        left > LARGE
    }

    fn begin(&mut self, block: &mut Block) -> Result<(), EncodeFault> {
        match &self.batch.segments[self.segment] {
            Segment::Raw(_) => return Ok(()),
            Segment::Entries(directory, run) => {
                let index = run.start + self.done;
                let name = directory.names.on_disk(index);
                match directory.names.kind(index) {
                    FileType::Symlink => {
                        block.put_entry(directory.names.in_archive(index));
                        put_link(&directory.fd, name, block)?;
                    }
                    _ => {
                        self.open = Some(OpenFile::open(&directory.fd, name)?);
                        block.put_entry(directory.names.in_archive(index));
                        return Ok(());
                    }
                }
            }
            Segment::Root(path, FileType::Symlink) => put_link(CWD, path, block)?,
            Segment::Root(path, _) => {
                self.open = Some(OpenFile::open(CWD, path)?);
                return Ok(());
            }
        }
        self.close_entry(block);
        Ok(())
    }

    fn close_entry(&mut self, block: &mut Block) {
        let root = matches!(self.batch.segments[self.segment], Segment::Root(..));
        block.put(if root {
            &grammar::CLOSE
        } else {
            &grammar::CLOSE_BOTH
        });
        self.done += 1;
    }

    /// The entry at hand.
    fn path(&self) -> PathBuf {
        match &self.batch.segments[self.segment] {
            Segment::Raw(_) => PathBuf::new(),
            Segment::Entries(directory, run) => directory.path_of(run.start + self.done),
            Segment::Root(path, _) => path.clone(),
        }
    }
}

impl OpenFile {
    fn open(directory: impl AsFd, name: impl Arg + Copy) -> Result<Self, EncodeFault> {
        // Should the name have become a fifo since it was listed, opening must not wait for its other end.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(
                |error| match error {
                    Errno::LOOP => EncodeFault::Changed,
                    error => EncodeFault::Io("open", error),
                },
            )?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| EncodeFault::Io("look at", error))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            kind => return Err(EncodeFault::Unsupported(kind_name(kind))),
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let executable = stat.st_mode & 0o100 != 0;
        Ok(Self {
            fd,
            executable,
            started: false,
            size,
            left: size,
            ended: false,
        })
    }

    /// Puts size, contents and padding; false if the block is full before that is done.
    fn copy(&mut self, block: &mut Block, piece: usize) -> Result<bool, EncodeFault> {
        if !self.started {
            let whole = usize::try_from(self.size)
                .unwrap_or(usize::MAX)
                .saturating_add(HEADROOM);
            if whole <= WHOLE && block.room() < whole {
                return Ok(false);
            }
            block.put_regular(self.executable, self.size);
            self.started = true;
        }
        while !self.ended {
            let torn = self.size > piece as u64 && block.filled().len() >= piece;
            if torn || block.room() <= TAIL {
                return Ok(false);
            }
            self.read(block, piece)?;
        }
        if block.room() < TAIL {
            return Ok(false);
        }
        block.put_padding(self.size);
        Ok(true)
    }

    /// One read, of one byte more than is expected if there is room: so the end of the file needs no read of its own.
    fn read(&mut self, block: &mut Block, piece: usize) -> Result<(), EncodeFault> {
        let most = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX);
        let piece = if self.size > piece as u64 {
            piece - block.filled().len()
        } else {
            BLOCK
        };
        let space = block.spare();
        let asked = most.min(space.len()).min(piece);
        let count = retry_on_intr(|| rustix::io::read(&self.fd, &mut space[..asked]));
        let count = count.map_err(|error| EncodeFault::Io("read", error))?;
        if count as u64 > self.left || (count == 0 && self.left > 0) {
            return Err(EncodeFault::Changed);
        }
        block.add(count);
        self.left -= count as u64;
        self.ended = self.left == 0 && asked > count;
        Ok(())
    }
}

fn put_link(directory: impl AsFd, name: impl Arg, block: &mut Block) -> Result<(), EncodeFault> {
    let mut target = [0; MAX_TARGET + 1];
    let length =
        rustix::fs::readlinkat_raw(directory, name, &mut target).map_err(|error| match error {
            // The name was a symlink a moment ago.
            Errno::INVAL => EncodeFault::Changed,
            error => EncodeFault::Io("read the link", error),
        })?;
    let target = &target[..length];
    if let Some(why) = grammar::target_fault(target) {
        return Err(EncodeFault::Target(why));
    }
    block.put_symlink(target);
    Ok(())
}

/// A [`DumpError`] that does not know its path yet.
enum EncodeFault {
    Io(&'static str, Errno),
    Changed,
    Unsupported(&'static str),
    Target(&'static str),
}

impl EncodeFault {
    fn of(self, path: PathBuf) -> DumpError {
        match self {
            EncodeFault::Io(doing, error) => DumpError::io(doing, path, error),
            EncodeFault::Changed => DumpError::Changed { path },
            EncodeFault::Unsupported(kind) => DumpError::Unsupported { path, kind },
            EncodeFault::Target(why) => DumpError::Target { path, why },
        }
    }
}
