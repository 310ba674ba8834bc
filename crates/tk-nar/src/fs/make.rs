//! Makes single files, symlinks and directories, with the metadata that was asked for.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use super::error::UnpackError;
use super::options::UnpackMetadata;

/// A directory that is being filled. It is complete when its last reference is given to [`Maker::release`]: until then
/// it is writable by its owner.
#[derive(Debug)]
pub(super) struct MadeDirectory {
    fd: OwnedFd,
    /// The destination for the root, otherwise one name.
    name: PathBuf,
    parent: Option<Arc<MadeDirectory>>,
}

impl MadeDirectory {
    /// Its path below (and with) the destination, for errors.
    pub(super) fn path(&self) -> PathBuf {
        let mut names = vec![self.name.as_path()];
        let mut above = self.parent.as_ref();
        while let Some(directory) = above {
            names.push(&directory.name);
            above = directory.parent.as_ref();
        }
        names.iter().rev().collect()
    }

    pub(super) fn path_of(&self, name: &CStr) -> PathBuf {
        self.path().join(OsStr::from_bytes(name.to_bytes()))
    }
}

/// How to make things.
#[derive(Debug)]
pub(super) struct Maker {
    metadata: UnpackMetadata,
    /// Whether files get the mode they are created with, learnt from the first file; plain files, then executables.
    modes: [AtomicU8; 2],
    open: AtomicUsize,
}

const UNKNOWN: u8 = 0;
const RIGHT: u8 = 1;
const WRONG: u8 = 2;

impl Maker {
    pub(super) fn new(metadata: UnpackMetadata) -> Self {
        Self {
            metadata,
            modes: [AtomicU8::new(UNKNOWN), AtomicU8::new(UNKNOWN)],
            open: AtomicUsize::new(0),
        }
    }

    /// Directories that are not complete yet, each with a descriptor.
    pub(super) fn open_directories(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Makes the root directory.
    pub(super) fn root(&self, path: &Path) -> Result<Arc<MadeDirectory>, UnpackError> {
        let fault = |doing| move |error| UnpackError::io(doing, path.to_owned(), error);
        rustix::fs::mkdirat(CWD, path, self.directory_mode()).map_err(fault("create"))?;
        self.opened(CWD, path, path.to_owned(), None)
            .map_err(fault("open"))
    }

    pub(super) fn directory(
        &self,
        parent: &Arc<MadeDirectory>,
        name: &CStr,
    ) -> Result<Arc<MadeDirectory>, UnpackError> {
        let fault = |doing| move |error| UnpackError::io(doing, parent.path_of(name), error);
        rustix::fs::mkdirat(&parent.fd, name, self.directory_mode()).map_err(fault("create"))?;
        let own = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
        self.opened(parent.fd.as_fd(), name, own, Some(parent.clone()))
            .map_err(fault("open"))
    }

    /// Gives a reference back; the last one sets the directory's final mode and time, and so on for its parents.
    pub(super) fn release(&self, directory: Arc<MadeDirectory>) -> Result<(), UnpackError> {
        let mut next = Some(directory);
        while let Some(directory) = next.and_then(Arc::into_inner) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            if self.metadata == UnpackMetadata::Canonical {
                let fault =
                    |error| UnpackError::io("set the mode and time of", directory.path(), error);
                rustix::fs::fchmod(&directory.fd, Mode::from_raw_mode(0o555)).map_err(fault)?;
                rustix::fs::futimens(&directory.fd, &EPOCH_PLUS_ONE).map_err(fault)?;
            }
            next = directory.parent;
        }
        Ok(())
    }

    pub(super) fn file(
        &self,
        directory: &MadeDirectory,
        name: &CStr,
        executable: bool,
        contents: &[u8],
    ) -> Result<(), UnpackError> {
        let fault = |(doing, error)| UnpackError::io(doing, directory.path_of(name), error);
        let fd = self
            .create(&directory.fd, name, executable)
            .map_err(fault)?;
        write_all(&fd, contents).map_err(fault)?;
        self.complete(&fd, executable).map_err(fault)
    }

    /// A new file that is written piece by piece; [`Maker::complete`] must follow.
    pub(super) fn begin_file(
        &self,
        directory: Option<&MadeDirectory>,
        name: impl Arg,
        executable: bool,
    ) -> Result<OwnedFd, (&'static str, Errno)> {
        let parent = directory.map_or(CWD, |directory| directory.fd.as_fd());
        self.create(parent, name, executable)
    }

