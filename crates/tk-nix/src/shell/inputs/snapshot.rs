//! The state of all that was looked at.

use crate::shell::{eval_reads::EvalReads, files};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// All that was looked at, in one state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputsSnapshot {
    pub(super) items: BTreeMap<PathBuf, InputItem>,
    /// What nix said it read, which is among the items.
    #[serde(default)]
    pub told: EvalReads,
    /// Whether there was too much of something to watch all of it.
    #[serde(default)]
    pub partial: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputItem {
    /// `None` if it had changed moments before.
    pub(super) state: Option<FileState>,
    pub(super) what: InputKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum InputKind {
    Absent,
    Folder,
    /// A file of git, of which the state counts alone: what it says is noted elsewhere.
    Mark,
    /// One that is not there.
    NoMark,
    /// The commit that is checked out.
    Commit(String),
    /// The hash of its content.
    File(String),
    /// The same of one that can be run.
    Executable(String),
    /// The hash of where it leads.
    Link(String),
    Other,
}

/// What changes when a file does: size, mode, inode, device, and nanoseconds of mtime and ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileState(u64, u32, u64, u64, i64, i64);

impl FileState {
    pub(super) fn of(meta: &Metadata) -> FileState {
        let nanos = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
        FileState(
            meta.size(),
            meta.mode(),
            meta.ino(),
            meta.dev(),
            nanos(meta.mtime(), meta.mtime_nsec()),
            nanos(meta.ctime(), meta.ctime_nsec()),
        )
    }

    /// The state, if it is so old that no further change can have left it the same.
    pub(super) fn settled(self, now: i64) -> Option<FileState> {
        (now - self.newest() > SETTLED.as_nanos() as i64).then_some(self)
    }

    fn newest(self) -> i64 {
        self.4.max(self.5)
    }
}

impl InputsSnapshot {
    /// The files, those too that are not there; not folders.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let files = self.items.iter();
        let files = files.filter(|(_, item)| {
            !matches!(
                item.what,
                InputKind::Folder | InputKind::Other | InputKind::NoMark
            )
        });
        files.map(|(path, _)| path.as_path())
    }

    /// Whether a file that is neither in `before` nor in `left_out` may have changed after `moment`.
    pub fn has_new_since(
        &self,
        before: &InputsSnapshot,
        moment: SystemTime,
        left_out: &[PathBuf],
    ) -> bool {
        let moment = moment.duration_since(SystemTime::UNIX_EPOCH);
        let moment = moment.map_or(0, |moment| moment.as_nanos() as i64) - TICK.as_nanos() as i64;
        let mut new = self.files().filter(|path| {
            let is_known = before.items.contains_key(*path);
            !is_known && !left_out.iter().any(|out| out == path)
        });
        new.any(|path| match fs::symlink_metadata(path) {
            Ok(meta) => FileState::of(&meta).newest() >= moment,
            Err(_) => self.items[path].what != InputKind::Absent,
        })
    }

    /// Whether nothing changed since, as far as states tell.
    pub fn holds(&self) -> bool {
        !self.items.is_empty()
            && self.items.iter().all(|(path, item)| {
                match (fs::symlink_metadata(path), &item.what) {
                    (Err(e), InputKind::Absent | InputKind::NoMark) => is_gone(&e),
                    (Ok(meta), _) => item.state == Some(FileState::of(&meta)),
                    (Err(_), _) => false,
                }
            })
    }

    /// The digest of the content.
    pub fn digest(&self) -> String {
        let parts = self.items.iter().filter_map(|(path, item)| {
            let (kind, hash) = match &item.what {
                InputKind::Folder | InputKind::Mark | InputKind::NoMark => return None,
                InputKind::Absent => ("absent", ""),
                InputKind::Commit(commit) => ("commit", commit.as_str()),
                InputKind::Executable(hash) => ("executable", hash.as_str()),
                InputKind::File(hash) => ("file", hash.as_str()),
                InputKind::Link(hash) => ("link", hash.as_str()),
                InputKind::Other => ("other", ""),
            };
            Some([
                path.as_os_str().as_bytes(),
                kind.as_bytes(),
                hash.as_bytes(),
            ])
        });
        files::digest(parts.flatten())
    }

    /// What of it is in `other` too, and the same there.
    pub fn is_kept_in(&self, other: &InputsSnapshot, left_out: &[PathBuf]) -> bool {
        let counts = |kind: &InputKind| {
            !matches!(
                kind,
                InputKind::Folder | InputKind::Mark | InputKind::NoMark
            )
        };
        let mine = self.items.iter();
        let mut mine = mine.filter(|(path, item)| counts(&item.what) && !left_out.contains(path));
        mine.all(|(path, item)| other.items.get(path).is_some_and(|o| o.what == item.what))
    }
}

/// Whether it says that something is not there: a part of its path may be a file now.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    kinds.contains(&error.kind())
}

/// How old a change must be for the next one to show: clocks of file systems tick this slowly.
const SETTLED: Duration = Duration::from_secs(2);
/// How far the times that a file system notes may be behind the clock.
const TICK: Duration = Duration::from_millis(20);
