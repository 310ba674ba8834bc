//! The directory that store paths are in.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::text::clip;
use crate::{StorePath, StorePathError, StorePathErrorKind};

/// An absolute, canonical store directory; `/nix/store` by default. It is a part of what every store path hashes,
/// so paths of different store directories never mix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(Arc<str>);

impl StoreDir {
    /// The store directory at `path`, which must be absolute; it is made canonical as by [`clean_path`].
    pub fn new(path: &str) -> Result<StoreDir, StoreDirError> {
        let wrong = |why| StoreDirError {
            path: clip(path),
            why,
        };
        if path.contains('\0') {
            return Err(wrong("it contains a NUL byte"));
        }
        match clean_path(path) {
            None => Err(wrong("it is not absolute")),
            Some(clean) if clean == "/" => Err(wrong("the root directory cannot be a store")),
            Some(clean) => Ok(StoreDir(clean.into())),
        }
    }

    /// The path, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a full path as people write it: `//`, `.`, `..` and a slash at the end are cleaned away first. What
    /// lies inside a store path is an error; [`StoreDir::split`] takes it.
    pub fn parse(&self, path: &str) -> Result<StorePath, StorePathError> {
        // Almost every path is clean already, and cleaning does not change those.
        if let Some(base) = self.base(path)
            && let Ok(parsed) = StorePath::parse(base)
        {
            return Ok(parsed);
        }
        let clean = self.clean(path)?;
        match self.base(&clean) {
            Some(base) => StorePath::parse(base).map_err(|e| on_whole(path, e)),
            None => Err(self.not_inside(path)),
        }
    }

    /// Reads a full path that must be exactly the store directory, a slash and the base name, as in derivations.
    pub fn parse_canonical(&self, path: &str) -> Result<StorePath, StorePathError> {
        match self.base(path) {
            Some(base) => StorePath::parse(base).map_err(|e| on_whole(path, e)),
            None => Err(self.not_inside(path)),
        }
    }

    /// The full path.
    pub fn path(&self, path: &StorePath) -> String {
        format!("{}/{path}", self.0)
    }

    /// The full path, written without making a `String`.
    pub fn display<'a>(&'a self, path: &'a StorePath) -> impl fmt::Display + 'a {
        FullPath(self, path)
    }

    /// Splits `/nix/store/<path>/bin/sh` into the store path and the rest below it, here `bin/sh`; the rest is empty
    /// for the store path itself. Cleans like [`StoreDir::parse`], without looking at the file system: a `..` behind
    /// a symbolic link goes to the parent of the link.
    pub fn split(&self, path: &str) -> Result<(StorePath, String), StorePathError> {
        let clean = self.clean(path)?;
        let inside = self.inside(&clean).ok_or_else(|| self.not_inside(path))?;
        let (base, rest) = inside.split_once('/').unwrap_or((inside, ""));
        let parsed = StorePath::parse(base).map_err(|e| on_whole(path, e))?;
        Ok((parsed, rest.to_owned()))
    }

    /// What follows the store directory and its slash.
    fn inside<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&*self.0)?.strip_prefix('/')
    }

    /// What follows the store directory, if that is one name.
    fn base<'a>(&self, path: &'a str) -> Option<&'a str> {
        self.inside(path).filter(|base| !base.contains('/'))
    }

    fn clean<'a>(&self, path: &'a str) -> Result<Cow<'a, str>, StorePathError> {
        clean_path(path).ok_or_else(|| StorePathError::new(path, StorePathErrorKind::Relative))
    }

    fn not_inside(&self, path: &str) -> StorePathError {
        StorePathError::new(path, StorePathErrorKind::NotInStore((*self.0).into()))
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        StoreDir("/nix/store".into())
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreDir({})", self.0)
    }
}

impl FromStr for StoreDir {
    type Err = StoreDirError;

    fn from_str(path: &str) -> Result<Self, StoreDirError> {
        StoreDir::new(path)
    }
}

struct FullPath<'a>(&'a StoreDir, &'a StorePath);

impl fmt::Display for FullPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// A path that cannot be a store directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be the store directory: {why}")]
pub struct StoreDirError {
    path: Box<str>,
    why: &'static str,
}

/// The canonical text of an absolute path, or `None` for a relative one: no `//`, `.` or `..`, no slash at the end.
/// Only the text is looked at, as Nix's `canonPath` does; `..` at the root stays at the root.
pub fn clean_path(path: &str) -> Option<Cow<'_, str>> {
    let parts = path.strip_prefix('/')?;
    if parts.is_empty() || parts.split('/').all(|p| !matches!(p, "" | "." | "..")) {
        return Some(path.into());
    }
    let mut kept = Vec::new();
    for part in parts.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(part),
        }
    }
    Some(format!("/{}", kept.join("/")).into())
}

/// The same error, naming the whole path.
fn on_whole(path: &str, error: StorePathError) -> StorePathError {
    StorePathError::new(path, error.kind().clone())
}
