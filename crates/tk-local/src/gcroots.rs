//! Roots that outlive processes, and finding all roots.
//!
//! ```text
//! <state>/gcroots/**      a link into the store: a root
//! <state>/profiles/**     a link to a link into the store: a root, by the second link
//!                         a file whose name is that of a store path: a root
//! <state>/gcroots/auto/<nix32 sha1 of the link's name>  ->  a link anywhere, such as result
//! <state>/temproots/<pid> paths, each ended by a NUL, as long as a process holds the lock
//! /proc/<pid>/{exe,cwd,fd/*,maps,environ}, /proc/sys/kernel/*    what running programs use
//! ```
//! What may not be read, or goes away meanwhile, is no root (Nix's `gc.cc`). Beyond Nix, links to where
//! the content really lies count too: those of a store in a folder of its own are of no use otherwise.

use crate::{
    inner::LocalInner,
    lock::{Cancel, LockKind, try_lock},
    roots::TempRoots,
};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
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
        let link = clean(link)?;
        let hash = Hash::digest(Algorithm::Sha1, link.as_os_str().as_bytes());
        let auto = self.config.state.join("gcroots/auto");
        make_link(&auto.join(nix32::encode(hash.as_bytes())), &link, |_| true)
    }

    /// Implements [`tk_store::Roots::add_perm_root`]: makes `link` lead to `path`, and registers it as an
    /// indirect root.
    pub fn add_perm_root(&self, roots: &TempRoots, path: &StorePath, link: &Path) -> Result<()> {
        self.require_writable()?;
        let link = clean(link)?;
        let shown = link.display();
        if self.inside(&link).is_some() {
            return Err(Error::invalid(format!(
                "{shown} cannot be a root: it is in the store itself"
            )));
        }
        roots.add(&self.config.dir, path, &Cancel::default())?;
        if let Ok(there) = link.symlink_metadata()
            && !(there.is_symlink() && self.target_of(&link).is_some())
        {
            return Err(Error::invalid(format!(
                "{shown} is in the way of the link: it exists and does not lead into the store"
            )));
        }
        let target = self.config.dir.path(path);
        make_link(&link, Path::new(&target), |text| {
            self.in_store(text).is_some()
        })?;
        self.add_indirect_root(&link)
    }

    /// Every root whose target is valid.
    pub fn all_roots(&self) -> Result<Vec<Root>> {
        let mut found = BTreeSet::new();
        for folder in ["gcroots", "profiles"] {
            self.walk(&self.config.state.join(folder), DEPTH, &mut found)?;
        }
        self.temporary(&mut found)?;
        self.running(&mut found);
        let targets: BTreeSet<_> = found.iter().map(|root| &root.target).collect();
        let valid = self.db.valid(targets)?;
        let valid = found.into_iter().filter(|r| valid.contains(&r.target));
        Ok(valid.collect())
    }

    fn walk(&self, place: &Path, depth: usize, found: &mut BTreeSet<Root>) -> Result<()> {
        let reading = |e| Error::io(format!("looking for roots in {}", place.display()), e);
        let Some(kind) = gone(place.symlink_metadata()).map_err(reading)? else {
            return Ok(());
        };
        if kind.is_dir() && depth > 0 {
            let Some(entries) = gone(place.read_dir()).map_err(reading)? else {
                return Ok(());
            };
            for entry in entries {
                let entry = entry.map_err(reading)?;
                self.walk(&entry.path(), depth - 1, found)?;
            }
        } else if kind.is_symlink() {
            self.follow(place, found);
        } else if kind.is_file()
            && let Some(name) = place.file_name().and_then(OsStr::to_str)
            && let Ok(target) = StorePath::parse(name)
        {
            found.insert(root(place, target));
        }
        Ok(())
    }

    /// A link into the store, or to a link into the store.
    fn follow(&self, link: &Path, found: &mut BTreeSet<Root>) {
        let Ok(target) = fs::read_link(link) else {
            return;
        };
        if let Some(path) = self.in_store(&target) {
            found.insert(root(link, path));
            return;
        }
        let target = link.parent().unwrap_or(link).join(target);
        if let Some(path) = self.target_of(&target) {
            found.insert(root(&target, path));
        }
    }

    /// The store path that the link at `link` leads to in one step.
    fn target_of(&self, link: &Path) -> Option<StorePath> {
        self.in_store(&fs::read_link(link).ok()?)
    }

    /// The store path in which `place` is.
    fn in_store(&self, place: &Path) -> Option<StorePath> {
        let Some(Component::Normal(name)) = self.inside(place)?.components().next() else {
            return None;
        };
        StorePath::parse(name.to_str()?).ok()
    }

    /// What of `place` is below the store directory, by its name or where it really lies.
    fn inside<'a>(&self, place: &'a Path) -> Option<&'a Path> {
        let dirs = [Path::new(self.config.dir.as_str()), &self.config.real];
        dirs.into_iter()
            .find_map(|dir| place.strip_prefix(dir).ok())
    }

    /// What processes hold while they live.
    fn temporary(&self, found: &mut BTreeSet<Root>) -> Result<()> {
        let folder = self.config.state.join("temproots");
        let reading = |e| Error::io(format!("looking for roots in {}", folder.display()), e);
        let Some(entries) = gone(folder.read_dir()).map_err(reading)? else {
            return Ok(());
        };
        for entry in entries {
            let name = entry.map_err(reading)?.file_name();
            // Anything else is not of a process, nor of a client of one.
            let pid = name.to_str().and_then(|name| name.split('-').next());
            let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else {
                continue;
            };
            let Some(mut file) = gone(File::open(folder.join(&name))).map_err(reading)? else {
                continue;
            };
            // Whose lock can be had is dead.
            if try_lock(&file, LockKind::Shared).map_err(reading)? {
                continue;
            }
            let mut content = Vec::new();
            file.read_to_end(&mut content).map_err(reading)?;
            for path in content.split(|byte| *byte == 0) {
                let path = std::str::from_utf8(path).ok();
                if let Some(Ok(target)) = path.map(|path| self.config.dir.parse_canonical(path)) {
                    let link = format!("{{temp:{pid}}}");
                    found.insert(Root { link, target });
                }
            }
        }
        Ok(())
    }

    /// What running programs use. Of those of other users often nothing can be seen.
    fn running(&self, found: &mut BTreeSet<Root>) {
        let Ok(processes) = Path::new("/proc").read_dir() else {
            return;
        };
        for process in processes.flatten() {
            let is_process = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
            if is_process(&process.file_name()) {
                self.process(&process.path(), found);
            }
        }
        for file in ["modprobe", "fbsplash", "poweroff_cmd"] {
            self.mentioned(&Path::new("/proc/sys/kernel").join(file), found);
        }
    }

    fn process(&self, process: &Path, found: &mut BTreeSet<Root>) {
        let open = process.join("fd").read_dir();
        let open = open.into_iter().flatten().flatten().map(|fd| fd.path());
        for link in open.chain(["exe", "cwd"].map(|name| process.join(name))) {
            if let Some(target) = self.target_of(&link) {
                found.insert(root(&link, target));
            }
        }
        for file in ["maps", "environ"] {
            self.mentioned(&process.join(file), found);
        }
    }

    /// The store paths that the text of `file` mentions.
    fn mentioned(&self, file: &Path, found: &mut BTreeSet<Root>) {
        let Ok(text) = fs::read(file) else { return };
        for dir in [
            self.config.dir.as_str().as_bytes(),
            self.config.real.as_os_str().as_bytes(),
        ] {
            for target in store_paths(&text, dir) {
                found.insert(root(file, target));
            }
        }
    }
}