    /// Sets what is still to be set after the last byte was written.
    pub(super) fn complete(
        &self,
        fd: &OwnedFd,
        executable: bool,
    ) -> Result<(), (&'static str, Errno)> {
        self.set_mode(fd, executable)
            .map_err(|error| ("set the mode of", error))?;
        match self.metadata {
            UnpackMetadata::Plain => Ok(()),
            UnpackMetadata::Canonical => rustix::fs::futimens(fd, &EPOCH_PLUS_ONE)
                .map_err(|error| ("set the time of", error)),
        }
    }

    pub(super) fn link(
        &self,
        directory: &MadeDirectory,
        name: &CStr,
        target: &CStr,
    ) -> Result<(), UnpackError> {
        self.link_at(directory.fd.as_fd(), name, target)
            .map_err(|error| UnpackError::io("create the link", directory.path_of(name), error))
    }

    pub(super) fn link_at(
        &self,
        parent: BorrowedFd<'_>,
        name: impl Arg + Copy,
        target: &CStr,
    ) -> Result<(), Errno> {
        rustix::fs::symlinkat(target, parent, name)?;
        match self.metadata {
            UnpackMetadata::Plain => Ok(()),
            UnpackMetadata::Canonical => {
                rustix::fs::utimensat(parent, name, &EPOCH_PLUS_ONE, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    fn directory_mode(&self) -> Mode {
        Mode::from_raw_mode(match self.metadata {
            // Nobody else sees it before it is complete.
            UnpackMetadata::Canonical => 0o700,
            UnpackMetadata::Plain => 0o777,
        })
    }

    fn opened(
        &self,
        parent: BorrowedFd<'_>,
        name: impl Arg,
        own: PathBuf,
        above: Option<Arc<MadeDirectory>>,
    ) -> Result<Arc<MadeDirectory>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(MadeDirectory {
            fd,
            name: own,
            parent: above,
        }))
    }

    fn create(
        &self,
        parent: impl AsFd,
        name: impl Arg,
        executable: bool,
    ) -> Result<OwnedFd, (&'static str, Errno)> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = match (self.metadata, executable) {
            (UnpackMetadata::Canonical, false) => 0o444,
            (UnpackMetadata::Canonical, true) => 0o555,
            (UnpackMetadata::Plain, false) => 0o666,
            (UnpackMetadata::Plain, true) => 0o777,
        };
        rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode))
            .map_err(|error| ("create", error))
    }

    /// The process's umask or a default ACL can take bits off the mode a file is created with. They treat all files
    /// alike, so only the first plain file and the first executable are looked at.
    fn set_mode(&self, fd: &OwnedFd, executable: bool) -> Result<(), Errno> {
        if self.metadata == UnpackMetadata::Plain && !executable {
            return Ok(());
        }
        let known = &self.modes[usize::from(executable)];
        if known.load(Ordering::Relaxed) == RIGHT {
            return Ok(());
        }
        let mode = rustix::fs::fstat(fd)?.st_mode & 0o7777;
        let wanted = match (self.metadata, executable) {
            (UnpackMetadata::Canonical, false) => 0o444,
            (UnpackMetadata::Canonical, true) => 0o555,
            // As Nix: everybody may execute, whatever the umask.
            (UnpackMetadata::Plain, _) => mode | 0o111,
        };
        if mode == wanted {
            let _ = known.compare_exchange(UNKNOWN, RIGHT, Ordering::Relaxed, Ordering::Relaxed);
            return Ok(());
        }
        known.store(WRONG, Ordering::Relaxed);
        rustix::fs::fchmod(fd, Mode::from_raw_mode(wanted))
    }
}

pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), (&'static str, Errno)> {
    while !bytes.is_empty() {
        match retry_on_intr(|| rustix::io::write(fd, bytes)) {
            Ok(0) => return Err(("write", Errno::IO)),
            Ok(count) => bytes = &bytes[count..],
            Err(error) => return Err(("write", error)),
        }
    }
    Ok(())
}

/// Modification time 1, as Nix sets it in a store.
const EPOCH_PLUS_ONE: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    },
    last_modification: Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    },
};
