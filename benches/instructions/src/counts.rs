//! The counts that are committed, and what a new count says beside them.
//!
//! The file is JSON: `measuredWith` is all that changes counts without a change of this project, `instructions` is a
//! figure for each codec, of one pass.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::valgrind;

/// What was counted, and with what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// What decides about the figures beside the code. Only counts with the same tools are comparable.
    pub measured_with: BTreeMap<String, String>,
    /// Instructions of one pass, by the name of the codec.
    pub instructions: BTreeMap<String, u64>,
}

impl Counts {
    /// Nothing yet, with the tools of this machine.
    pub fn here(valgrind: String) -> Self {
        let tools = [
            ("rustc", env!("TK_RUSTC").to_owned()),
            ("target", env!("TK_TARGET").to_owned()),
            ("profile", PROFILE.to_owned()),
            ("valgrind", valgrind),
            ("libc", libc()),
            ("vectors", vectors().to_owned()),
        ];
        Counts {
            measured_with: tools.map(|(name, tool)| (name.to_owned(), tool)).into(),
            instructions: BTreeMap::new(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it is not there or is not such a file.
    pub fn read(file: &Path) -> Result<Self> {
        let name = || format!("reading {}", file.display());
        let text = std::fs::read(file).with_context(name)?;
        let value: Value = serde_json::from_slice(&text).with_context(name)?;
        Counts::from_json(&value)
            .context("measuredWith or instructions is missing")
            .with_context(name)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let value =
            json!({ "measuredWith": self.measured_with, "instructions": self.instructions });
        std::fs::write(file, format!("{value:#}\n"))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// What differs in the tools; none if figures may be compared.
    pub fn other_tools(&self, here: &Counts) -> Option<String> {
        let names = self.measured_with.keys().chain(here.measured_with.keys());
        let name = names
            .into_iter()
            .find(|name| self.measured_with.get(*name) != here.measured_with.get(*name))?;
        let of = |counts: &Counts| {
            counts
                .measured_with
                .get(name)
                .cloned()
                .unwrap_or_else(|| "unknown".into())
        };
        Some(format!(
            "counted with {name} {}, here is {}",
            of(self),
            of(here)
        ))
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text =
            |(name, tool): (&String, &Value)| Some((name.clone(), tool.as_str()?.to_owned()));
        let number = |(name, count): (&String, &Value)| Some((name.clone(), count.as_u64()?));
        let object = |key: &str| -> Option<&Map<String, Value>> { value.get(key)?.as_object() };
        Some(Counts {
            measured_with: object("measuredWith")?
                .iter()
                .map(text)
                .collect::<Option<_>>()?,
            instructions: object("instructions")?
                .iter()
                .map(number)
                .collect::<Option<_>>()?,
        })
    }
}

/// What a count says beside the committed one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Within [`TOLERANCE`]; the difference as a share.
    Same(f64),
    /// Slower: a failure.
    More(f64),
    /// Faster: what was won should be committed, or it may be lost unseen.
    Less(f64),
    /// There is no committed figure: a failure, or a new codec would be without guard.
    New,
}

impl Verdict {
    /// Of `now`, with `before` committed.
    pub fn of(before: Option<u64>, now: u64) -> Self {
        let Some(before) = before.filter(|before| *before > 0) else {
            return Verdict::New;
        };
        match (now as f64 - before as f64) / before as f64 {
            more if more > TOLERANCE => Verdict::More(more),
            less if less < -TOLERANCE => Verdict::Less(less),
            same => Verdict::Same(same),
        }
    }

    /// Whether the guard lets it pass.
    pub fn passes(self) -> bool {
        matches!(self, Verdict::Same(_) | Verdict::Less(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Same(share) => write!(f, "{:+.2} %", share * 100.0),
            Verdict::More(share) => write!(f, "{:+.2} %  SLOWER", share * 100.0),
            Verdict::Less(share) => {
                write!(f, "{:+.2} %  faster: commit the new figure", share * 100.0)
            }
            Verdict::New => f.write_str("NOT COMMITTED"),
        }
    }
}

/// The C library copies and compares memory in ways of its own.
fn libc() -> String {
    let out = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = out.ok().and_then(|out| String::from_utf8(out.stdout).ok());
    text.map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "unknown".into())
}

/// The widest vectors that valgrind lets programs use here: it hides AVX-512.
fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return "avx2";
    }
    "baseline"
}

const PROFILE: &str = if cfg!(debug_assertions) {
    "debug"
} else {
    "release"
};

/// The share by which a count may differ.
pub const TOLERANCE: f64 = 0.03;

/// No counts yet, with the tools of this machine; none without valgrind.
pub fn here() -> Option<Counts> {
    valgrind::version().map(Counts::here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_hundred_are_let_pass() {
        let of = |now| Verdict::of(Some(1000), now);
        assert!(matches!(of(1030), Verdict::Same(_)));
        assert!(matches!(of(970), Verdict::Same(_)));
        assert!(matches!(of(1031), Verdict::More(_)) && !of(1031).passes());
        assert!(matches!(of(969), Verdict::Less(_)) && of(969).passes());
        assert!(!Verdict::of(None, 1).passes());
    }

    #[test]
    fn a_file_that_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("counts.json");
        let mut counts = Counts::here("valgrind-1".into());
        counts.instructions.insert("nar-decode".into(), 7);
        counts.write(&file).unwrap();
        assert_eq!(Counts::read(&file).unwrap(), counts);
        std::fs::write(&file, r#"{"instructions": {}}"#).unwrap();
        assert!(Counts::read(&file).is_err());
    }

    #[test]
    fn other_tools_are_named() {
        let (old, new) = (
            Counts::here("valgrind-1".into()),
            Counts::here("valgrind-2".into()),
        );
        assert_eq!(old.other_tools(&old), None);
        let why = old.other_tools(&new).unwrap();
        assert_eq!(why, "counted with valgrind valgrind-1, here is valgrind-2");
    }
}
