//! An environment as it is kept.

use super::{environment::ShellEnvironment, files};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// An environment that is ready to be entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentEntry {
    /// The digest of what was asked for and of what it was made from; it also names the file of the entry.
    pub key: String,
    /// What was asked for.
    pub name: String,
    /// The flake's folder, or its reference; the file; the path of the store.
    pub location: String,
    /// The attribute; empty is the default one.
    pub attribute: String,
    /// Who evaluated it, such as `Nix 2.34.8`.
    pub nix: String,
    /// When, in seconds since 1970.
    pub made: u64,
    /// Whether it counts as long as its inputs are the same, and not for a while only.
    pub pinned: bool,
    /// What keeps it alive: whole paths of the store.
    pub paths: Vec<String>,
    /// Where these lie on this machine.
    pub places: Vec<PathBuf>,
    /// The variables and bash functions of the environment.
    pub environment: ShellEnvironment,
}

impl EnvironmentEntry {
    pub(super) fn is_shell(&self) -> bool {
        self.environment.variables.contains_key("outputs")
    }

    pub(super) fn counts(&self, key: &str) -> bool {
        let age = Duration::from_secs(files::now().saturating_sub(self.made));
        self.key == key && (self.pinned || age < UNPINNED_FOR)
    }

    /// Whether its paths are in the store.
    pub fn is_there(&self) -> bool {
        let mut places = self.places.iter();
        places.all(|place| fs::symlink_metadata(place).is_ok())
    }
}

pub(super) fn read_entry(file: &Path) -> Option<EnvironmentEntry> {
    let bytes = files::read(file, MAX_ENTRY).ok()??;
    serde_json::from_slice(&bytes).ok()
}

/// Where the structured attributes of the entry `file` lie.
pub(super) fn attrs_file(file: &Path, suffix: &str) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}-attrs.{suffix}"))
}

/// Whether it is the file of an entry, not one of structured attributes.
pub(super) fn is_json(file: &Path) -> bool {
    let is_hex = |stem: &OsStr| stem.len() == 64;
    file.extension().is_some_and(|e| e == "json") && file.file_stem().is_some_and(is_hex)
}

/// How long an environment counts that nothing pins.
pub const UNPINNED_FOR: Duration = Duration::from_secs(3600);
/// Bytes of an entry.
pub(super) const MAX_ENTRY: u64 = 64 << 20;
