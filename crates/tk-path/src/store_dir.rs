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
        if let Some(inside) = self.inside(path)
            && let Ok(parsed) = StorePath::parse(inside)
        {
            return Ok(parsed);
        }
        let clean = self.clean(path)?;
        self.parse_canonical(&clean)
            .map_err(|error| on_whole(path, error))
    }

    /// Reads a full path that must be exactly the store directory, a slash and the base name, as in derivations.
    pub fn parse_canonical(&self, path: &str) -> Result<StorePath, StorePathError> {
        let Some(inside) = self.inside(path) else {
            return Err(self.not_inside(path));
        };
        StorePath::parse(inside).map_err(|error| {
            if inside.contains('/') {
                self.not_inside(path)
            } else {
                on_whole(path, error)
            }
        })
    }

    /// Returns the full path of `path`: the store directory, a slash and the base name.
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

    /// As [`StoreDir::split`], of a path whose names below the store path may be any bytes.
    pub fn split_bytes(&self, path: &[u8]) -> Result<(StorePath, Vec<u8>), StorePathError> {
        if let Ok(text) = str::from_utf8(path) {
            let (parsed, rest) = self.split(text)?;
            return Ok((parsed, rest.into_bytes()));
        }
        let lossy = String::from_utf8_lossy(path);
        let not_inside = || self.not_inside(&lossy);
        let mut kept: Vec<&[u8]> = Vec::new();
        for part in path
            .strip_prefix(b"/")
            .ok_or_else(not_inside)?
            .split(|b| *b == b'/')
        {
            match part {
                b"" | b"." => {}
                b".." => drop(kept.pop()),
                _ => kept.push(part),
            }
        }
        let clean = kept.join(&b'/');
        let dir = self.0.as_bytes().strip_prefix(b"/");
        let inside = dir.and_then(|dir| clean.strip_prefix(dir)?.strip_prefix(b"/"));
        let mut parts = inside.ok_or_else(not_inside)?.splitn(2, |b| *b == b'/');
        let base = parts.next().and_then(|base| str::from_utf8(base).ok());
        let parsed = StorePath::parse(base.ok_or_else(not_inside)?);
        let rest = parts.next().unwrap_or_default().to_vec();
        Ok((parsed.map_err(|e| on_whole(&lossy, e))?, rest))
    }

    /// What follows the store directory and its slash.
    fn inside<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&*self.0)?.strip_prefix('/')
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lenient_and_canonical() {
        let dir = StoreDir::default();
        let good = format!("/nix/store/{BASE}");
        assert_eq!(dir.parse(&good).map(|p| dir.path(&p)), Ok(good.clone()));
        assert_eq!(
            dir.parse_canonical(&good)
                .map(|p| dir.display(&p).to_string()),
            Ok(good)
        );
        for path in [
            "/nix/store/B/",
            "/nix/store//B",
            "/nix/store/./B",
            "/nix/x/../store/B",
            "/../nix/store/B",
        ] {
            let path = path.replace('B', BASE);
            assert!(dir.parse(&path).is_ok(), "{path}");
            assert!(dir.parse_canonical(&path).is_err(), "{path}");
        }
        for path in [
            "",
            "B",
            "/foo/B",
            "/nix/store",
            "/nix/store/",
            "/nix/store/B/bin/sh",
            "/nix/storeB",
            "/nix/store/..",
        ] {
            let path = path.replace('B', BASE);
            assert!(dir.parse(&path).is_err(), "{path}");
            assert!(dir.parse_canonical(&path).is_err(), "{path}");
        }
        let error = dir
            .parse("/gnu/store/x")
            .expect_err("other directory")
            .to_string();
        assert_eq!(
            error,
            "\"/gnu/store/x\" is not a store path: it is not directly in the store directory /nix/store"
        );
        let error = dir
            .parse("/nix/store/foo")
            .expect_err("too short")
            .to_string();
        assert!(
            error.starts_with("\"/nix/store/foo\" is not a store path: its base name has 3 bytes"),
            "{error}"
        );
    }

    #[test]
    fn splitting() {
        let dir = StoreDir::new("/my//store/../store/").expect("store directory");
        assert_eq!(dir.as_str(), "/my/store");
        for (path, rest) in [
            ("B", ""),
            ("B/", ""),
            ("B/bin/sh", "bin/sh"),
            ("B//a/./b/../c/", "a/c"),
        ] {
            let path = format!("/my/store/{}", path.replace('B', BASE));
            assert_eq!(
                dir.split(&path),
                Ok((StorePath::parse(BASE).expect("path"), rest.to_owned())),
                "{path}"
            );
            let named = [path.as_bytes(), b"/caf\xe9/../caf\xe9"].concat();
            let below = [rest.as_bytes(), b"/caf\xe9"].concat();
            let below = below.strip_prefix(b"/").unwrap_or(&below).to_vec();
            let found = dir.split_bytes(&named);
            assert_eq!(found, Ok((StorePath::parse(BASE).expect("path"), below)));
        }
        for path in [&b"/my/store/caf\xe9"[..], b"/other/\xe9", b"\xe9"] {
            assert!(dir.split_bytes(path).is_err(), "{path:?}");
        }
        for path in [
            "/my/store",
            "/my/store/B/..",
            "/my/store/foo/bin",
            "/nix/store/B",
            "B/bin",
        ] {
            let path = path.replace('B', BASE);
            assert!(dir.split(&path).is_err(), "{path}");
        }
    }

    #[test]
    fn directories() {
        for (path, says) in [
            ("", "absolute"),
            ("nix/store", "absolute"),
            ("/", "root"),
            ("/a/..", "root"),
            ("/a\0", "NUL"),
        ] {
            let error = StoreDir::new(path).expect_err(path).to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(clean_path("/"), Some("/".into()));
        assert_eq!(clean_path("/../a/b/.././/c/"), Some("/a/c".into()));
        assert_eq!(clean_path("a/b"), None);
    }

    proptest! {
        #[test]
        fn cleaning_twice_is_cleaning_once(path in "/[a./]{0,20}") {
            let clean = clean_path(&path).expect("absolute").into_owned();
            prop_assert_eq!(clean_path(&clean), Some(clean.as_str().into()));
            prop_assert!(clean == "/" || clean[1..].split('/').all(|p| !matches!(p, "" | "." | "..")));
        }
    }

    const BASE: &str = "n5wkd9frr45pa74if5gpz9j7mifg27fh-foo";
}
