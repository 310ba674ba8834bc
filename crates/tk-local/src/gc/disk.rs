//! What lies in the store folder: removing content, and finding what is not valid.

use super::cut_off;
use crate::{
    db::graph::StoreGraph,
    inner::LocalInner,
    lock::{LockKind, try_lock},
};
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use tk_nar::fs::{remove_tree_counted, trees_at_once};
use tk_path::{HashPart, StorePath};
use tk_store::{Error, GcOptions, Result};

/// Removes `names` from the folder `real`, several at once. Returns for each, in order, the bytes that became
/// free.
pub(super) fn remove_all(real: &Path, names: &[&str]) -> Vec<Result<u64>> {
    let next = AtomicUsize::new(0);
    let remove = || {
        let mut removed = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(at) else {
                return removed;
            };
            removed.push((at, remove(&real.join(name))));
        }
    };
    let threads = trees_at_once().get().min(THREADS).min(names.len());
    let mut removed = if threads < 2 {
        remove()
    } else {
        thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(remove)).collect();
            let all = all.into_iter().map(|thread| thread.join());
            all.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    };
    removed.sort_unstable_by_key(|(at, _)| *at);
    removed.into_iter().map(|(_, removed)| removed).collect()
}

fn remove(place: &Path) -> Result<u64> {
    match remove_tree_counted(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        removed => removed.map_err(|e| Error::io(format!("deleting {}", place.display()), e)),
    }
}

/// Removes the files in `links` that no path has any more.
pub(super) fn remove_unused_links(links: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("deleting unused links in {}", links.display()), e);
    let entries = match links.read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // Reads the entry itself, not what a link leads to.
        let meta = match entry.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            meta => meta.map_err(failed)?,
        };
        if meta.nlink() == 1 && !meta.is_dir() {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// An entry of the store folder that is not valid: of a build that failed, a process that was killed, or odd.
#[derive(Debug)]
pub(super) struct LeftOver {
    pub name: String,
    place: PathBuf,
}

impl LocalInner {
    /// The entries of the store folder that have no row.
    pub(super) fn left_overs(
        &self,
        graph: &StoreGraph,
        options: &GcOptions,
    ) -> Result<Vec<LeftOver>> {
        let real = &self.config.real;
        let failed = |e| Error::io(format!("reading {}", real.display()), e);
        let mut left = Vec::new();
        for entry in real.read_dir().map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name == ".links" || name.to_str().is_some_and(|name| graph.find(name).is_some()) {
                continue;
            }
            let found = LeftOver {
                place: real.join(&name),
                name: String::from_utf8_lossy(name.as_bytes()).into_owned(),
            };
            if !found.is_newer_than(cut_off(options)) {
                left.push(found);
            }
        }
        left.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(left)
    }
}

impl LeftOver {
    pub fn at(real: &Path, name: &str) -> Self {
        LeftOver {
            place: real.join(name),
            name: name.to_owned(),
        }
    }

    /// The hash part of the path whose name it has, if it has one.
    pub fn hash(&self) -> Option<HashPart> {
        let path = StorePath::parse(&self.name).ok()?;
        Some(path.to_hash_part())
    }

    fn is_newer_than(&self, cut_off: Option<u64>) -> bool {
        let changed = || self.place.symlink_metadata().ok().map(|meta| meta.ctime());
        cut_off.is_some_and(|cut_off| {
            changed().is_some_and(|time| u64::try_from(time).is_ok_and(|time| time > cut_off))
        })
    }

    /// Whether somebody holds a lock on it.
    pub fn is_in_use(&self) -> bool {
        matches!(self.lock(), Ok(None))
    }

    /// Whether nothing lies there.
    pub fn is_absent(&self) -> bool {
        let meta = self.place.symlink_metadata();
        meta.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Bytes of what lies there.
    pub fn size(&self) -> u64 {
        size(&self.place)
    }

    /// Removes it. Returns the bytes that became free; `None` if somebody uses it, or it is gone already.
    pub fn remove(&self) -> Result<Option<u64>> {
        let failed = |e| Error::io(format!("deleting {}", self.place.display()), e);
        let Some(mut lock) = self.lock().map_err(failed)? else {
            return Ok(None);
        };
        if self.place.symlink_metadata().is_err() {
            return Ok(None);
        }
        let freed = remove(&self.place)?;
        // Whoever waits for the lock of a file that is gone has to know it, see `OutputLock`.
        if let EntryLock::File(file) = &mut lock
            && self.name.ends_with(".lock")
        {
            let _ = file.write_all(b"d");
        }
        Ok(Some(freed))
    }

    /// Whether somebody holds the lock of the path whose name it has: he is about to make it.
    fn is_being_made(&self) -> bool {
        let mut lock = self.place.clone().into_os_string();
        lock.push(".lock");
        File::open(lock).is_ok_and(|lock| matches!(try_lock(&lock, LockKind::Shared), Ok(false)))
    }

    /// The right to remove it; `None` if somebody else holds it.
    fn lock(&self) -> io::Result<Option<EntryLock>> {
        if self.hash().is_some() && self.is_being_made() {
            return Ok(None);
        }
        let meta = match self.place.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(EntryLock::Nothing)),
            meta => meta?,
        };
        let kind = meta.file_type();
        if kind.is_symlink()
            || kind.is_fifo()
            || kind.is_socket()
            || kind.is_block_device()
            || kind.is_char_device()
        {
            return Ok(Some(EntryLock::Nothing));
        }
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() | rustix::fs::OFlags::NONBLOCK.bits();
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(kind.is_file())
            .custom_flags(flags as i32);
        let file = match options.open(&self.place) {
            // A file that we may not write has nobody who waits to be told.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                match options.write(false).open(&self.place) {
                    // Our own, which nobody but us could have open.
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied && is_ours(&meta) => {
                        return Ok(Some(EntryLock::Nothing));
                    }
                    file => file?,
                }
            }
            file => file?,
        };
        Ok(try_lock(&file, LockKind::Exclusive)?.then_some(EntryLock::File(file)))
    }
}

/// What is held while an entry is removed.
enum EntryLock {
    File(File),
    /// There is nothing that could be locked.
    Nothing,
}

fn is_ours(meta: &Metadata) -> bool {
    meta.uid() == rustix::process::geteuid().as_raw()
}

fn size(place: &Path) -> u64 {
    let Ok(meta) = place.symlink_metadata() else {
        return 0;
    };
    if !meta.is_dir() {
        return meta.len();
    }
    let entries = place.read_dir().into_iter().flatten().flatten();
    entries.map(|entry| size(&entry.path())).sum()
}

/// More would wait for the disk, or for each other.
const THREADS: usize = 8;
