//! Small files that several processes share: read within bounds, replaced in one step, locked.

use crate::{Cause, NixFailure, Result};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::NamedTempFile;
use tk_path::{Algorithm, Encoding, Hasher};

/// A lock that is free as soon as its holder lets go, however it ends.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody else has the lock `path`.
    pub(super) async fn exclusive(path: &Path) -> Result<Lock> {
        let file = lock_file(path)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(failed("locking", path)(error.into())),
            }
        }
    }
}

fn lock_file(path: &Path) -> Result<File> {
    let open = || {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600).open(path)
    };
    let file = match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            make_folder(path.parent().unwrap_or(path))?;
            open()
        }
        file => file,
    };
    file.map_err(failed("opening the lock", path))
}

/// The failure of `doing` something with `path`.
pub(super) fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> NixFailure {
    let words = format!("{doing} {}", path.display());
    move |error| {
        let cause = match error.kind() {
            io::ErrorKind::StorageFull => Cause::NoSpace,
            _ => Cause::Other,
        };
        NixFailure::new(cause, format!("{words}: {error}"))
    }
}

/// The folder `path` and those it lies in, for this user alone.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed("making the folder", path))
}

/// All of a file of up to `most` bytes; `None` if it is not there.
pub(super) fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let size = file.metadata()?.len().min(most);
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        Err(io::Error::other(format!("it has more than {most} bytes")))
    } else {
        Ok(Some(bytes))
    }
}

/// Makes `bytes` the content of `path` in one step: a reader sees the old or the new.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    make_folder(folder)?;
    let write = || {
        let mut new = NamedTempFile::new_in(folder)?;
        new.write_all(bytes)?;
        new.persist(path).map_err(|unmoved| unmoved.error)
    };
    write().map(drop).map_err(failed("writing", path))
}

/// Makes the new file `path`, for this user alone.
pub(super) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// A name beside `path` that nobody else uses.
pub(super) fn unique(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = path.as_os_str().to_owned();
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = nanos.map_or(0, |now| now.subsec_nanos());
    name.push(format!(".{}-{n}-{nanos}", process::id()));
    name.into()
}

/// Takes a file away that may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(e)),
        _ => Ok(()),
    }
}

/// The entries of a folder; none if it is not there.
pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(failed("reading the folder", path))?,
    };
    let list = list.map(|entry| Ok(entry?.path()));
    list.collect::<io::Result<_>>()
        .map_err(failed("reading the folder", path))
}

/// Returns the present time in seconds since 1970; 0 if the clock is set to before that.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// The SHA-256 of `parts`, each with its length, in hex.
pub(super) fn digest<T: AsRef<[u8]>>(parts: impl IntoIterator<Item = T>) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for part in parts {
        let part = part.as_ref();
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finish().digits(Encoding::Base16)
}

/// How often a lock that somebody else has is asked for.
const AGAIN: Duration = Duration::from_millis(10);
