//! The entries of one directory, sorted as an archive wants them.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;

use super::{CASE_HACK_SUFFIX, CaseHack};

/// Names of a directory in one buffer, in archive order.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Each name as on disk, followed by NUL.
    bytes: Vec<u8>,
    entries: Vec<NameEntry>,
}

#[derive(Debug, Clone, Copy)]
struct NameEntry {
    /// The first bytes of the archive name, big endian: most comparisons need no more.
    key: u64,
    start: usize,
    /// Length on disk and in the archive; with the case hack the latter can be less.
    length: u16,
    shown: u16,
    kind: FileType,
}

impl Names {
    /// Reads all entries of `directory` but `.` and `..`, unsorted.
    pub(super) fn read(directory: &OwnedFd) -> io::Result<Self> {
        let mut names = Names::default();
        each_entry(directory, |name, kind| names.push(name, kind))?;
        Ok(names)
    }

    /// Sorts by archive name. With the case hack, an `Err` carries two disk names that mean the same.
    pub(super) fn sort(&mut self, hack: CaseHack) -> Result<(), (Vec<u8>, Vec<u8>)> {
        for entry in &mut self.entries {
            let name = &self.bytes[entry.start..entry.start + usize::from(entry.length)];
            if hack == CaseHack::On
                && let Some(at) = find(name, CASE_HACK_SUFFIX)
            {
                entry.shown = at as u16;
            }
            entry.key = prefix(&name[..usize::from(entry.shown)]);
        }
        let bytes = &self.bytes;
        let shown = |entry: &NameEntry| &bytes[entry.start..entry.start + usize::from(entry.shown)];
        self.entries
            .sort_unstable_by(|a, b| a.key.cmp(&b.key).then_with(|| shown(a).cmp(shown(b))));
        if hack == CaseHack::On
            && let Some(twins) = self
                .entries
                .windows(2)
                .find(|pair| shown(&pair[0]) == shown(&pair[1]))
        {
            let name = |entry: &NameEntry| {
                bytes[entry.start..entry.start + usize::from(entry.length)].to_vec()
            };
            return Err((name(&twins[0]), name(&twins[1])));
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn kind(&self, index: usize) -> FileType {
        self.entries[index].kind
    }

    pub(super) fn set_kind(&mut self, index: usize, kind: FileType) {
        self.entries[index].kind = kind;
    }

    /// The name as it is on disk.
    pub(super) fn on_disk(&self, index: usize) -> &CStr {
        let NameEntry { start, length, .. } = self.entries[index];
        CStr::from_bytes_with_nul(&self.bytes[start..=start + usize::from(length)])
            .unwrap_or_default()
    }

    /// The name as it is in the archive.
    pub(super) fn in_archive(&self, index: usize) -> &[u8] {
        let NameEntry { start, shown, .. } = self.entries[index];
        &self.bytes[start..start + usize::from(shown)]
    }

    fn push(&mut self, name: &CStr, kind: FileType) {
        let text = name.to_bytes();
        if matches!(text, b"." | b"..") {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.to_bytes_with_nul());
        let length = text.len() as u16;
        self.entries.push(NameEntry {
            key: 0,
            start,
            length,
            shown: length,
            kind,
        });
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn each_entry(directory: &OwnedFd, mut take: impl FnMut(&CStr, FileType)) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = rustix::fs::RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        take(entry.file_name(), entry.file_type());
    }
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn each_entry(directory: &OwnedFd, mut take: impl FnMut(&CStr, FileType)) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        take(entry.file_name(), entry.file_type());
    }
    Ok(())
}

fn prefix(name: &[u8]) -> u64 {
    let mut key = [0; 8];
    let length = name.len().min(8);
    key[..length].copy_from_slice(&name[..length]);
    u64::from_be_bytes(key)
}

pub(super) fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
