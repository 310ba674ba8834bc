//! Removes trees.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::names::Names;

/// Removes the file, symlink or tree at `path`; also a tree of read-only directories (0555), as unpacking makes them.
///
/// Never follows a symlink. Holds one descriptor a level, so that a tree deeper than the limit on open files (not one
/// that came from an archive) fails. An error leaves what was not removed yet.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let path: PathBuf = path.components().collect();
    match rustix::fs::unlinkat(CWD, &path, AtFlags::empty()) {
        // Linux says EISDIR, POSIX allows EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return Ok(result?),
    }
    let mut levels = vec![RemoveLevel::open(CWD, path.as_path())?];
    while let Some(level) = levels.last_mut() {
        if let Some(child) = level.remove_leaves()? {
            levels.push(child);
            continue;
        }
        levels.pop();
        if let Some(parent) = levels.last_mut() {
            parent.remove_child()?;
        }
    }
    Ok(rustix::fs::unlinkat(CWD, &path, AtFlags::REMOVEDIR)?)
}

struct RemoveLevel {
    fd: OwnedFd,
    names: Names,
    next: usize,
}

impl RemoveLevel {
    fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if !mode.contains(Mode::RWXU) {
            rustix::fs::fchmod(&fd, mode | Mode::RWXU)?;
        }
        let names = Names::read(&fd)?;
        Ok(Self { fd, names, next: 0 })
    }

    /// Removes entries up to the next directory, and opens that.
    fn remove_leaves(&mut self) -> io::Result<Option<RemoveLevel>> {
        while self.next < self.names.len() {
            let name = self.names.on_disk(self.next);
            if self.names.kind(self.next) == FileType::Directory || !unlink(&self.fd, name)? {
                return RemoveLevel::open(&self.fd, name).map(Some);
            }
            self.next += 1;
        }
        Ok(None)
    }

    /// Removes the directory that [`RemoveLevel::remove_leaves`] opened, now empty.
    fn remove_child(&mut self) -> io::Result<()> {
        rustix::fs::unlinkat(&self.fd, self.names.on_disk(self.next), AtFlags::REMOVEDIR)?;
        self.next += 1;
        Ok(())
    }
}

/// False if it is a directory.
fn unlink(directory: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
