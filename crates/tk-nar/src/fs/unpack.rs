//! Unpacks archives.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use super::error::UnpackError;
use super::options::UnpackOptions;
use super::remove_tree;
use super::unpack_tree::UnpackTree;
use crate::decode::Decoder;
use crate::error::{NarError, NarErrorKind};

/// Unpacks an archive to `dest`, which must not exist; returns the length of the archive in bytes.
///
/// Reads `nar` in large blocks, so that it may take bytes that follow the archive: see [`unpack_from`]. After an error
/// what was made at `dest` is removed again (as far as that is possible); what existed before is never touched.
///
/// # Security
/// Nothing is made outside of `dest`, whatever the archive says, unless others can write to `dest` meanwhile. Symlinks
/// are made as they are, and may lead anywhere. No hash is verified: unpack to a temporary place if one is to be.
pub fn unpack(nar: impl Read, dest: &Path, options: &UnpackOptions) -> Result<u64, UnpackError> {
    unpack_from(&mut BufReader::with_capacity(BUFFER, nar), dest, options)
}

/// [`unpack`] that leaves `nar` at the first byte behind the archive.
pub fn unpack_from(
    nar: &mut impl BufRead,
    dest: &Path,
    options: &UnpackOptions,
) -> Result<u64, UnpackError> {
    let mut unpacker = Unpacker::new(dest, options)?;
    match unpacker.read_all(nar) {
        Ok(length) => Ok(length),
        Err(error) => {
            unpacker.discard();
            Err(error)
        }
    }
}

/// Unpacks an archive that is pushed to it in pieces.
///
/// Memory is bounded whatever the archive: 8 MiB of small files that wait for a thread and about 1.3 MiB for each of
/// 9 + threads buffers. At most 256 directories and a file for each thread are open, and fewer where the
/// process may not have many ([`descriptors`](super::descriptors)).
///
/// Dropped before [`Unpacker::finish`], or after an error, it leaves what was made at the destination for the caller to
/// remove ([`Unpacker::discard`] does).
#[derive(Debug)]
pub struct Unpacker {
    decoder: Decoder,
    tree: UnpackTree,
    destination: PathBuf,
    failed: bool,
}

impl Unpacker {
    /// Makes nothing yet, but fails if `dest` exists.
    pub fn new(dest: &Path, options: &UnpackOptions) -> Result<Self, UnpackError> {
        // Without a trailing slash, which would follow a symlink.
        let destination: PathBuf = dest.components().collect();
        match rustix::fs::statat(CWD, &destination, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(UnpackError::Exists { path: destination }),
            Err(error) => return Err(UnpackError::io("look at", destination, error)),
        }
        let tree = UnpackTree::new(destination.clone(), options);
        Ok(Self {
            decoder: Decoder::new(),
            tree,
            destination,
            failed: false,
        })
    }

    /// Takes the next bytes of the archive. Bytes behind its end are an error. An error of a thread can come with a
    /// later call than the one that brought its bytes.
    pub fn feed(&mut self, input: &[u8]) -> Result<(), UnpackError> {
        let taken = self.push(input)?;
        if taken < input.len() {
            self.failed = true;
            return Err(NarError::new(self.decoder.offset(), NarErrorKind::Trailing).into());
        }
        Ok(())
    }

    /// Waits until everything is made; returns the length of the archive in bytes.
    pub fn finish(mut self) -> Result<u64, UnpackError> {
        self.complete()
    }

    /// Stops, and removes what was made at the destination as far as that is possible.
    pub fn discard(self) {
        let Self {
            tree, destination, ..
        } = self;
        let created = tree.created();
        // Its threads end here, so that they make nothing new below.
        drop(tree);
        if created {
            let _ = remove_tree(&destination);
        }
    }

    fn read_all(&mut self, nar: &mut impl BufRead) -> Result<u64, UnpackError> {
        while !self.decoder.is_done() {
            let input = match nar.fill_buf() {
                Ok([]) => break,
                Ok(input) => input,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(
                        NarError::new(self.decoder.offset(), NarErrorKind::Read(error)).into(),
                    );
                }
            };
            let taken = self.push(input)?;
            nar.consume(taken);
        }
        self.complete()
    }

    /// Takes what belongs to the archive; returns how much that is.
    fn push(&mut self, input: &[u8]) -> Result<usize, UnpackError> {
        if self.failed {
            return Err(UnpackError::Failed);
        }
        let result = self.push_events(input);
        self.failed = result.is_err();
        result
    }

    fn push_events(&mut self, input: &[u8]) -> Result<usize, UnpackError> {
        self.tree.check()?;
        let mut at = 0;
        loop {
            let fed = self.decoder.feed(&input[at..])?;
            at += fed.consumed;
            match fed.event {
                Some(event) => self
                    .tree
                    .take(event)
                    .map_err(|error| exists_or(error, &self.destination))?,
                None => return Ok(at),
            }
        }
    }

    fn complete(&mut self) -> Result<u64, UnpackError> {
        if self.failed {
            return Err(UnpackError::Failed);
        }
        self.decoder.finish()?;
        self.tree.finish()?;
        Ok(self.decoder.offset())
    }
}

/// Says it plainly if the destination came into being since it was looked for.
fn exists_or(error: UnpackError, destination: &Path) -> UnpackError {
    match error {
        UnpackError::Io { path, source, .. }
            if source.kind() == io::ErrorKind::AlreadyExists && path == destination =>
        {
            UnpackError::Exists { path }
        }
        error => error,
    }
}

const BUFFER: usize = 256 * 1024;
