//! What is to be entered, as people name it.

use crate::{Cause, EvalOptions, Installable, InstallableSource, NixFailure, Result};
use std::{collections::BTreeSet, path::PathBuf};
use tk_path::{DerivedPath, StoreDir, StorePath};
use tk_store::lease::LeaseOptions;

/// What is to be entered.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WantedEnvironment {
    /// The environment itself: a shell for development, or a set of packages.
    pub what: EnvironmentKind,
    /// How it is evaluated. Its folder is that of the [`ShellConfig`](super::ShellConfig).
    pub eval: EvalOptions,
    /// Files and folders that it depends on, beside those that are found.
    pub watch: Vec<PathBuf>,
    /// Evaluate, whatever is known.
    pub refresh: bool,
    /// How long it is kept, and for whom.
    pub lease: LeaseOptions,
}

/// A kind of environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvironmentKind {
    /// That in which a derivation is built, as `nix develop` has it: an attribute of a flake, of a file
    /// or an expression, or a derivation of the store.
    Shell(Installable),
    /// The programs of packages, as `nix shell` has them; paths of the store are among what they
    /// can be.
    Packages(Vec<Installable>),
}

impl WantedEnvironment {
    /// `what`, with everything else as usual.
    pub fn new(what: EnvironmentKind) -> Self {
        WantedEnvironment {
            what,
            eval: EvalOptions::default(),
            watch: Vec::new(),
            refresh: false,
            lease: LeaseOptions::default(),
        }
    }

    pub(super) fn installables(&self) -> &[Installable] {
        match &self.what {
            EnvironmentKind::Shell(one) => std::slice::from_ref(one),
            EnvironmentKind::Packages(all) => all,
        }
    }

    /// The paths of the store that it is of, if it is of nothing else: they need no nix if they are
    /// there.
    pub fn store_paths(&self) -> Option<BTreeSet<StorePath>> {
        let all = match &self.what {
            EnvironmentKind::Packages(all) => all.iter(),
            EnvironmentKind::Shell(_) => return None,
        };
        let paths = all.map(|one| match &one.source {
            InstallableSource::Store(DerivedPath::Opaque(path)) => Some(path.clone()),
            _ => None,
        });
        paths.collect()
    }

    /// What was asked for, as people wrote it.
    pub fn name(&self) -> String {
        let names: Vec<_> = self
            .installables()
            .iter()
            .map(ToString::to_string)
            .collect();
        names.join(" ")
    }
}

/// The package `name`: an attribute of `nixpkgs` if it is a bare name, else what
/// [`Installable::parse`] takes.
pub fn package(dir: &StoreDir, name: &str) -> Result<Installable> {
    if name.contains(['#', ':', '/']) || name.starts_with('.') {
        installable(dir, name)
    } else {
        installable(dir, &format!("nixpkgs#{name}"))
    }
}

pub(super) fn installable(dir: &StoreDir, text: &str) -> Result<Installable> {
    let what = Installable::parse(dir, text);
    what.map_err(|error| NixFailure::new(Cause::Misused, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_by_name() {
        let dir = StoreDir::default();
        for (name, reference, attr) in [
            ("jq", "nixpkgs", "jq"),
            ("python3.pkgs.x", "nixpkgs", "python3.pkgs.x"),
            (".#tool", ".", "tool"),
            (".", ".", ""),
            ("github:a/b", "github:a/b", ""),
            ("./here", "./here", ""),
        ] {
            let what = package(&dir, name).unwrap();
            assert_eq!(
                what.source,
                InstallableSource::Flake(reference.into()),
                "{name}"
            );
            assert_eq!(what.attr, attr, "{name}");
        }
    }
}
