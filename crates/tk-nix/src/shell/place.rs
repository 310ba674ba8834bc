//! Where flakes and files of Nix code lie, as Nix reads their names.

use crate::{Cause, InstallableSource, NixFailure, Result};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tk_path::StoreDir;

/// Where a flake comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FlakePlace {
    /// A folder of this machine.
    Local(LocalFlake),
    /// Somewhere else: what is behind the reference may change unless it is `pinned`.
    Far {
        /// Whether it names content.
        pinned: bool,
    },
}

/// A flake in a folder of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalFlake {
    /// The folder of flake.nix.
    pub(super) flake: PathBuf,
    /// The folder that evaluation sees: of a git repository all.
    pub(super) tree: PathBuf,
    /// Whether it sees only what git has of that.
    pub(super) is_tracked: bool,
}

impl LocalFlake {
    /// Where flake.nix lies in the tree.
    pub(super) fn file(&self) -> PathBuf {
        let folder = self.flake.strip_prefix(&self.tree);
        folder.unwrap_or(Path::new("")).join("flake.nix")
    }
}

impl FlakePlace {
    /// Where `reference` leads, as Nix reads it, beginning in `folder`.
    pub(super) fn of(reference: &str, folder: &Path) -> Result<FlakePlace> {
        let (base, query) = reference.split_once('?').unwrap_or((reference, ""));
        let query: BTreeMap<_, _> = query.split('&').filter_map(|p| p.split_once('=')).collect();
        let git = base.strip_prefix("git+file:");
        let path = match (git, base.strip_prefix("path:")) {
            (Some(rest), _) => rest.strip_prefix("//").unwrap_or(rest),
            (_, Some(rest)) => rest,
            _ if base.is_empty() || base.starts_with(['.', '/']) => base,
            _ => "",
        };
        let is_local = !path.is_empty() || base.is_empty();
        let pinned = is_pinned(base, &query);
        // A branch or a commit is not what lies in the folder.
        if !is_local || query.contains_key("rev") || query.contains_key("ref") {
            return Ok(FlakePlace::Far { pinned });
        }
        let path = folder.join(path);
        let tree = path.canonicalize().map_err(|error| {
            let words = format!("there is no flake {}: {error}", path.display());
            NixFailure::new(Cause::Misused, words)
        })?;
        let is_path = base.starts_with("path:");
        let flake = match query.get("dir") {
            Some(dir) => tree.join(dir),
            None if is_path || git.is_some() => tree.clone(),
            None => upwards(&tree, "flake.nix").unwrap_or_else(|| tree.clone()),
        };
        let repository = upwards(&flake, ".git").filter(|_| !is_path);
        let is_tracked = repository.is_some();
        let own = if is_path && flake.starts_with(&tree) {
            tree
        } else {
            flake.clone()
        };
        let tree = repository.unwrap_or(own);
        Ok(FlakePlace::Local(LocalFlake {
            flake,
            tree,
            is_tracked,
        }))
    }
}

/// Where a file of Nix code lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FilePlace {
    /// On this machine: the file or the folder of a default.nix, links resolved.
    Local(PathBuf),
    /// In the search path: `<nixpkgs>`.
    Searched,
    /// At an address, such as `https://` or `channel:`.
    Far,
}

impl FilePlace {
    /// Where `file` leads, as Nix reads it, beginning in `folder`.
    pub(super) fn of(file: &Path, folder: &Path) -> Result<FilePlace> {
        let text = file.to_string_lossy();
        if text.starts_with('<') && text.ends_with('>') {
            return Ok(FilePlace::Searched);
        }
        if is_address(&text) {
            return Ok(FilePlace::Far);
        }
        let place = folder.join(file).canonicalize().map_err(|error| {
            let words = format!("there is no file {}: {error}", file.display());
            NixFailure::new(Cause::Misused, words)
        })?;
        Ok(FilePlace::Local(place))
    }
}

/// Whether Nix takes `text` for an address where a path could be.
fn is_address(text: &str) -> bool {
    text.contains("://") || text.starts_with("channel:") || text.starts_with("flake:")
}

/// Where the places of a search path such as `nixpkgs=/a:/b` lead now, links resolved, and whether
/// there are addresses among them.
pub(super) fn search_path(text: &str, folder: &Path) -> (Vec<PathBuf>, bool) {
    let places = text.split(':').map(|part| match part.split_once('=') {
        Some((_, place)) => place,
        None => part,
    });
    let far = text.contains("://") || places.clone().any(|p| ["channel", "flake"].contains(&p));
    // The rest of an address.
    let places = places.filter(|place| !place.is_empty() && !place.starts_with("//"));
    let places = places.filter_map(|place| folder.join(place).canonicalize().ok());
    (places.collect(), far)
}

