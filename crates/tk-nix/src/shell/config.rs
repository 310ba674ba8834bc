//! Where environments are kept, and what they see of the machine.

use super::environment::Variables;
use crate::Invocation;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};
use tk_path::StoreDir;

/// Where environments are kept, and what they are entered from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ShellConfig {
    /// The folder for what can be made again.
    pub cache: PathBuf,
    /// The folder for leases and consents.
    pub state: PathBuf,
    /// The system for which nix evaluates, such as `x86_64-linux`.
    pub system: String,
    /// The folder in which relative references begin, and in which commands run.
    pub folder: PathBuf,
    /// The variables that commands have but for the environment's. nix has the `NIX_PATH` among them.
    pub variables: Variables,
    /// The setting `nix-path` of nix.conf, if there is one.
    pub nix_path: Option<String>,
    /// The directory of the store as paths name it, such as `/nix/store`.
    pub dir: StoreDir,
    /// Where the files of the store lie, if not in `dir`.
    pub real_dir: Option<PathBuf>,
}

impl ShellConfig {
    /// Environments in `cache` and `state` for `system`, of what is in `folder`: commands have no variables of
    /// their own, and the store is `/nix/store`.
    pub fn new(cache: PathBuf, state: PathBuf, system: String, folder: PathBuf) -> Self {
        ShellConfig {
            cache,
            state,
            system,
            folder,
            variables: Variables::new(),
            nix_path: None,
            dir: StoreDir::default(),
            real_dir: None,
        }
    }

    pub(super) fn search_path(&self) -> OsString {
        let path = self.variables.get(&OsString::from("PATH"));
        path.cloned().unwrap_or_default()
    }

    pub(super) fn nix_path(&self) -> Option<&OsString> {
        self.variables.get(&OsString::from("NIX_PATH"))
    }

    pub(super) fn with_nix_path(&self, what: Invocation) -> Invocation {
        match self.nix_path() {
            Some(value) => what.env("NIX_PATH", value),
            None => what.without_env("NIX_PATH"),
        }
    }

    /// The folder in which the files of the store lie.
    pub(super) fn real_dir(&self) -> &Path {
        let real = self.real_dir.as_deref();
        real.unwrap_or(Path::new(self.dir.as_str()))
    }

    /// Where files of the store lie.
    pub(super) fn stores(&self) -> Vec<PathBuf> {
        let dir = PathBuf::from(self.dir.as_str());
        let all = [Some(dir), self.real_dir.clone()].into_iter();
        all.flatten().collect()
    }
}
