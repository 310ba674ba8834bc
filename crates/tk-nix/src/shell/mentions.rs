//! Which files Nix code can read, as far as its text tells.
//!
//! Nix does not say what `readFile`, `readDir` and `pathExists` look at. But a file that is read has its name
//! in the code, or code lists the folder, or puts the name together: so a file that is no code counts if
//! the code that was evaluated has all the words of its name, or those of its stem and ending (`"${x}.txt"`).
//! All files count if the code lists folders, or asks for what the tree is as a whole, as `self.rev` or
//! `"${self}"`. More than can be read may count, which makes an evaluation too many at worst. A name
//! that comes out of other content is not seen.

use std::{collections::HashSet, ffi::OsStr};

/// What the text of files of Nix code mentions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mentions {
    words: HashSet<String>,
    /// Whether all files of the tree can be seen.
    all: bool,
}

impl Mentions {
    /// Adds what `code` mentions. Without `tells_filtered` nix does not say what is copied through a
    /// filter, so that code that filters is taken to see all.
    pub(super) fn add(&mut self, code: &str, tells_filtered: bool) {
        for line in code.lines() {
            // Remarks name files that nobody reads.
            if line.trim_start().starts_with('#') && !line.contains("${") {
                continue;
            }
            for word in words(line) {
                let last = word.rsplit('.').next().unwrap_or(word);
                self.all |= LISTING.contains(&last) || !tells_filtered && is_filter(word);
                if !self.words.contains(word) {
                    self.words.insert(word.to_owned());
                }
            }
            self.all |= asks_for_self(line) || !tells_filtered && line.contains("builtins.path");
        }
    }

    /// Whether all files of the tree can be seen.
    pub(super) fn is_all(&self) -> bool {
        self.all
    }

    /// Whether the code can mean a file or a folder of this name.
    pub(super) fn is_named(&self, name: &OsStr) -> bool {
        let name = name.to_string_lossy();
        let has = |text: &str| words(text).all(|word| self.words.contains(word));
        let parts = name.rfind('.').map(|at| name.split_at(at));
        self.all || has(&name) || parts.is_some_and(|(stem, end)| has(stem) && has(end))
    }
}

/// Paths that are written in `code`: relative ones, and absolute ones.
pub(super) fn paths(code: &str) -> impl Iterator<Item = &str> {
    let words = code.split(|c: char| c != '/' && !is_part(c));
    words.filter(|word| {
        let is_path = word.starts_with("./") || word.starts_with("../") || word.starts_with('/');
        is_path && word.len() > 1 && !word.contains("//")
    })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| !word.is_empty())
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || "_.+-".contains(c)
}

/// Whether it is a function that commonly filters what it copies.
fn is_filter(word: &str) -> bool {
    word.contains("Source") || word.starts_with("source") || word.ends_with("fileset")
}

/// Whether the line asks for what a flake is as a whole: its commit, its time, its hash, its path.
fn asks_for_self(line: &str) -> bool {
    for (at, _) in line.match_indices("self") {
        let before = line[..at].chars().next_back();
        let after = &line[at + "self".len()..];
        let next = after.trim_start();
        if before.is_some_and(|c| c.is_alphanumeric() || "_-'".contains(c)) {
            continue;
        }
        let before = line[..at].trim_end_matches("inputs.").trim_end();
        let is_whole = before.ends_with("${") && next.starts_with('}') && !next.starts_with("}/");
        let is_value = before.ends_with('=') && next.starts_with(';');
        let is_opened = before.ends_with('(') && next.starts_with(')');
        let is_opened = is_opened || before.ends_with("with");
        let fact = after.strip_prefix('.').unwrap_or_default();
        let end = fact.find(|c: char| !c.is_ascii_alphanumeric());
        let is_fact = FACTS.contains(&&fact[..end.unwrap_or(fact.len())]);
        if is_whole || is_value || is_opened || is_fact || next.starts_with('?') {
            return true;
        }
    }
    false
}

/// Names of what looks at files without naming them.
const LISTING: &[&str] = &[
    "dirtyRev",
    "dirtyShortRev",
    "listFilesRecursive",
    "readDir",
    "sourceInfo",
];
/// What a flake is as a whole.
const FACTS: &[&str] = &[
    "dirtyRev",
    "dirtyShortRev",
    "lastModified",
    "lastModifiedDate",
    "narHash",
    "outPath",
    "rev",
    "revCount",
    "shortRev",
    "sourceInfo",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str) -> Mentions {
        let mut mentions = Mentions::default();
        mentions.add(code, true);
        mentions
    }

    #[test]
    fn names() {
        let mentions = of(
            "readFile ./VERSION + (self + \"/data/my file\") + f \"${x}.txt\" \"one\"\n\
             # README.md\n  # ${./shown}",
        );
        for (name, is_named) in [
            ("VERSION", true),
            ("my file", true),
            ("data", true),
            ("one.txt", true),
            ("two.txt", false),
            ("one.c", false),
            ("main.c", false),
            ("README.md", false),
            ("shown", true),
        ] {
            assert_eq!(mentions.is_named(name.as_ref()), is_named, "{name}");
        }
        assert!(!mentions.is_all());
    }

    #[test]
    fn all_files() {
        for (code, all) in [
            ("attrNames (builtins.readDir ./.)", true),
            ("lib.filesystem.listFilesRecursive ./x", true),
            ("inherit (builtins) readDir;", true),
            ("version = self.shortRev or \"dirty\";", true),
            ("inputs.self.lastModifiedDate", true),
            ("if self ? rev then 1 else 2", true),
            ("inherit (self) rev;", true),
            ("src = self;", true),
            ("\"${self}\"", true),
            ("\"${inputs.self} \"", true),
            ("self.sourceInfo.rev", true),
            ("\"${self}/nix/x.nix\"", false),
            ("{ self, nixpkgs }: self.packages.x", false),
            ("fetchFromGitHub { rev = \"1\"; }", false),
            ("nixpkgs.lastModifiedDate", false),
            ("myself.rev", false),
            ("import ./x { inherit self; }", false),
            ("src = ./.;", false),
        ] {
            assert_eq!(of(code).is_all(), all, "{code}");
        }
        for code in [
            "builtins.filterSource f ./.",
            "lib.cleanSource ./.",
            "builtins.path {",
        ] {
            let mut mentions = Mentions::default();
            mentions.add(code, false);
            assert!(mentions.is_all() && !of(code).is_all(), "{code}");
        }
    }

    #[test]
    fn paths_of_code() {
        let code = "import ./a.nix + ../b/c /etc/x \"https://x/y\" a/b ./${x} / //";
        let found: Vec<_> = paths(code).collect();
        assert_eq!(found, ["./a.nix", "../b/c", "/etc/x", "./"]);
    }
}