/// The folder that holds `name`: `folder` or the nearest one that it lies in.
fn upwards(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut all = folder.ancestors();
    all.find(|folder| folder.join(name).exists())
        .map(Path::to_owned)
}

fn is_pinned(base: &str, query: &BTreeMap<&str, &str>) -> bool {
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    query.get("rev").is_some_and(|rev| is_commit(rev))
        || query.contains_key("narHash")
        || base.rsplit('/').next().is_some_and(is_commit)
}

/// What a consent is bound to: the folder in which a flake lies, the file, the path of the store; of what
/// lies elsewhere how it was named.
pub(super) fn location(source: &InstallableSource, folder: &Path) -> Result<String> {
    Ok(match source {
        InstallableSource::Flake(reference) => match FlakePlace::of(reference, folder)? {
            FlakePlace::Local(local) => local.flake.to_string_lossy().into_owned(),
            FlakePlace::Far { .. } => reference.clone(),
        },
        InstallableSource::File(file) => match FilePlace::of(file, folder)? {
            FilePlace::Local(place) => place.to_string_lossy().into_owned(),
            _ => file.to_string_lossy().into_owned(),
        },
        // Code may name files by where it is evaluated.
        InstallableSource::Expr(code) => format!("{}: {code}", folder.display()),
        InstallableSource::Store(path) => path.display(&StoreDir::default()).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn places() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let sub = root.join("a/b");
        fs::create_dir_all(&sub).unwrap();
        fs::write(root.join("flake.nix"), "").unwrap();
        let place = |flake: &Path, tree: &Path, is_tracked| {
            FlakePlace::Local(LocalFlake {
                flake: flake.into(),
                tree: tree.into(),
                is_tracked,
            })
        };
        let found = |text: &str| FlakePlace::of(text, &sub).unwrap();
        assert_eq!(found("."), place(&root, &root, false), "flake.nix is above");
        assert_eq!(found("path:."), place(&sub, &sub, false));
        let with_dir = format!("path:{}?dir=a/b", root.display());
        assert_eq!(found(&with_dir), place(&sub, &root, false));
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(sub.join("flake.nix"), "").unwrap();
        assert_eq!(
            found("."),
            place(&sub, &root, true),
            "a repository is seen whole"
        );
        assert_eq!(
            found(&format!("git+file://{}", root.display())),
            place(&root, &root, true)
        );
        let commit = "0123456789012345678901234567890123456789";
        for (text, pinned) in [
            ("nixpkgs".to_owned(), false),
            ("github:a/b".to_owned(), false),
            (format!("github:a/b/{commit}"), true),
            (format!("git+https://x/y?rev={commit}"), true),
            ("https://x/y.tar.gz?narHash=sha256-x".to_owned(), true),
            (format!("git+file://{}?ref=main", root.display()), false),
        ] {
            assert_eq!(found(&text), FlakePlace::Far { pinned }, "{text}");
        }
        assert!(FlakePlace::of("./nowhere", &sub).is_err());
    }

    #[test]
    fn places_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(root.join("real/shell.nix"), "").unwrap();
        std::os::unix::fs::symlink("real/shell.nix", root.join("link.nix")).unwrap();
        std::os::unix::fs::symlink("real", root.join("folder")).unwrap();
        let file = FilePlace::Local(root.join("real/shell.nix"));
        for (text, place) in [
            ("link.nix", file.clone()),
            ("./folder/shell.nix", file),
            ("folder", FilePlace::Local(root.join("real"))),
            ("<nixpkgs>", FilePlace::Searched),
            ("channel:nixos-unstable", FilePlace::Far),
            ("https://x/y.tar.gz", FilePlace::Far),
        ] {
            let found = FilePlace::of(Path::new(text), &root).unwrap();
            assert_eq!(found, place, "{text}");
        }
        assert!(FilePlace::of(Path::new("nowhere.nix"), &root).is_err());

        for (text, places, far) in [
            ("folder", &["real"][..], false),
            ("a=folder:b=nowhere:real", &["real", "real"], false),
            ("nixpkgs=https://x/y.tar.gz:a=folder", &["real"], true),
            ("nixpkgs=channel:nixos-unstable", &[], true),
            ("nixpkgs=flake:nixpkgs", &[], true),
            ("", &[], false),
        ] {
            let places: Vec<_> = places.iter().map(|place| root.join(place)).collect();
            assert_eq!(search_path(text, &root), (places, far), "{text}");
        }
    }
}
