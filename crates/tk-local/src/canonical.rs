//! What everything in a store has alike: modes, times, owner, and no extended attributes.

use rustix::{
    fs::{Timespec, Timestamps, llistxattr},
    io::Errno,
};
use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use tk_store::{Error, Result};

/// What is not canonical of the tree at `real` in a store directory, in a sentence that names the first
/// file that differs.
pub(crate) fn deviation(real: &Path) -> Result<Option<String>> {
    let owner = real.parent().map(Path::metadata).transpose();
    let owner = owner.map_err(|e| Error::io(format!("looking above {}", real.display()), e))?;
    let owner = owner.map(|meta| meta.uid());
    let mut left = vec![real.to_owned()];
    while let Some(path) = left.pop() {
        let looked = look(&path, owner, &mut left);
        let wrong = looked.map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
        if let Some(wrong) = wrong {
            return Ok(Some(format!("'{}' {wrong}", path.display())));
        }
    }
    Ok(None)
}

fn look(path: &Path, owner: Option<u32>, left: &mut Vec<PathBuf>) -> io::Result<Option<String>> {
    let meta = path.symlink_metadata()?;
    if meta.is_dir() {
        for entry in path.read_dir()? {
            left.push(entry?.path());
        }
    }
    Ok(wrong_metadata(&meta, owner).or(attribute(path)?))
}

fn wrong_metadata(meta: &Metadata, owner: Option<u32>) -> Option<String> {
    let mode = meta.mode() & 0o7777;
    let modes: &[u32] = match meta.file_type() {
        kind if kind.is_symlink() => &[mode],
        kind if kind.is_dir() => &[0o555],
        _ => &[0o444, 0o555],
    };
    if !modes.contains(&mode) {
        return Some(format!("has mode {mode:o}, not {:o}", modes[0]));
    }
    if (meta.mtime(), meta.mtime_nsec()) != (STORE_TIME.tv_sec, STORE_TIME.tv_nsec) {
        let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
        return Some(format!("was modified at {seconds}.{nanos:09}, not 1"));
    }
    match owner {
        Some(owner) if owner != meta.uid() => {
            Some(format!("belongs to user {}, not {owner}", meta.uid()))
        }
        _ => None,
    }
}

/// An extended attribute that Nix would have removed.
fn attribute(path: &Path) -> io::Result<Option<String>> {
    let mut names = vec![0; 1024];
    let length = loop {
        match llistxattr(path, &mut names) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < MAX_NAMES => names.resize(names.len() * 4, 0),
            // The file system has none.
            Err(Errno::OPNOTSUPP) => break 0,
            Err(error) => return Err(error.into()),
        }
    };
    let mut names = names[..length].split(|byte| *byte == 0);
    let strange = names.find(|name| !name.is_empty() && !IGNORED.contains(name));
    Ok(strange.map(|name| format!("has the attribute {}", name.escape_ascii())))
}

/// The times that everything in a store has.
pub(crate) const CANONICAL_TIMES: Timestamps = Timestamps {
    last_access: STORE_TIME,
    last_modification: STORE_TIME,
};
const STORE_TIME: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Nix's default of `ignored-acls`.
const IGNORED: [&[u8]; 3] = [b"security.csm", b"security.selinux", b"system.nfs4_acl"];
/// Bytes; Linux has no longer lists.
const MAX_NAMES: usize = 64 << 10;
