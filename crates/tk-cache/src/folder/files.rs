//! Files of a cache: read within limits, written so that they are there whole or not at all.
//!
//! A new file is made under `.tmp/` beside its final name and renamed. Its maker holds a lock on
//! it (`flock`), which ends with the process however that dies: a temporary file that can be
//! locked belongs to nobody and is removed by the next writer.
//!
//! Files are not synced to the disk, as in Nix: what is promised holds when processes are killed,
//! not when the power fails.

use rustix::{
    buffer::spare_capacity,
    fs::{CWD, FlockOperation, Mode, OFlags, flock},
};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Opens a regular file; `None` if there is none. Neither a pipe nor a device is waited for.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    Ok(open_sized(path)?.map(|(file, _)| file))
}

/// The same with its length in bytes.
fn open_sized(path: &Path) -> io::Result<Option<(File, u64)>> {
    let file = match rustix::fs::openat(CWD, path, READ, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(error) if error == rustix::io::Errno::NOENT => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if meta.is_file() {
        Ok(Some((file, meta.len())))
    } else {
        Err(not_a_file())
    }
}

/// A folder that is open, from which the names of its files are looked up: that is quicker than from the
/// root of the file system.
pub(super) struct OpenFolder(OwnedFd);

impl OpenFolder {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // Not for reading: who may not list the folder may still read the files in it.
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let folder = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(OpenFolder(folder))
    }

    /// Whether there is a file `name`, whose content of at most `limit` bytes is in `content` then. The memory
    /// of that is kept from one to the next.
    pub(super) fn read(&self, name: &str, limit: usize, content: &mut Vec<u8>) -> io::Result<bool> {
        let file = match rustix::fs::openat(&self.0, name, READ, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) if error == rustix::io::Errno::NOENT => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        // Most fit, and files get their names when they are whole: what leaves room is all of it.
        content.clear();
        content.reserve(SMALL);
        let room = content.capacity();
        match rustix::io::read(&file, spare_capacity(content)) {
            Ok(n) if n > 0 && n < room && n <= limit => {}
            // It is large or empty, or is not a file.
            _ => *content = read_from_start(&file, limit)?,
        }
        Ok(true)
    }
}

/// The content of a file of which something may have been read.
fn read_from_start(mut file: &File, limit: usize) -> io::Result<Vec<u8>> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(not_a_file());
    }
    file.seek(SeekFrom::Start(0))?;
    read_sized(file, meta.len(), limit)
}

fn not_a_file() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// The content of a file of at most `limit` bytes; `None` if there is none.
pub(super) fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let Some((file, size)) = open_sized(path)? else {
        return Ok(None);
    };
    read_sized(&file, size, limit).map(Some)
}

/// The length of a regular file in bytes; `None` if there is none.
pub(super) fn size(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.is_file().then_some(meta.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Files get their names when they are whole, so there is nothing behind the `size` bytes of this one: not to ask
/// for more saves a quarter of the time that a small file takes.
fn read_sized(file: &File, size: u64, limit: usize) -> io::Result<Vec<u8>> {
    if size > limit as u64 {
        let what = format!("it is larger than the {limit} bytes that such a file may have");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    let mut content = Vec::with_capacity(size as usize);
    file.take(size).read_to_end(&mut content)?;
    Ok(content)
}

/// Locks the file at `path` against others who do the same; `None` if there is none.
pub(super) fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let Some(file) = open(path)? else {
            return Ok(None);
        };
        flock(&file, FlockOperation::LockExclusive)?;
        // Somebody may have put another file there while this waited.
        if is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// A file that is being written. Removed on drop, unless it was renamed.
#[derive(Debug)]
pub(super) struct TemporaryFile {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl TemporaryFile {
    /// A new, empty file that can be renamed to names in `folder`.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let folder = folder.join(TEMPORARY);
        loop {
            let n = COUNT.fetch_add(1, Relaxed);
            let path = folder.join(format!("{}.{n}", process::id()));
            let file = match File::create_new(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make_folder(&folder)?;
                    continue;
                }
                // Of an earlier process with this number, or of one in another container.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            // A sweep may have found it before the lock was taken.
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
            if locked == Err(rustix::io::Errno::WOULDBLOCK) || file.metadata()?.nlink() == 0 {
                continue;
            }
            let renamed = false;
            return Ok(TemporaryFile {
                file,
                path,
                renamed,
            });
        }
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it its name, in the place of what has that name.
    pub(super) fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.renamed {
            // If it stays, the next writer removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what killed writers left in `folder`, and its temporary folder if it is empty.
pub(super) fn sweep(folder: &Path) {
    let folder = folder.join(TEMPORARY);
    let Ok(entries) = fs::read_dir(&folder) else {
        return;
    };
    for entry in entries.flatten() {
        // Whatever cannot be locked or removed is in nobody's way.
        let path = entry.path();
        if let Ok(Some(file)) = open(&path)
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_at(&file, &path).unwrap_or(false)
        {
            let _ = fs::remove_file(&path);
        }
    }
    let _ = fs::remove_dir(&folder);
}

/// Makes a folder whose parent is there; it may be there already.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    loop {
        let error = match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => error,
            other => return other,
        };
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            // Another writer's sweep removed it meanwhile.
            Err(gone) if gone.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
            _ => return Err(error),
        }
    }
}

/// Whether `file` is what is at `path` now.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let file = file.metadata()?;
    match fs::metadata(path) {
        Ok(now) => Ok((now.dev(), now.ino()) == (file.dev(), file.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

const TEMPORARY: &str = ".tmp";

const READ: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

/// In bytes: more than most narinfos have.
const SMALL: usize = 4 << 10;

static COUNT: AtomicU64 = AtomicU64::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    /// The temporary folder comes and goes under writers that never look at each other.
    #[test]
    fn writers_and_sweepers_are_in_nobodys_way() {
        const ROUNDS: usize = 2_000;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::thread::scope(|scope| {
            for writer in 0..3 {
                scope.spawn(move || {
                    let name = root.join(writer.to_string());
                    for _ in 0..ROUNDS {
                        TemporaryFile::new(root).unwrap().rename(&name).unwrap();
                        sweep(root);
                    }
                });
            }
        });
    }

    #[test]
    fn files_of_any_size_and_nothing_else_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let open = OpenFolder::open(folder.path()).unwrap();
        let mut buffer = Vec::new();
        let mut read = |name: &str, limit| {
            let there = open.read(name, limit, &mut buffer)?;
            io::Result::Ok(there.then(|| buffer.clone()))
        };
        assert_eq!(read("none", 9).unwrap(), None);
        for size in [0, 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL] {
            let content: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
            fs::write(folder.path().join("file"), &content).unwrap();
            for limit in [size, size + 1, 10 * SMALL] {
                let found = read("file", limit).unwrap();
                assert!(found.as_deref() == Some(&content), "{size} of {limit}");
            }
            if let Some(less) = size.checked_sub(1) {
                let error = read("file", less).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{size}");
            }
        }
        fs::create_dir(folder.path().join("folder")).unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for other in ["folder", "fifo"] {
            let error = read(other, SMALL).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{other}: {error}");
        }
    }

    #[test]
    fn a_link_to_nowhere_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let error = make_folder(&link).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
