//! The guard finds what it is there for: a codec that takes more instructions than it did.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use support::skip;
use tk_instructions::valgrind::{self, PLANTED};

#[test]
fn a_planted_slowdown_is_found() {
    let Some(counted) = Counted::new("a_planted_slowdown_is_found") else {
        return;
    };
    let same = counted.check(&[]);
    assert!(same.status.success(), "{same:?}");
    assert!(text(&same).contains("store-path-parse"), "{same:?}");

    let slow = counted.check(&[(PLANTED, "nix32-encode")]);
    assert_eq!(slow.status.code(), Some(1), "{slow:?}");
    let lines = text(&slow);
    let slower: Vec<_> = lines
        .lines()
        .filter(|line| line.ends_with("SLOWER"))
        .collect();
    assert_eq!(slower.len(), 1, "{lines}");
    assert!(
        slower[0].starts_with("nix32-encode") && slower[0].contains("+5.00 %"),
        "{lines}"
    );
}

#[test]
fn a_codec_that_became_faster_is_told() {
    let Some(counted) = Counted::new("a_codec_that_became_faster_is_told") else {
        return;
    };
    counted.edit(|file| {
        let count = &mut file["instructions"]["nix32-encode"];
        *count = (count.as_u64().unwrap() * 2).into();
    });
    let fast = counted.check(&[]);
    assert!(fast.status.success(), "{fast:?}");
    assert!(
        text(&fast).contains("faster: commit the new figure"),
        "{fast:?}"
    );
}

#[test]
fn a_codec_without_a_committed_figure_fails() {
    let Some(counted) = Counted::new("a_codec_without_a_committed_figure_fails") else {
        return;
    };
    counted.edit(|file| {
        drop(
            file["instructions"]
                .as_object_mut()
                .unwrap()
                .remove("nix32-encode"),
        )
    });
    let new = counted.check(&[]);
    assert_eq!(new.status.code(), Some(1), "{new:?}");
    assert!(text(&new).contains("NOT COMMITTED"), "{new:?}");
}

#[test]
fn figures_of_another_compiler_are_not_compared() {
    let Some(counted) = Counted::new("figures_of_another_compiler_are_not_compared") else {
        return;
    };
    counted.edit(|file| file["measuredWith"]["rustc"] = "rustc 1.0.0".into());
    let skipped = counted.check(&[(PLANTED, "nix32-encode")]);
    assert!(skipped.status.success(), "{skipped:?}");
    let lines = text(&skipped);
    assert!(
        lines.starts_with("skipped: instructions: counted with rustc rustc 1.0.0, here is rustc"),
        "{lines}"
    );
}

/// The committed file is of use only if it has a figure for every codec.
#[test]
fn every_codec_has_a_committed_figure() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../instructions.json");
    let counts = tk_instructions::counts::Counts::read(file.as_ref()).unwrap();
    let committed: Vec<_> = counts.instructions.keys().map(String::as_str).collect();
    let mut codecs: Vec<_> = tk_instructions::codecs::CODECS
        .iter()
        .map(|(name, _)| *name)
        .collect();
    codecs.sort_unstable();
    assert_eq!(committed, codecs);
    assert_eq!(counts.measured_with["profile"], "release");
}

/// Two small codecs, counted.
struct Counted(tempfile::TempDir);

impl Counted {
    /// None without valgrind.
    fn new(test: &str) -> Option<Self> {
        if valgrind::version().is_none() {
            skip(test, "valgrind is not in PATH");
            return None;
        }
        let counted = Counted(tempfile::tempdir().unwrap());
        let bless = counted.run(&["--bless"], &[]);
        assert!(bless.status.success(), "{bless:?}");
        Some(counted)
    }

    fn check(&self, env: &[(&str, &str)]) -> Output {
        self.run(&[], env)
    }

    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tk-instructions"))
            .args([
                "--only",
                "nix32-encode",
                "--only",
                "store-path-parse",
                "--file",
            ])
            .arg(self.file())
            .args(args)
            .env_remove(PLANTED)
            .envs(env.iter().copied())
            .output()
            .unwrap()
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.file()).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.file(), value.to_string()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("counts.json")
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
