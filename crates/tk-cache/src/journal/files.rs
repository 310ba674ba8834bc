//! The files of a journal: one for each process, locked while it lives.

use super::events::JournalEvent;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_path::{Algorithm, Encoding, Hash};
use tk_store::{Error, Result};

/// The file of this process.
#[derive(Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    /// Whether the last line may be cut off.
    torn: bool,
}

impl JournalFile {
    pub(super) fn create(folder: &Path, stem: &str) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| doing("making", folder, e))?;
        for attempt in 0..ATTEMPTS {
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH);
            let nanos = nanos.map_or(0, |since| since.as_nanos());
            let name = format!("{stem}-{}-{nanos}-{attempt}{SUFFIX}", process::id());
            let path = folder.join(name);
            let file = match new_file(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(doing("making", &path, e)),
            };
            // Before it was locked another process may have taken it for a dead one's.
            if lock(&file).map_err(|e| doing("locking", &path, e))? && is_linked(&file) {
                let torn = false;
                return Ok(JournalFile { path, file, torn });
            }
        }
        Err(doing(
            "making a journal in",
            folder,
            io::ErrorKind::AlreadyExists.into(),
        ))
    }

    /// From now on it is written there.
    #[cfg(test)]
    pub(super) fn write_to(&mut self, file: File) {
        self.file = file;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn append(&mut self, event: &JournalEvent) -> Result<()> {
        let mut line = event.to_line();
        if self.torn {
            // Ends the torn line, so that only that one is lost.
            line.insert(0, '\n');
        }
        self.torn = true;
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|e| doing("writing", &self.path, e))?;
        self.torn = false;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        let synced = self.file.sync_data();
        synced.map_err(|e| doing("writing", &self.path, e))
    }

    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(doing("removing", &self.path, e)),
            _ => Ok(()),
        }
    }
}

/// The file of a process that has died, locked by this one.
#[derive(Debug)]
pub(super) struct Dead {
    path: PathBuf,
    file: File,
    old: bool,
}

impl Dead {
    pub(super) fn events(&self) -> impl Iterator<Item = JournalEvent> + '_ {
        read(&self.file)
    }

    /// Whether it is too old for what it says to be of use.
    pub(super) fn is_old(&self) -> bool {
        self.old
    }

    pub(super) fn remove(self) {
        // If it stays it is taken over once more, which changes nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// The files of dead processes about the cache `stem`. Those about other caches, if they are older
/// than `kept`, are removed on the way.
pub(super) fn dead(folder: &Path, stem: &str, own: &Path, kept: Duration) -> Vec<Dead> {
    let mut dead = Vec::new();
    for (path, ours) in journals(folder, stem, own) {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let old = is_old(&file, kept);
        // What cannot be locked is alive.
        // Between opening and locking, another process may have taken it over and removed it.
        if (ours || old) && matches!(lock(&file), Ok(true)) && is_linked(&file) {
            let file = Dead { path, file, old };
            if ours {
                dead.push(file);
            } else {
                file.remove();
            }
        }
    }
    dead
}

/// The events of the other files about the cache `stem`.
pub(super) fn others(folder: &Path, stem: &str, own: &Path) -> Vec<JournalEvent> {
    let ours = journals(folder, stem, own).filter(|(_, ours)| *ours);
    let files = ours.filter_map(|(path, _)| File::open(path).ok());
    files
        .flat_map(|file| read(&file).collect::<Vec<_>>())
        .collect()
}

/// What the names of the files about a cache start with.
pub(super) fn stem(identity: &str) -> String {
    let mut digits = Hash::digest(Algorithm::Sha256, identity.as_bytes()).digits(Encoding::Nix32);
    digits.truncate(32);
    digits
}

/// All journals in the folder but `own`, and whether each is about the cache `stem`.
fn journals<'a>(
    folder: &Path,
    stem: &'a str,
    own: &'a Path,
) -> impl Iterator<Item = (PathBuf, bool)> + 'a {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_str()?;
        let ours = name
            .strip_prefix(stem)
            .is_some_and(|rest| rest.starts_with('-'));
        (name.ends_with(SUFFIX) && path != own).then_some((path, ours))
    })
}

fn new_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    // Whoever has the id of an upload may not do anything with it, but need not know it either.
    options.append(true).create_new(true).mode(0o600).open(path)
}

/// The events of a file, without what is torn. A line of any length costs at most its limit.
pub(super) fn read<'a>(file: impl Read + 'a) -> impl Iterator<Item = JournalEvent> + 'a {
    let mut lines = BufReader::new(file);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(MAX_LINE);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line),
        }
    })
    .filter_map(|line| JournalEvent::from_line(line.strip_suffix(b"\n")?))
}

/// False if somebody else holds it.
fn lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_linked(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

fn is_old(file: &File, kept: Duration) -> bool {
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > kept)
}

fn doing(what: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{what} {}", path.display()), error)
}

const SUFFIX: &str = ".journal";

/// Bytes of the longest line that is read.
const MAX_LINE: u64 = 64 << 10;

/// Names that are tried for a new file.
const ATTEMPTS: usize = 100;