/// The store paths behind each `dir` in `text`.
fn store_paths(text: &[u8], dir: &[u8]) -> Vec<StorePath> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest
        .windows(dir.len() + 1)
        .position(|window| window.starts_with(dir) && window.ends_with(b"/"))
    {
        rest = &rest[at + dir.len() + 1..];
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte);
        let end = rest.iter().position(|byte| !is_name(byte));
        let name = &rest[..end.unwrap_or(rest.len())];
        let name = std::str::from_utf8(name).expect("it is ASCII");
        found.extend(StorePath::parse(name).ok());
    }
    found
}

fn root(link: &Path, target: StorePath) -> Root {
    let link = link.to_string_lossy().into_owned();
    Root { link, target }
}

/// `None` for what is not there (any more), or is not for us.
fn gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), NotADirectory | NotFound | PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `path` without `.` and `..`, which are taken as they stand (Nix's `canonPath`): its name is hashed.
fn clean(path: &Path) -> Result<PathBuf> {
    if !path.is_absolute() {
        return Err(Error::invalid(format!(
            "{path:?} cannot be a root: its place must be absolute"
        )));
    }
    let mut cleaned = PathBuf::new();
    for step in path.components() {
        match step {
            Component::CurDir => {}
            Component::ParentDir => drop(cleaned.pop()),
            step => cleaned.push(step),
        }
    }
    Ok(cleaned)
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

/// Folders within folders that are looked at; Nix goes on until the stack ends.
const DEPTH: usize = 64;
