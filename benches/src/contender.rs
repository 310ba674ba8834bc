//! Who takes part: our crates and program, the other crates, and every real Nix that is found.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::limits::Limit;
use crate::work::Library;

/// What a row is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This project.
    Ours,
    /// Does the same job.
    Rival,
    /// Does something like it that everybody knows: tar, cp, openssl.
    Yardstick,
    /// A part of the job that nobody can leave out, and nothing else: no contender should be faster.
    Limit,
}

impl Role {
    /// As in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Role::Ours => "ours",
            Role::Rival => "rival",
            Role::Yardstick => "yardstick",
            Role::Limit => "limit",
        }
    }

    pub fn mark(self) -> char {
        match self {
            Role::Ours => '*',
            Role::Rival => ' ',
            Role::Yardstick => '-',
            Role::Limit => '=',
        }
    }
}

/// Somebody who can do a job.
#[derive(Debug, Clone)]
pub enum Contender {
    Library(Library),
    TkStore(PathBuf),
    Nix {
        version: String,
        bin: PathBuf,
    },
    Tool {
        tool: Tool,
        path: PathBuf,
    },
    /// A part of the job that nobody can leave out.
    Limit(Limit),
}

/// A program that everybody knows, which does something like some jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    OpenSsl,
    Tar,
    Cp,
}

impl Tool {
    const ALL: [Tool; 3] = [Tool::OpenSsl, Tool::Tar, Tool::Cp];

    fn name(self) -> &'static str {
        match self {
            Tool::OpenSsl => "openssl",
            Tool::Tar => "tar",
            Tool::Cp => "cp",
        }
    }
}

impl Contender {
    pub fn name(&self) -> String {
        match self {
            Contender::Library(library) => library.name().into(),
            Contender::TkStore(_) => "tk-store".into(),
            Contender::Nix { version, .. } => format!("nix {version}"),
            Contender::Tool { tool, .. } => tool.name().into(),
            Contender::Limit(limit) => limit.name(),
        }
    }

    pub fn role(&self) -> Role {
        match self {
            Contender::Library(Library::TkNar) | Contender::TkStore(_) => Role::Ours,
            Contender::Library(_) | Contender::Nix { .. } => Role::Rival,
            Contender::Tool { .. } => Role::Yardstick,
            Contender::Limit(_) => Role::Limit,
        }
    }

    /// Programs start up, read settings and so on; crates do not. Each is compared with ours of its kind.
    pub fn is_program(&self) -> bool {
        !matches!(self, Contender::Library(_))
    }
}

/// Our program and real Nix of that version, such as 2.34.
pub fn ours_and_nix(tk_store: &Path, wanted: &str) -> Result<Vec<Contender>> {
    let prefix = format!("{wanted}.");
    let takes_part = |who: &Contender| match who {
        Contender::TkStore(_) => true,
        Contender::Nix { version, .. } => version.starts_with(&prefix),
        _ => false,
    };
    let (found, _) = find(tk_store);
    let entrants: Vec<_> = found.into_iter().filter(takes_part).collect();
    let is_nix = |who: &Contender| matches!(who, Contender::Nix { .. });
    ensure!(
        entrants.iter().any(is_nix),
        "real Nix {wanted} is not installed: tests/rig/install"
    );
    Ok(entrants)
}

/// All that are there, ours first, and what is not there and why.
pub fn find(tk_store: &Path) -> (Vec<Contender>, Vec<(&'static str, String)>) {
    let (mut found, mut absent) = (vec![Contender::Library(Library::TkNar)], Vec::new());
    if tk_store.is_file() {
        found.push(Contender::TkStore(tk_store.to_owned()))
    } else {
        absent.push((
            "tk-store",
            format!(
                "{} is not there: cargo build --release, or --tk-store PATH",
                tk_store.display()
            ),
        ))
    }
    let (rig, nix) = find_nix();
    if nix.is_empty() {
        absent.push((
            "nix",
            format!(
                "no nix-store in {} or PATH: tests/rig/install",
                rig.display()
            ),
        ));
    }
    found.extend(nix);
    found.extend([Library::NixArchive, Library::NixNar].map(Contender::Library));
    for tool in Tool::ALL {
        match in_path(tool.name()) {
            Some(path) => found.push(Contender::Tool { tool, path }),
            None => absent.push((tool.name(), "not in PATH".into())),
        }
    }
    absent.extend(OTHERS.map(|(program, why)| match in_path(program) {
        Some(path) => (program, format!("{} is there, but {why}", path.display())),
        None => (program, "not in PATH".into()),
    }));
    (found, absent)
}

/// Real Nix, oldest version first, each version once.
fn find_nix() -> (PathBuf, Vec<Contender>) {
    let rig =
        env::var_os("NIX_RIG_DIR").map_or_else(|| PathBuf::from("/opt/nix-rig"), PathBuf::from);
    let folders = rig.read_dir().into_iter().flatten().flatten();
    let mut bins: Vec<_> = folders.map(|folder| folder.path().join("bin")).collect();
    bins.extend(in_path("nix-store").and_then(|nix| Some(nix.parent()?.to_owned())));
    let versions = bins
        .into_iter()
        .filter_map(|bin| Some((version(&bin)?, bin)));

    let mut seen = BTreeSet::new();
    let mut versions: Vec<_> = versions
        .filter(|(version, _)| seen.insert(version.clone()))
        .collect();
    versions.sort_by_key(|(version, _)| numbers(version));
    let contenders = versions
        .into_iter()
        .map(|(version, bin)| Contender::Nix { version, bin });
    (rig, contenders.collect())
}

/// `nix-store (Nix) 2.34.8` → `2.34.8`
fn version(bin: &Path) -> Option<String> {
    let out = Command::new(bin.join("nix-store"))
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.split_whitespace().next_back().map(str::to_owned)
}

fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Programs of the same kind with which nothing can be measured fairly here, and why.
const OTHERS: [(&str, &str); 5] = [
    ("harmonia-cache", SERVES),
    ("nix-serve", SERVES),
    ("attic", "it pushes to a server of its own kind only"),
    ("cachix", "it pushes to a service on the internet only"),
    ("snix-store", "its stores are in a format of their own"),
];

const SERVES: &str =
    "it serves a store over HTTP, which tk-store does not: there is no job for both";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_by_number() {
        let mut versions = ["2.34.8", "2.8.0", "2.26.3pre1", "10"];
        versions.sort_by_key(|version| numbers(version));
        assert_eq!(versions, ["2.8.0", "2.26.3pre1", "2.34.8", "10"]);
    }
}
