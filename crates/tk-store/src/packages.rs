//! Closures as packages with versions, and what changed from one to another.

use crate::Closure;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A package of which two closures have other versions, or another size. `Display` is the line of
/// `nix store diff-closures`: versions that only one has, where a size that changed by 8 KiB or more follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageChange {
    /// Its name, without version and output.
    pub name: String,
    /// What the first closure has of it.
    pub before: PackageShare,
    /// What the second one has of it.
    pub after: PackageShare,
}

/// What a closure has of one package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageShare {
    /// The versions; empty for a path without one.
    pub versions: BTreeSet<String>,
    /// Bytes of the NARs of its paths.
    pub nar_size: u64,
}

impl PackageChange {
    /// The versions that only the first closure has.
    pub fn removed(&self) -> impl Iterator<Item = &str> {
        let versions = self.before.versions.difference(&self.after.versions);
        versions.map(String::as_str)
    }

    /// The versions that only the second closure has.
    pub fn added(&self) -> impl Iterator<Item = &str> {
        let versions = self.after.versions.difference(&self.before.versions);
        versions.map(String::as_str)
    }

    /// By how many bytes the package grew.
    pub fn growth(&self) -> i128 {
        i128::from(self.after.nar_size) - i128::from(self.before.nar_size)
    }

    fn is_told(&self) -> bool {
        self.before.versions != self.after.versions || self.has_told_growth()
    }

    fn has_told_growth(&self) -> bool {
        self.growth().abs() >= MIN_GROWTH
    }
}

impl fmt::Display for PackageChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        let versions = self.before.versions != self.after.versions;
        if versions {
            let (removed, added) = (shown(self.removed()), shown(self.added()));
            write!(f, "{removed} → {added}")?;
        }
        if self.has_told_growth() {
            let (comma, growth) = (if versions { ", " } else { "" }, size(self.growth()));
            write!(f, "{comma}{growth}")?;
        }
        Ok(())
    }
}

/// The packages whose versions or sizes differ, by name. Sizes that differ by less than 8 KiB are not told, as Nix has it.
pub fn package_changes(before: &Closure, after: &Closure) -> Vec<PackageChange> {
    let (mut before, mut after) = (packages(before), packages(after));
    let names: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    let change = |name: String| PackageChange {
        before: before.remove(&name).unwrap_or_default(),
        after: after.remove(&name).unwrap_or_default(),
        name,
    };
    let changes = names.into_iter().map(change);
    changes.filter(PackageChange::is_told).collect()
}

fn packages(closure: &Closure) -> BTreeMap<String, PackageShare> {
    let mut packages: BTreeMap<String, PackageShare> = BTreeMap::new();
    for (path, info) in &closure.infos {
        let (name, version) = split_name(path.name());
        let package = packages.entry(name.to_owned()).or_default();
        package.versions.insert(version.to_owned());
        package.nar_size = package.nar_size.saturating_add(info.nar_size);
    }
    packages
}

/// The package and the version in the name of a path, as Nix tells them apart: the version begins behind the first dash that
/// no letter follows. What looks like the name of an output at the end is none of both.
pub fn split_name(name: &str) -> (&str, &str) {
    let is_output = |text: &str| {
        let small = text.bytes().all(|byte| byte.is_ascii_lowercase());
        (small && !text.is_empty()) || ["lib32", "lib64"].contains(&text)
    };
    match name.rsplit_once('-') {
        Some((name, output)) if is_output(output) => split_version(name),
        _ => split_version(name),
    }
}

/// The same, where every word at the end is of the version or the package.
pub(crate) fn split_version(name: &str) -> (&str, &str) {
    let next = |at: &usize| name.as_bytes().get(at + 1);
    let mut dashes = name.match_indices('-').map(|(at, _)| at);
    match dashes.find(|at| next(at).is_some_and(|byte| !byte.is_ascii_alphabetic())) {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (name, ""),
    }
}

fn shown<'a>(versions: impl Iterator<Item = &'a str>) -> String {
    let word = |version: &'a str| if version.is_empty() { "ε" } else { version };
    let words: BTreeSet<_> = versions.map(word).collect();
    if words.is_empty() {
        "∅".to_owned()
    } else {
        Vec::from_iter(words).join(", ")
    }
}

/// As Nix 2.34 writes sizes that may be negative: KiB at least.
fn size(bytes: i128) -> String {
    let (mut size, mut units) = (bytes as f64 / 1024.0, UNITS.iter());
    let mut unit = units.next();
    while size.abs() >= 1024.0 && units.len() > 0 {
        size /= 1024.0;
        unit = units.next();
    }
    format!("{size:.1} {}", unit.unwrap_or(&"KiB"))
}

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
/// Bytes by which a package must grow or shrink to be told for that.
const MIN_GROWTH: i128 = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tk_narinfo::PathInfo;
    use tk_path::NarHash;

    fn closure(paths: &[(&str, u64)]) -> Closure {
        let mut closure = Closure::default();
        for (n, (name, size)) in paths.iter().enumerate() {
            let path = format!("{n:032}-{name}").parse().unwrap();
            let info = PathInfo::new(path, NarHash::digest(b""), *size);
            closure.infos.insert(info.path.clone(), info);
        }
        closure
    }

    /// The names and lines that real Nix 2.34 has.
    #[test]
    fn names_and_lines() {
        for (name, expected) in [
            ("glibc-2.38-44-bin", ("glibc", "2.38-44")),
            ("foo-lib32", ("foo", "")),
            ("foo-lib33", ("foo-lib33", "")),
            ("Weird--x-", ("Weird", "-x-")),
            ("p-1.2-unstable-2023", ("p", "1.2-unstable-2023")),
            ("top-1", ("top", "1")),
            ("gcc-wrapper", ("gcc", "")),
            ("a-", ("a-", "")),
            ("x-y-z-1a", ("x-y-z", "1a")),
        ] {
            assert_eq!(split_name(name), expected, "{name}");
        }
        let before = closure(&[
            ("glibc-2.38", 20_000),
            ("glibc-2.38-bin", 100),
            ("gone-1", 10),
            ("same-1", 5),
            ("multi-1", 3),
            ("multi-2", 3),
            ("shrink", 100_000),
            ("nv", 3),
        ]);
        let after = closure(&[
            ("glibc-2.39", 3_000_000),
            ("new", 8 * 1024),
            ("same-1", 8196),
            ("multi-2", 3),
            ("multi-3", 3),
            ("shrink", 10),
            ("nv-3", 1),
        ]);
        let lines: Vec<_> = package_changes(&before, &after)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            lines,
            [
                "glibc: 2.38 → 2.39, 2.8 MiB",
                "gone: 1 → ∅",
                "multi: 1 → 3",
                "new: ∅ → ε, 8.0 KiB",
                "nv: ε → 3",
                "shrink: -97.6 KiB",
            ]
        );
        assert!(package_changes(&before, &before).is_empty());
    }
}
