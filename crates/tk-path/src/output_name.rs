//! Names of the outputs of derivations.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use crate::NameError;
use crate::store_path::check_name;
use crate::text::clip;

/// The name of an output, such as `out` or `dev`; the rules are those of the names of store paths, so that it can be
/// a part of one. Cheap to clone; ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(Arc<str>);

impl OutputName {
    /// Returns `name` as the name of an output, if the rules allow it.
    pub fn parse(name: &str) -> Result<OutputName, OutputNameError> {
        if *name == *OUT.0 {
            return Ok(OUT.clone());
        }
        match check_name(name.as_bytes()) {
            Ok(()) => Ok(OutputName(name.into())),
            Err(why) => Err(OutputNameError {
                text: clip(name),
                why,
            }),
        }
    }

    /// `out`, the output that is meant where none is named.
    pub fn out() -> OutputName {
        OUT.clone()
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of this output's store path: that of the derivation, with a dash and the output's unless it is `out`.
    pub fn path_name(&self, derivation: &str) -> String {
        match &*self.0 {
            "out" => derivation.to_owned(),
            other => format!("{derivation}-{other}"),
        }
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutputName({})", self.0)
    }
}

impl AsRef<str> for OutputName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// As `&str` orders: maps by name can be asked for a text.
impl std::borrow::Borrow<str> for OutputName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Reads what [`OutputName::parse`] reads.
impl FromStr for OutputName {
    type Err = OutputNameError;

    fn from_str(name: &str) -> Result<Self, OutputNameError> {
        OutputName::parse(name)
    }
}

/// A text that is no name of an output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an output name: {why}")]
pub struct OutputNameError {
    text: Box<str>,
    why: NameError,
}

static OUT: LazyLock<OutputName> = LazyLock::new(|| OutputName("out".into()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["out", "a_b", "01", "dev", "...", "foo+bar"] {
            assert_eq!(
                OutputName::parse(name).map(|n| n.to_string()),
                Ok(name.to_owned())
            );
        }
        for name in ["", "*", "a,b", "a!", "a^b", ".", "..", ".-a", "a b", "é"] {
            let error = OutputName::parse(name).expect_err(name).to_string();
            assert!(
                error.starts_with(&format!("{name:?} is not an output name: ")),
                "{error}"
            );
        }
        assert_eq!(OutputName::out().path_name("hello"), "hello");
        assert_eq!(
            OutputName::parse("dev").map(|n| n.path_name("hello")),
            Ok("hello-dev".to_owned())
        );
    }
}
