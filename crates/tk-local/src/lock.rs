//! Locks between processes, the same ones that Nix takes: `flock(2)` on files opened for reading
//! and writing, created with mode 0600.
//!
//! | File | Who | How |
//! |---|---|---|
//! | `<state>/db/big-lock` | every user of the store, as long as it is open | shared |
//! | `<real path>.lock` | who adds that path | exclusive; removed after, see [`OutputLock`] |
//! | a temporary folder in the store directory | who fills it | exclusive, on the folder itself |
//!
//! Waiting is done by asking again and again: a thread that waits in the kernel could not be told
//! that nobody wants the result any more.

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tk_store::{Error, Result};

/// Whether others may hold the lock at the same time (`Shared`) or not (`Exclusive`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockKind {
    Shared,
    Exclusive,
}

/// Tells blocking work that its result is not wanted any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A guard that cancels when it is dropped.
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }

    /// An error if the work was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            let source = io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more");
            return Err(Error::io("adding to the store", source));
        }
        Ok(())
    }
}

/// Cancels the work when it is dropped; made by [`Cancel::on_drop`].
#[derive(Debug)]
pub(crate) struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Opens the lock file `path`, which need not exist.
pub(crate) fn open_lock_file(path: &Path) -> Result<File> {
    open_or_create(path, 0o600)
}

fn open_or_create(path: &Path, mode: u32) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    // Others may put a link in a folder of their own, which root enters too.
    options.custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let file = options.mode(mode).open(path);
    file.map_err(|e| Error::io(format!("opening {}", path.display()), e))
}

/// The file at `path`, which is made if it is not there, once nobody else holds it.
pub(crate) fn lock_file_at(path: &Path, mode: u32, cancel: &Cancel) -> Result<File> {
    loop {
        let file = open_or_create(path, mode)?;
        lock(&file, path, LockKind::Exclusive, cancel)?;
        // Whoever held it before may have removed or renamed it.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

/// Whether the open `file` is the one that `path` names.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}

/// Takes the lock if nobody holds it against us; says whether it did.
pub(crate) fn try_lock(file: &File, kind: LockKind) -> io::Result<bool> {
    let operation = match kind {
        LockKind::Shared => FlockOperation::NonBlockingLockShared,
        LockKind::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the lock on `file`, which is at `path`; waits while others hold it.
pub(crate) fn lock(file: &File, path: &Path, kind: LockKind, cancel: &Cancel) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        let taken = try_lock(file, kind)
            .map_err(|e| Error::io(format!("locking {}", path.display()), e))?;
        if taken {
            return Ok(());
        }
        cancel.check()?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The right to make the content of one store path.
///
/// A lock file is removed by its holder while it is locked. Whoever waited for it then holds a
/// lock on a file that is not there any more; the holder tells by writing into it.
#[derive(Debug)]
pub(crate) struct OutputLock {
    file: File,
    path: PathBuf,
}

impl OutputLock {
    /// Waits for the lock of the path whose content lies at `real`.
    pub fn acquire(real: &Path, cancel: &Cancel) -> Result<Self> {
        let mut path = real.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = open_lock_file(&path)?;
            lock(&file, &path, LockKind::Exclusive, cancel)?;
            let size = file.metadata().map(|m| m.size());
            match size {
                Ok(0) => return Ok(OutputLock { file, path }),
                // Marked by a holder who then could not remove it: nobody else has the lock of this one.
                Ok(_) => {
                    cancel.check()?;
                    if is_at(&file, &path) {
                        let _ = std::fs::remove_file(&path);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(Error::io(format!("looking at {}", path.display()), e)),
            }
        }
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // If it cannot be removed it is still unlocked when the file closes.
        if std::fs::remove_file(&self.path).is_ok() {
            let _ = self.file.write_all(b"d");
        }
    }
}

const LONGEST_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use std::{thread, time::Instant};

    #[test]
    fn shared_and_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        for (first, second, together) in [
            (LockKind::Shared, LockKind::Shared, true),
            (LockKind::Shared, LockKind::Exclusive, false),
            (LockKind::Exclusive, LockKind::Shared, false),
            (LockKind::Exclusive, LockKind::Exclusive, false),
        ] {
            let (a, b) = (
                open_lock_file(&path).unwrap(),
                open_lock_file(&path).unwrap(),
            );
            assert!(try_lock(&a, first).unwrap());
            assert_eq!(try_lock(&b, second).unwrap(), together);
        }
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn output_lock_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("path");
        drop(OutputLock::acquire(&real, &Cancel::default()).unwrap());
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn output_lock_excludes() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("path");
        let shared = dir.path().join("counter");
        std::fs::write(&shared, "0").unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let _lock = OutputLock::acquire(&real, &Cancel::default()).unwrap();
                        let n: u32 = std::fs::read_to_string(&shared).unwrap().parse().unwrap();
                        thread::yield_now();
                        std::fs::write(&shared, (n + 1).to_string()).unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_to_string(&shared).unwrap(), "100");
    }

    #[test]
    fn a_stale_lock_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("path");
        let lock = dir.path().join("path.lock");
        // As of a holder that marked it and could not remove it.
        std::fs::write(&lock, "d").unwrap();
        let held = OutputLock::acquire(&real, &Cancel::default()).unwrap();
        assert_eq!(lock.metadata().unwrap().len(), 0);
        drop(held);
        // Of somebody who has his own folder, and another one's file in mind.
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, &lock).unwrap();
        assert!(OutputLock::acquire(&real, &Cancel::default()).is_err());
        assert!(!target.exists());
    }

    #[test]
    fn waiting_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("path");
        let held = OutputLock::acquire(&real, &Cancel::default()).unwrap();
        let cancel = Cancel::default();
        drop(cancel.on_drop());
        let begin = Instant::now();
        assert!(OutputLock::acquire(&real, &cancel).is_err());
        assert!(begin.elapsed() < Duration::from_secs(10));
        drop(held);
    }
}
