//! Places where nothing is yet, and when to delete what was put there.
//!
//! Deleting many files makes ext4 slow at creating new ones for a minute or more. So they stay until the end of the run, or
//! until the space gets short: then all are deleted, and the run waits.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tk_nar::fs::remove_tree;

/// A folder of places. Dropping it deletes them.
#[derive(Debug)]
pub struct Fresh {
    dir: PathBuf,
    used: u64,
}

impl Fresh {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, used: 0 }
    }

    /// The path of a new place, which is not made.
    pub fn next(&mut self) -> Result<PathBuf> {
        let (pid, n) = (std::process::id(), self.used);
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        self.used += 1;
        Ok(self.dir.join(format!("{pid}-{n}")))
    }

    /// Has what was written before go to the disk, so that nobody has to wait for that who fills a place with `bytes`.
    pub fn settle(&self, bytes: u64) -> Result<()> {
        if bytes > MUCH {
            rustix::fs::syncfs(File::open(self.home())?)?;
        }
        Ok(())
    }

    /// As many rounds, up to `rounds` and one to warm up, as the disk has space for when each of them leaves `bytes` there
    /// (`stays`) or only for its own time. None if not even one fits.
    pub fn rounds_that_fit(&mut self, rounds: u16, bytes: u64, stays: bool) -> Result<Option<u16>> {
        let home = self.home().to_owned();
        let wanted = if stays { u64::from(rounds) + 1 } else { 1 };
        if fit(&home, bytes)? < wanted && self.clear()? {
            eprintln!("deleted what was filled, and waiting");
            rustix::fs::syncfs(File::open(&home)?)?;
            std::thread::sleep(FORGET);
        }
        match fit(&home, bytes)? {
            fit if fit >= wanted => Ok(Some(rounds)),
            fit @ 2.. => Ok(u16::try_from(fit - 1).ok()),
            _ => Ok(None),
        }
    }

    /// The folder that is always there.
    fn home(&self) -> &Path {
        self.dir.parent().unwrap_or(Path::new("/"))
    }

    /// Deletes all; false if there was nothing.
    fn clear(&mut self) -> std::io::Result<bool> {
        let there = self.dir.exists();
        if there {
            remove_tree(&self.dir)?;
        }
        Ok(there)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("tk-bench: {} is left: {error}", self.dir.display());
        }
    }
}

/// How often so many bytes fit in a folder.
fn fit(folder: &Path, bytes: u64) -> Result<u64> {
    let fs = rustix::fs::statvfs(folder)?;
    let free = (fs.f_bavail * fs.f_frsize).saturating_sub(SPARE);
    Ok(free / bytes.max(1))
}

/// Longer than ext4 keeps clear of an inode that was freed.
const FORGET: Duration = Duration::from_secs(90);
/// Bytes of disk: less keeps nobody waiting.
const MUCH: u64 = 64 << 20;
/// Bytes of disk that are left alone.
const SPARE: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_new_and_go_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut fresh = Fresh::new(dir.path().join("fresh"));
        let (one, two) = (fresh.next().unwrap(), fresh.next().unwrap());
        assert!(one != two && !one.exists());
        fs::create_dir(one).unwrap();
        drop(fresh);
        assert!(!dir.path().join("fresh").exists());
    }

    #[test]
    fn what_does_not_fit_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let mut fresh = Fresh::new(dir.path().join("fresh"));
        assert_eq!(fresh.rounds_that_fit(5, 1, true).unwrap(), Some(5));
        assert_eq!(fresh.rounds_that_fit(5, u64::MAX, false).unwrap(), None);
    }
}
