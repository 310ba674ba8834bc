//! Folders, tarballs and files. Mirrors `path.cc` and `tarball.cc`.

use super::{FetchError, FetchOptions, FetchedInput, FetchedTree};
use crate::{
    inputs::parse_reference,
    lock::InputAttrs,
    source::{ArchiveTree, InputSourceError, SingleFolder, flat_hash, flat_hash_of, folder_hash},
    url::local_path,
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

impl FetchOptions<'_> {
    pub(super) fn path(&self, wanted: &InputAttrs) -> Result<FetchedInput, FetchError> {
        let text = wanted.text("path").unwrap_or_default();
        let path = Path::new(text);
        if !path.is_absolute() {
            let what = format!("the path '{text}' is relative, and to what is not known");
            return Err(FetchError::Unsupported(what));
        }
        let hash = folder_hash(path)?;
        let mut locked = wanted.clone();
        if !locked.has("lastModified") {
            // A source that is in the store has no time.
            let in_store = self
                .store_dir
                .parse(text)
                .is_ok_and(|path| path.name() == "source");
            let newest = if in_store { 0 } else { newest(path)? };
            locked.set_number("lastModified", newest);
        }
        locked.set_text("narHash", hash.sri());
        Ok(FetchedInput {
            locked,
            tree: FetchedTree::Folder(path.to_owned()),
        })
    }

    pub(super) fn tarball(&self, wanted: &InputAttrs) -> Result<FetchedInput, FetchError> {
        let url = wanted.text("url").unwrap_or_default();
        let mut locked = wanted.clone();
        let mut archive = match local_path(url) {
            Some(path) => ArchiveTree::open(&path, &self.scratch)?,
            None => {
                let loaded = self.download(url, &[])?;
                if let Some(link) = &loaded.immutable_link {
                    locked = parse_reference(link, true).map_err(FetchError::Unsupported)?;
                    if locked.kind() != "tarball" {
                        let what = format!("{url} links to {link}, which is no tarball");
                        return Err(FetchError::Unsupported(what));
                    }
                }
                ArchiveTree::read(loaded.content, &self.scratch, SingleFolder::IsTheTree)?
            }
        };
        if archive.last_modified != 0 && !locked.has("lastModified") {
            locked.set_number("lastModified", archive.last_modified);
        }
        locked.set_text("narHash", archive.nar_hash()?.sri());
        Ok(FetchedInput {
            locked,
            tree: FetchedTree::Archive(archive),
        })
    }

    pub(super) fn file(&self, wanted: &InputAttrs) -> Result<FetchedInput, FetchError> {
        let url = wanted.text("url").unwrap_or_default();
        let hash = match local_path(url) {
            Some(path) => flat_hash(&path)?,
            None => flat_hash_of(self.download(url, &[])?.content)?,
        };
        let mut locked = wanted.clone();
        locked.set_text("narHash", hash.sri());
        Ok(FetchedInput {
            locked,
            tree: FetchedTree::File,
        })
    }
}

/// The newest time of anything in `path`, links as such; seconds since 1970.
fn newest(path: &Path) -> Result<u64, InputSourceError> {
    let (mut newest, mut open) = (0, vec![path.to_owned()]);
    while let Some(path) = open.pop() {
        let of = |e: io::Error| InputSourceError::of("looking at", &path, e);
        let found = fs::symlink_metadata(&path).map_err(of)?;
        newest = newest.max(u64::try_from(found.mtime()).unwrap_or(0));
        if found.is_dir() {
            for entry in fs::read_dir(&path).map_err(of)? {
                open.push(entry.map_err(of)?.path());
            }
        }
    }
    Ok(newest)
}

/// The content of a file in `folder`. Links lead nowhere out of it.
pub(super) fn read_below(
    folder: &Path,
    path: &str,
    max: u64,
) -> Result<Option<Vec<u8>>, InputSourceError> {
    let place: PathBuf = folder.join(path);
    let of = |e: io::Error| InputSourceError::of("reading", &place, e);
    let real = match place.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        real => real.map_err(of)?,
    };
    if !real.starts_with(folder.canonicalize().map_err(of)?) {
        let what = format!("{} is a link that leads out of it", place.display());
        return Err(InputSourceError::Unsupported(what));
    }
    let found = real.metadata().map_err(of)?;
    if found.len() > max || !found.is_file() {
        let what = format!("{} is no file of at most {max} bytes", place.display());
        return Err(InputSourceError::Unsupported(what));
    }
    let mut out = Vec::new();
    let file = File::open(&real).map_err(of)?;
    file.take(max).read_to_end(&mut out).map_err(of)?;
    Ok(Some(out))
}
