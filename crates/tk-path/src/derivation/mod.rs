//! Derivations: what is to be run to build store paths.
//!
//! The file format is told at the head of `aterm.rs`, the outputs at that of `output.rs`, JSON at that of `json.rs`,
//! and how output paths come about at that of [`modulo`](crate::modulo). Mirrors `derivations.cc` and what is below
//! `derivation/` in Nix.

mod output;

use std::collections::{BTreeMap, BTreeSet};

use bstr::BString;

use crate::{OutputName, StorePath};

pub use output::{DerivationOutput, OutputError};

/// What is to be run, on what, and which store paths come out. The texts that a builder gets may be any bytes.
///
/// Values of this type may break rules that derivations in a store keep; `check_outputs` finds that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Derivation<I = Inputs> {
    /// The name, which is no part of the file: that of its path without `.drv`.
    pub name: String,
    /// The outputs; all of one kind, at least one.
    pub outputs: BTreeMap<OutputName, DerivationOutput>,
    /// What must be there before.
    pub inputs: I,
    /// The system to build on, such as `x86_64-linux`. Written without escapes, so a quote or a backslash makes a
    /// derivation that has no file.
    pub platform: BString,
    /// The program to run.
    pub builder: BString,
    /// Its arguments.
    pub args: Vec<BString>,
    /// Its environment. Structured attributes are the JSON text of `__json`, kept as it is.
    pub env: BTreeMap<BString, BString>,
}

/// A derivation whose inputs are all store paths: what a builder can run without looking at other derivations.
pub type BasicDerivation = Derivation<BTreeSet<StorePath>>;

/// What a derivation needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inputs {
    /// Store paths as they are.
    pub srcs: BTreeSet<StorePath>,
    /// Outputs of derivations.
    pub drvs: BTreeMap<StorePath, InputOutputs>,
}

/// Which outputs of one input derivation are needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputOutputs {
    /// These.
    pub outputs: BTreeSet<OutputName>,
    /// Outputs that are themselves derivations, and what is needed of those. Nix wants `dynamic-derivations` for it.
    pub dynamic: BTreeMap<OutputName, InputOutputs>,
}
