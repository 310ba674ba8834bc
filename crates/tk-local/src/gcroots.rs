//! Roots that outlive processes.
//!
//! ```text
//! <state>/gcroots/**, <state>/profiles/**
//!                         a link into the store, or to a link into the store: a root
//!                         a file whose name is that of a store path: a root
//! <state>/gcroots/auto/<nix32 sha1 of the link's name>  ->  a link anywhere, such as result
//! <state>/temproots/<pid> paths, each ended by a NUL, as long as a process holds the lock
//! /proc/<pid>/{exe,cwd,fd/*,maps,environ}, /proc/sys/kernel/*    what running programs use
//! ```
//! They are made here and found by [`found_roots`](crate::found_roots).

use crate::{
    found_roots::{StoreFolders, is_gone},
    inner::LocalInner,
    lock::Cancel,
    roots::TempRoots,
};
use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};
use tk_nar::fs::replace_link;
use tk_path::{Algorithm, Hash, StorePath, nix32};
use tk_store::{Error, Result, Root};

impl LocalInner {
    /// Implements [`tk_store::Roots::add_indirect_root`]: makes a link to `link` in `gcroots/auto`.
    pub fn add_indirect_root(&self, link: &Path) -> Result<()> {
        self.require_writable()?;
        let link = clean_absolute(link)?;
        make_link(&self.auto_link(&link), &link, |_| true)
    }

    /// The link in `gcroots/auto` that makes a root of `link`, which is clean.
    fn auto_link(&self, link: &Path) -> PathBuf {
        let hash = Hash::digest(Algorithm::Sha1, link.as_os_str().as_bytes());
        let auto = self.config.state.join("gcroots/auto");
        auto.join(nix32::encode(hash.as_bytes()))
    }

    /// Implements [`tk_store::Roots::add_perm_root`]: makes `link` lead to `path`, and registers it as an
    /// indirect root.
    pub fn add_perm_root(&self, roots: &TempRoots, path: &StorePath, link: &Path) -> Result<()> {
        self.require_writable()?;
        let link = clean_absolute(link)?;
        let shown = link.display();
        let folders = StoreFolders::of(&self.config);
        let leads_into_store = |text: &Path| folders.path(text.as_os_str().as_bytes()).is_some();
        if folders.hold(link.as_os_str().as_bytes()) {
            return Err(Error::invalid(format!(
                "{shown} cannot be a root: it is in the store itself"
            )));
        }
        roots.add(&self.config.dir, path, &Cancel::default())?;
        if let Ok(there) = link.symlink_metadata()
            && !(there.is_symlink() && fs::read_link(&link).is_ok_and(|t| leads_into_store(&t)))
        {
            return Err(Error::invalid(format!(
                "{shown} is in the way of the link: it exists and does not lead into the store"
            )));
        }
        let target = self.config.dir.path(path);
        make_link(&link, Path::new(&target), leads_into_store)?;
        self.add_indirect_root(&link)
    }

    /// Every root whose target is valid, and what could not be looked at.
    pub fn all_roots(&self) -> Result<(Vec<Root>, Vec<Error>)> {
        let found = self.find_roots();
        let valid = self.db.valid(found.targets())?;
        let all = found.roots.into_iter().chain(found.temporary);
        let all = all.filter(|root| valid.contains(&root.target));
        Ok((all.collect(), found.unknown))
    }

    /// Implements [`tk_store::Roots::forget_indirect_root`].
    pub fn forget_indirect_root(&self, link: &Path) -> Result<bool> {
        self.require_writable()?;
        let auto = self.auto_link(&clean_absolute(link)?);
        match fs::remove_file(&auto) {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(Error::io(format!("removing {}", auto.display()), error)),
        }
    }
}

/// `path` in the form in which its name is hashed.
fn clean_absolute(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(clean(path));
    }
    Err(Error::invalid(format!(
        "{path:?} cannot be a root: its place must be absolute"
    )))
}

/// `path` without `.`, `..` and doubled slashes, which are taken as they stand (Nix's `canonPath`).
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for step in path.components() {
        match step {
            Component::CurDir => {}
            Component::ParentDir => drop(cleaned.pop()),
            step => cleaned.push(step),
        }
    }
    cleaned
}

/// Makes `link` point to `target`, in one step if a link is there that `may_replace` lets go.
fn make_link(link: &Path, target: &Path, may_replace: impl Fn(&Path) -> bool) -> Result<()> {
    let make = || -> io::Result<()> {
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder)?;
        }
        replace_link(link, target, may_replace)
    };
    make().map_err(|e| Error::io(format!("making the link {}", link.display()), e))
}
