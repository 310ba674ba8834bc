//! Derivations: what is to be run to build store paths.
//!
//! The file format is told at the head of `aterm.rs`, the outputs at that of `output.rs`, JSON at that of `json.rs`,
//! and how output paths come about at that of [`modulo`](crate::modulo). Mirrors `derivations.cc` and what is below
//! `derivation/` in Nix.

#[cfg(test)]
mod arbitrary;
mod aterm;
mod error;
mod fill;
mod json;
mod json_text;
pub mod modulo;
mod output;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};

use bstr::BString;

use crate::{Algorithm, OutputName, StorePath, StorePathError, StorePathErrorKind};

pub use error::{DerivationError, DerivationErrorKind};
pub use json::DerivationJsonVersion;
use modulo::Modulo;
pub use output::{DerivationOutput, OutputError};
pub use resolve::ResolveError;

/// What is to be run, on what, and which store paths come out. The texts that a builder gets may be any bytes.
///
/// Values of this type may break rules that derivations in a store keep; [`Derivation::check_outputs`] finds that.
///
/// ```
/// use tk_path::{Derivation, StoreDir, modulo::Modulo};
///
/// let dir = StoreDir::default();
/// let file = br#"Derive([("out","","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo hi > $out"],[])"#;
/// let mut drv = Derivation::parse_aterm(&dir, "hello", file)?;
/// // Without input derivations, nothing needs to be known for the paths.
/// drv.fill_outputs(&Modulo::new(dir.clone()))?;
/// let out = drv.outputs["out"].path(&dir, &drv.name, &"out".parse()?)?;
/// assert_eq!(drv.env["out".as_bytes()], dir.path(&out.unwrap()));
/// assert!(drv.path(&dir)?.is_derivation());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// The arguments of the program, without its own name.
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
    /// Derivations of which outputs are needed, and which outputs of each.
    pub drvs: BTreeMap<StorePath, InputOutputs>,
}

/// Which outputs of one input derivation are needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputOutputs {
    /// The outputs that are needed themselves.
    pub outputs: BTreeSet<OutputName>,
    /// Outputs that are themselves derivations, and what is needed of those. Nix wants `dynamic-derivations` for it.
    pub dynamic: BTreeMap<OutputName, InputOutputs>,
}

impl<I> Derivation<I> {
    /// The text of the structured attributes, if there are any: a JSON object, as the derivation has it.
    pub fn structured_attrs(&self) -> Option<&BString> {
        self.env.get(STRUCTURED_ATTRS.as_bytes())
    }

    /// How the outputs come about. An error when there are none or they do not go together.
    pub fn kind(&self) -> Result<DerivationKind, DerivationError> {
        let wrong = |why| Err(self.error(DerivationErrorKind::Outputs(why)));
        let mut kinds = self.outputs.values().map(DerivationKind::of);
        let Some(kind) = kinds.next() else {
            return wrong("it has no output");
        };
        if kinds.any(|other| other != kind) {
            return wrong("its outputs are of different kinds");
        }
        match kind {
            DerivationKind::Fixed
                if !(self.outputs.len() == 1 && self.outputs.contains_key("out")) =>
            {
                wrong("a derivation with fixed content must have exactly one output, out")
            }
            kind => Ok(kind),
        }
    }

    fn error(&self, kind: impl Into<DerivationErrorKind>) -> DerivationError {
        DerivationError::new(&self.name, kind)
    }
}

/// How all outputs of a derivation come about, see [`DerivationOutput`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DerivationKind {
    /// By what goes into it.
    InputAddressed,
    /// By the content that is demanded.
    Fixed,
    /// By content, hashed with this algorithm.
    Floating(Algorithm),
    /// By inputs that are not known yet.
    Deferred,
    /// By content that may differ each time, hashed with this algorithm.
    Impure(Algorithm),
}

impl DerivationKind {
    fn of(output: &DerivationOutput) -> DerivationKind {
        match output {
            DerivationOutput::InputAddressed(_) => DerivationKind::InputAddressed,
            DerivationOutput::Fixed(_) => DerivationKind::Fixed,
            DerivationOutput::Floating(method) => DerivationKind::Floating(method.algorithm),
            DerivationOutput::Deferred => DerivationKind::Deferred,
            DerivationOutput::Impure(method) => DerivationKind::Impure(method.algorithm),
        }
    }
}

/// What a derivation can have as inputs: [`Inputs`], or store paths only.
pub trait DerivationInputs: sealed::Sealed {
    /// Returns the store paths that are needed as they are.
    fn srcs(&self) -> &BTreeSet<StorePath>;

    /// Returns the input derivations and the outputs that are needed; none for a basic derivation.
    fn drvs(&self) -> &BTreeMap<StorePath, InputOutputs>;
}

impl DerivationInputs for Inputs {
    fn srcs(&self) -> &BTreeSet<StorePath> {
        &self.srcs
    }

    fn drvs(&self) -> &BTreeMap<StorePath, InputOutputs> {
        &self.drvs
    }
}

impl DerivationInputs for BTreeSet<StorePath> {
    fn srcs(&self) -> &BTreeSet<StorePath> {
        self
    }

    fn drvs(&self) -> &BTreeMap<StorePath, InputOutputs> {
        static NONE: BTreeMap<StorePath, InputOutputs> = BTreeMap::new();
        &NONE
    }
}

mod sealed {
    /// The JSON of version 4; what it is for the two kinds of inputs stands in `json.rs`.
    pub trait Sealed: Sized {
        fn to_json(&self) -> serde_json::Value;

        fn from_json(value: &serde_json::Value) -> Result<Self, super::DerivationErrorKind>;
    }
}

/// Whether `name` may be the name of a derivation.
fn check_name(name: &str) -> Result<(), StorePathError> {
    crate::store_path::check_name(name.as_bytes())
        .map_err(|why| StorePathError::new(name, StorePathErrorKind::Name(why)))
}

/// The variable that holds the structured attributes.
const STRUCTURED_ATTRS: &str = "__json";
