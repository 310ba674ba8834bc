use crate::{
    lock::{Cancel, LockKind, try_lock},
    roots::TempRoots,
};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};
use tk_nar::fs::remove_tree;
use tk_path::{Algorithm, Hash, StoreDir, StorePath};
use tk_store::{Error, Result};

/// A folder in the store directory in which content is made before it gets its name.
///
/// Its own name is that of a store path, and a temporary root: each Nix's collector leaves it
/// alone while this process lives and removes it after. (What Nix itself uses, a locked folder
/// `tmp-*`, is removed by the collector of 2.8 while it is in use.) It is locked for [`sweep`],
/// and goes away when it is dropped.
#[derive(Debug)]
pub(crate) struct Nursery {
    dir: PathBuf,
    next: AtomicU64,
    _lock: File,
}

impl Nursery {
    /// A new folder in the folder `real` of the store directory `dir`.
    pub fn new(real: &Path, dir: &StoreDir, roots: &TempRoots, cancel: &Cancel) -> Result<Self> {
        loop {
            let path = nursery_path();
            roots.add(dir, &path, cancel)?;
            let folder = real.join(path.as_str());
            DirBuilder::new().mode(0o700).create(&folder).map_err(|e| {
                Error::io(
                    format!("creating a temporary folder in {}", real.display()),
                    e,
                )
            })?;
            // A sweep may have been faster than the lock.
            if let Some(lock) = lock_folder(&folder) {
                return Ok(Nursery {
                    dir: folder,
                    next: AtomicU64::new(0),
                    _lock: lock,
                });
            }
        }
    }

    /// Whether the folder is still there.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// A place for new content.
    pub fn place(self: &Arc<Self>) -> TempPlace {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        TempPlace {
            tree: self.dir.join(n.to_string()),
            _nursery: self.clone(),
        }
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // What is left is swept later.
        let _ = remove_tree(&self.dir);
    }
}

/// A place for content that has no name yet. What is there when it is dropped goes away.
#[derive(Debug)]
pub(crate) struct TempPlace {
    tree: PathBuf,
    _nursery: Arc<Nursery>,
}

impl TempPlace {
    /// Where the content is to be made; there is nothing yet.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Gives the content its name `real`, in place of anything that is there.
    ///
    /// To be called with the output lock of `real` held, and only if it is not valid.
    pub fn publish(&self, real: &Path) -> Result<()> {
        let doing = |e| Error::io(format!("moving new content to {}", real.display()), e);
        remove_left_over(real)?;
        let meta = self.tree.symlink_metadata().map_err(doing)?;
        if !meta.is_dir() {
            return fs::rename(&self.tree, real).map_err(doing);
        }
        // A folder that changes its parent must be writable, but for root.
        fs::set_permissions(&self.tree, Permissions::from_mode(0o755)).map_err(doing)?;
        fs::rename(&self.tree, real).map_err(doing)?;
        fs::set_permissions(real, Permissions::from_mode(0o555)).map_err(doing)
    }

    /// Gives the content the name `real`, and takes what has it now in its place; at once where
    /// the system can do that. When nothing has that name, this is [`TempPlace::publish`].
    ///
    /// To be called with the output lock of `real` held.
    pub fn exchange(&self, real: &Path) -> Result<()> {
        let doing = |e| Error::io(format!("exchanging {} for new content", real.display()), e);
        let there = match real.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.publish(real),
            there => there.map_err(doing)?,
        };
        // Folders that change their parents must be writable, but for root.
        let new = self.tree.symlink_metadata().map_err(doing)?;
        for (meta, path) in [(&there, real), (&new, &*self.tree)] {
            if meta.is_dir() {
                fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(doing)?;
            }
        }
        let flags = RenameFlags::EXCHANGE;
        if renameat_with(CWD, &self.tree, CWD, real, flags).is_err() {
            let exchanged = self.exchange_by_steps(real);
            if exchanged.is_err() && there.is_dir() {
                // It stays, and so does its mode.
                let _ = fs::set_permissions(real, Permissions::from_mode(0o555));
            }
            exchanged.map_err(doing)?;
        }
        if new.is_dir() {
            fs::set_permissions(real, Permissions::from_mode(0o555)).map_err(doing)
        } else {
            Ok(())
        }
    }

    /// For file systems that cannot exchange: for a moment nothing has the name.
    fn exchange_by_steps(&self, real: &Path) -> io::Result<()> {
        let old = self.tree.with_extension("old");
        fs::rename(real, &old)?;
        if let Err(error) = fs::rename(&self.tree, real) {
            fs::rename(&old, real)?;
            return Err(error);
        }
        fs::rename(&old, &self.tree)
    }
}

impl Drop for TempPlace {
    fn drop(&mut self) {
        let _ = remove_left_over(&self.tree);
    }
}

/// Removes what is at `real`, such as the left-over of a process that was killed.
pub(crate) fn remove_left_over(real: &Path) -> Result<()> {
    match real.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => remove_tree(real)
            .map_err(|e| Error::io(format!("removing the left-over {}", real.display()), e)),
    }
}

/// Removes the temporary folders of processes that were killed. What cannot be removed stays.
pub(crate) fn sweep(real: &Path) {
    let Ok(entries) = real.read_dir() else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_str().is_some_and(is_nursery) {
            continue;
        }
        if let Some(_lock) = lock_folder(&entry.path()) {
            let _ = remove_tree(&entry.path());
        }
    }
}

