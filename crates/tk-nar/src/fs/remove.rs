//! Removes trees.

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
    remove(path, &mut None)
}

/// As [`remove_tree`]. Returns the bytes of the files that no longer have a name, or only one more: that is the one
/// which a store has for files that several of its paths share (Nix's `deletePath`).
pub fn remove_tree_counted(path: &Path) -> io::Result<u64> {
    let mut freed = Some(0);
    remove(path, &mut freed)?;
    Ok(freed.unwrap_or(0))
}

fn remove(path: &Path, freed: &mut Option<u64>) -> io::Result<()> {
    let path: PathBuf = path.components().collect();
    if unlink(CWD, &path, freed)? {
        return Ok(());
    }
    let mut levels = vec![RemoveLevel::open(CWD, path.as_path())?];
    while let Some(level) = levels.last_mut() {
        if let Some(child) = level.remove_leaves(freed)? {
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
    fn open(parent: impl AsFd, name: impl rustix::path::Arg + Copy) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&parent, name, flags, Mode::empty());
        let fd = match open() {
            // Our own, which we may not read.
            Err(Errno::ACCESS) if is_directory(&parent, name) => {
                rustix::fs::chmodat(&parent, name, Mode::RWXU, AtFlags::empty())?;
                open()?
            }
            fd => fd?,
        };
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if !mode.contains(Mode::RWXU) {
            rustix::fs::fchmod(&fd, mode | Mode::RWXU)?;
        }
        let names = Names::read(&fd)?;
        Ok(Self { fd, names, next: 0 })
    }

    /// Removes entries up to the next directory, and opens that.
    fn remove_leaves(&mut self, freed: &mut Option<u64>) -> io::Result<Option<RemoveLevel>> {
        while self.next < self.names.len() {
            let name = self.names.on_disk(self.next);
            if self.names.kind(self.next) == FileType::Directory {
                return RemoveLevel::open(&self.fd, name).map(Some);
            }
            match unlink(&self.fd, name, freed) {
                Ok(true) => {}
                Ok(false) => return RemoveLevel::open(&self.fd, name).map(Some),
                // Somebody else was faster.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
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

/// False if it is a directory. What becomes free is added to `freed`.
fn unlink(
    directory: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    freed: &mut Option<u64>,
) -> io::Result<bool> {
    let mut bytes = 0;
    if freed.is_some() {
        let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(false);
        }
        if stat.st_nlink <= 2 {
            bytes = stat.st_size as u64;
        }
    }
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) => {
            *freed = freed.map(|freed| freed + bytes);
            Ok(true)
        }
        Err(Errno::ISDIR) => Ok(false),
        // POSIX allows it for a directory.
        Err(Errno::PERM) if is_directory(directory, name) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_directory(parent: impl AsFd, name: impl rustix::path::Arg) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}
