//! What can be wrong with a derivation.

use bstr::BString;

use super::OutputError;
use crate::text::clip;
use crate::{ContentPathError, OutputName, OutputNameError, StorePath, StorePathError};

/// A derivation that cannot be read, written or reckoned with: which one, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("derivation {name:?}: {kind}")]
pub struct DerivationError {
    name: Box<str>,
    kind: DerivationErrorKind,
}

impl DerivationError {
    pub(super) fn new(name: &str, kind: impl Into<DerivationErrorKind>) -> Self {
        let (name, kind) = (clip(name), kind.into());
        DerivationError { name, kind }
    }

    /// Returns what is wrong with the derivation.
    pub fn kind(&self) -> &DerivationErrorKind {
        &self.kind
    }
}

/// What is wrong with a derivation. Positions count bytes of the file from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DerivationErrorKind {
    /// The file is empty.
    #[error("its file is empty")]
    Empty,
    /// Something else stands in the file than must.
    #[error("byte {at} of its file: {expected} is expected")]
    Syntax {
        /// The byte where it stands, counted from 0.
        at: usize,
        /// What must stand there.
        expected: &'static str,
    },
    /// A string without its second quote.
    #[error("the string at byte {0} of its file does not end")]
    Unterminated(usize),
    /// A form of the file that is not known.
    #[error("its file has the unknown version {0:?}")]
    Version(BString),
    /// A text that must be UTF-8.
    #[error("{0} is not UTF-8")]
    NotUtf8(String),
    /// Inputs nested too deeply.
    #[error(
        "its inputs are nested more than {} deep",
        crate::derived_path::MAX_DEPTH
    )]
    Depth,
    /// An input derivation of which nothing is needed.
    #[error("no output is named of its input {0}")]
    NoInputOutputs(String),
    /// The platform cannot be written.
    #[error("its platform {0:?} has a quote or a backslash, which its file cannot hold")]
    Platform(BString),
    /// A path in it is none, or its name can be none's.
    #[error("{0}")]
    Path(#[from] StorePathError),
    /// Its name cannot be that of a derivation file.
    #[error("{0}")]
    Content(#[from] ContentPathError),
    /// The name of an output is none.
    #[error("{0}")]
    OutputName(#[from] OutputNameError),
    /// An output is wrong in itself.
    #[error("output {0}: {1}")]
    Output(OutputName, OutputError),
    /// The outputs are wrong together.
    #[error("{0}")]
    Outputs(&'static str),
    /// A stated path is not the computed one.
    #[error("output {output} states the path {stated}, but {}", computed_path(.computed))]
    OtherPath {
        /// The output that states the wrong path.
        output: OutputName,
        /// What the derivation says.
        stated: StorePath,
        /// What follows from it, or `None` when nothing does before its inputs are known.
        computed: Option<Box<StorePath>>,
    },
    /// The environment names another path than the output has.
    #[error("the variable {output} of its environment is {}, but the output's path is {path}", shown(.value))]
    Environment {
        /// The output, and the name of the variable.
        output: OutputName,
        /// What the variable is, if there is one.
        value: Option<BString>,
        /// What it must be.
        path: Box<str>,
    },
    /// What only content-addressed derivations may ask for.
    #[error("it requires the system feature {0}, which only content-addressed derivations may")]
    ContentAddressedOnly(&'static str),
    /// An input derivation that was not given.
    #[error("its input {0} is not known yet")]
    UnknownInput(StorePath),
    /// An input derivation does not have an output that is needed of it.
    #[error("it needs the output {1} of {0}, which has none of that name")]
    NoSuchOutput(StorePath, OutputName),
    /// A derivation that needs itself.
    #[error("its input {0} needs itself")]
    Cycle(StorePath),
    /// The structured attributes are no JSON object.
    #[error("its structured attributes: {0}")]
    Attributes(String),
    /// The JSON is not that of a derivation.
    #[error("its JSON: {0}")]
    Json(String),
}

/// For what an output makes no path.
impl From<(OutputName, ContentPathError)> for DerivationErrorKind {
    fn from((output, error): (OutputName, ContentPathError)) -> Self {
        DerivationErrorKind::Output(output, error.into())
    }
}

fn computed_path(path: &Option<Box<StorePath>>) -> String {
    match path {
        Some(path) => format!("it makes {path}"),
        None => "none is known before its inputs are built".to_owned(),
    }
}

fn shown(value: &Option<BString>) -> String {
    match value {
        Some(value) => format!("{:?}", clip(&value.to_string())),
        None => "missing".to_owned(),
    }
}