/// A name that no other process and no content has: its digest is made of the rest of the name.
fn nursery_path() -> StorePath {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let since = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_nanos());
    nursery_of(&format!("{PREFIX}{}-{since}-{n}", std::process::id()))
}

fn nursery_of(name: &str) -> StorePath {
    let digest = Hash::digest(Algorithm::Sha256, format!("temporary:{name}").as_bytes());
    let digest: [u8; 20] = digest
        .compress(20)
        .try_into()
        .expect("20 bytes were asked for");
    StorePath::from_digest(&digest, name).expect("the name is made of letters and digits")
}

pub(crate) fn is_nursery(base: &str) -> bool {
    let Ok(path) = StorePath::parse(base) else {
        return false;
    };
    path.name().starts_with(PREFIX) && nursery_of(path.name()) == path
}

/// The lock on the folder `dir`, if it is there and nobody else holds it.
fn lock_folder(dir: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(open(dir, flags, Mode::empty()).ok()?);
    if !try_lock(&file, LockKind::Exclusive).ok()? {
        return None;
    }
    let (ours, there) = (file.metadata().ok()?, dir.symlink_metadata().ok()?);
    (ours.ino() == there.ino() && ours.dev() == there.dev()).then_some(file)
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

const PREFIX: &str = "tk-tmp-";

#[cfg(test)]
mod tests {
    use super::*;

    fn nursery(real: &Path) -> Arc<Nursery> {
        let state = real.join("state");
        fs::create_dir_all(state.join("temproots")).unwrap();
        let (dir, roots) = (StoreDir::default(), TempRoots::of(&state));
        Arc::new(Nursery::new(real, &dir, &roots, &Cancel::default()).unwrap())
    }

    fn entries(real: &Path) -> Vec<PathBuf> {
        let entries = real.read_dir().unwrap().map(|e| e.unwrap().path());
        let mut entries: Vec<_> = entries.filter(|path| !path.ends_with("state")).collect();
        entries.sort();
        entries
    }

    #[test]
    fn goes_away_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let nursery = nursery(dir.path());
        let (one, two) = (nursery.place(), nursery.place());
        fs::create_dir(one.tree()).unwrap();
        fs::write(one.tree().join("file"), "x").unwrap();
        fs::set_permissions(one.tree(), Permissions::from_mode(0o555)).unwrap();
        let tree = one.tree().to_owned();
        drop(one);
        assert!(!tree.exists() && nursery.exists());
        drop(nursery);
        assert_eq!(entries(dir.path()).len(), 1, "the second place needs it");
        drop(two);
        assert_eq!(entries(dir.path()).len(), 0);
    }

    #[test]
    fn sweep_takes_only_what_nobody_holds() {
        let dir = tempfile::tempdir().unwrap();
        let held = nursery(dir.path());
        let stale = nursery_path();
        // Content that somebody named in the same way.
        let content = StorePath::from_digest(&[1; 20], stale.name()).unwrap();
        let others = [content.as_str(), "tmp-1-99", "tk-tmp-1-2-3"].map(|n| dir.path().join(n));
        for folder in others.iter().chain([&dir.path().join(stale.as_str())]) {
            fs::create_dir(folder).unwrap();
        }
        sweep(dir.path());
        let mut expected = Vec::from(others);
        expected.push(held.dir.clone());
        expected.sort();
        assert_eq!(entries(dir.path()), expected);
    }

    #[test]
    fn publish_replaces_left_overs() {
        let dir = tempfile::tempdir().unwrap();
        let nursery = nursery(dir.path());
        let real = dir.path().join("final");
        for left_over in [0, 1, 2] {
            match left_over {
                0 => {}
                1 => fs::write(&real, "old").unwrap(),
                _ => fs::create_dir(&real).unwrap(),
            }
            let place = nursery.place();
            fs::create_dir(place.tree()).unwrap();
            fs::write(place.tree().join("new"), "new").unwrap();
            place.publish(&real).unwrap();
            drop(place);
            assert!(real.join("new").exists());
            assert_eq!(real.metadata().unwrap().mode() & 0o777, 0o555);
            remove_tree(&real).unwrap();
        }
    }

    #[test]
    fn exchange_keeps_what_was_there_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let nursery = nursery(dir.path());
        let real = dir.path().join("final");
        for by_steps in [false, true] {
            fs::create_dir(&real).unwrap();
            fs::write(real.join("old"), "old").unwrap();
            fs::set_permissions(&real, Permissions::from_mode(0o555)).unwrap();
            let place = nursery.place();
            fs::write(place.tree(), "new").unwrap();
            if by_steps {
                place.exchange_by_steps(&real).unwrap()
            } else {
                place.exchange(&real).unwrap()
            }
            assert_eq!(fs::read(&real).unwrap(), b"new");
            assert!(place.tree().join("old").exists());
            place.exchange(&real).unwrap();
            assert!(real.join("old").exists(), "taken back");
            assert_eq!(real.metadata().unwrap().mode() & 0o777, 0o555);
            place.exchange(&real).unwrap();
            let tree = place.tree().to_owned();
            drop(place);
            assert!(!tree.exists());
            fs::remove_file(&real).unwrap();
        }
        // Registered, but gone from the disk.
        let place = nursery.place();
        fs::write(place.tree(), "new").unwrap();
        place.exchange(&real).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("temproots")).unwrap();
        let roots = TempRoots::of(dir.path());
        let real = Path::new("/nonexistent/store");
        let error = Nursery::new(real, &StoreDir::default(), &roots, &Cancel::default());
        let line = error.unwrap_err().to_line();
        assert!(line.contains("/nonexistent/store"), "{line}");
    }
}
