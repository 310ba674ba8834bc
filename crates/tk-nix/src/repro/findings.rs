//! The table of what is looked for.

use Severity::{Error, Note, Warning};
use serde_json::{Value, json};
use std::fmt;

/// One thing that makes a build impure, or may.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which kind of thing, such as `sandboxOff`: a word that stays the same.
    pub kind: &'static str,
    /// Where: a derivation (a whole path), an input, a setting.
    pub place: String,
    /// What is the matter, as a sentence.
    pub message: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The same build may give something else, here or elsewhere.
    Error,
    /// It gives the same as long as something holds that nothing enforces.
    Warning,
    /// It is less than a warning, but worth knowing.
    Note,
}

impl Severity {
    /// The word in JSON: `error`, `warning`, `note`.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Finding {
    /// Returns the finding as the object `{"severity","kind","where","message","advice"}`.
    pub fn to_json(&self) -> Value {
        json!({
            "severity": self.severity.name(), "kind": self.kind, "where": self.place,
            "message": self.message, "advice": self.advice,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// One thing that is looked for: how bad it is, the word for it that stays the same, and what to do about it.
#[derive(Clone, Copy)]
pub struct Rule(Severity, &'static str, &'static str);

impl Rule {
    /// What it finds at `place`.
    pub fn at(self, place: impl Into<String>, message: impl Into<String>) -> Finding {
        let Rule(severity, kind, advice) = self;
        Finding {
            severity,
            kind,
            place: place.into(),
            message: message.into(),
            advice,
        }
    }
}

// Settings of nix.
pub const SANDBOX_OFF: Rule = Rule(Error, "sandboxOff", "set sandbox = true in nix.conf");
pub const SANDBOX_RELAXED: Rule = Rule(Warning, "sandboxRelaxed", "set sandbox = true in nix.conf");
pub const SANDBOX_FALLBACK: Rule = Rule(
    Warning,
    "sandboxFallback",
    "set sandbox-fallback = false in nix.conf",
);
pub const SANDBOX_PATH: Rule = Rule(
    Warning,
    "sandboxPath",
    "take it off the setting, or make what it holds an input",
);
pub const HOST_DEPS_ALLOWED: Rule = Rule(Note, "impureHostDeps", "empty it where nothing needs it");

// How it is evaluated.
pub const IMPURE_EVALUATION: Rule = Rule(Error, "impureEvaluation", "evaluate it without --impure");
pub const UNPINNED_EVALUATION: Rule = Rule(Warning, "unpinnedEvaluation", "make it a flake");
pub const OVERRIDDEN_INPUT: Rule = Rule(Warning, "overriddenInput", "leave --override-input out");

// Flakes and their inputs.
pub const UNLOCKED_INPUT: Rule = Rule(
    Error,
    "unlockedInput",
    "run nix flake lock, and keep flake.lock with the flake",
);
pub const NO_NAR_HASH: Rule = Rule(Error, "noNarHash", "run nix flake update for it");
pub const ONLY_REVISION: Rule = Rule(Note, "noNarHash", "run nix flake update for it");
pub const LOCAL_INPUT: Rule = Rule(Warning, "localInput", "name a place that others reach");
pub const REGISTRY_INPUT: Rule = Rule(
    Warning,
    "registryInput",
    "name a revision, or be sure that flake.lock is always kept",
);
pub const FLOATING_INPUT: Rule = Rule(
    Warning,
    "floatingInput",
    "name a revision, or be sure that flake.lock is always kept",
);
pub const DIRTY_TREE: Rule = Rule(Warning, "dirtyTree", "commit them");
pub const NO_REVISION: Rule = Rule(Note, "noRevision", "keep it in git");

// Derivations.
pub const IMPURE_DERIVATION: Rule = Rule(Error, "impureDerivation", "take __impure off it");
pub const NO_HASH: Rule = Rule(
    Error,
    "noHash",
    "build it once, and write the hash that nix tells into it",
);
pub const WEAK_HASH: Rule = Rule(Warning, "weakHash", "state its sha256");
pub const NO_CHROOT: Rule = Rule(Error, "noChroot", "take __noChroot off it");
pub const IMPURE_HOST_DEPS: Rule = Rule(Warning, "impureHostDeps", "make them inputs");
pub const IMPURE_ENV_VARS: Rule = Rule(
    Warning,
    "impureEnvVars",
    "take impureEnvVars off it, or fix its hash",
);
pub const HOST_BUILDER: Rule = Rule(
    Warning,
    "hostBuilder",
    "take the builder from an input, such as \"${bash}/bin/bash\"",
);
