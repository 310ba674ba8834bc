//! Which outputs of a derivation are meant.
//!
//! ```text
//! spec     = "*" | name { "," name }          names in any order; written sorted
//! extended = prefix [ "^" spec ]              split at the last "^"
//! json     = ["*"] | [name, ...]              extended without a spec: null
//! ```
//! An empty list means nothing and is not allowed. Mirrors `outputs-spec.cc`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::{OutputName, OutputNameError};

/// Some outputs of a derivation, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputsSpec {
    /// Every output there is.
    All,
    /// These. What makes one puts in at least one name; an empty set has no text that can be read.
    Names(BTreeSet<OutputName>),
}

impl OutputsSpec {
    /// Returns the spec that means the output `name` alone.
    pub fn one(name: OutputName) -> OutputsSpec {
        OutputsSpec::Names([name].into())
    }

    /// Whether the output `name` is meant.
    pub fn contains(&self, name: &OutputName) -> bool {
        match self {
            OutputsSpec::All => true,
            OutputsSpec::Names(names) => names.contains(name),
        }
    }

    /// Whether `other` surely has all outputs of `self`. "All" is within "all" only: which names a derivation has is
    /// not known here.
    pub fn is_subset_of(&self, other: &OutputsSpec) -> bool {
        match (self, other) {
            (_, OutputsSpec::All) => true,
            (OutputsSpec::All, _) => false,
            (OutputsSpec::Names(these), OutputsSpec::Names(those)) => these.is_subset(those),
        }
    }

    /// What either of them means.
    pub fn union(&self, other: &OutputsSpec) -> OutputsSpec {
        match (self, other) {
            (OutputsSpec::Names(these), OutputsSpec::Names(those)) => {
                OutputsSpec::Names(these | those)
            }
            _ => OutputsSpec::All,
        }
    }

    /// The JSON form, an array.
    pub fn to_json(&self) -> Value {
        match self {
            OutputsSpec::All => vec!["*"].into(),
            OutputsSpec::Names(names) => names.iter().map(OutputName::as_str).collect(),
        }
    }

    /// Reads the JSON form.
    pub fn from_json(value: &Value) -> Result<OutputsSpec, OutputsSpecError> {
        let items = value.as_array().ok_or(OutputsSpecError::Json)?;
        if let [one] = &items[..]
            && one == "*"
        {
            return Ok(OutputsSpec::All);
        }
        let name = |item: &Value| {
            let text = item.as_str().ok_or(OutputsSpecError::Json)?;
            Ok(OutputName::parse(text)?)
        };
        OutputsSpec::of(items.iter().map(name))
    }

    fn of(
        names: impl Iterator<Item = Result<OutputName, OutputsSpecError>>,
    ) -> Result<OutputsSpec, OutputsSpecError> {
        let names = names.collect::<Result<BTreeSet<_>, _>>()?;
        if names.is_empty() {
            return Err(OutputsSpecError::Empty);
        }
        Ok(OutputsSpec::Names(names))
    }
}

impl fmt::Display for OutputsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutputsSpec::Names(names) = self else {
            return f.write_str("*");
        };
        for (index, name) in names.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

impl FromStr for OutputsSpec {
    type Err = OutputsSpecError;

    fn from_str(text: &str) -> Result<Self, OutputsSpecError> {
        match text {
            "*" => Ok(OutputsSpec::All),
            "" => Err(OutputsSpecError::Empty),
            _ => OutputsSpec::of(text.split(',').map(|name| Ok(OutputName::parse(name)?))),
        }
    }
}

/// What stands behind an installable: nothing, which leaves the choice to the package, or a spec. `Display` writes
/// the `^` too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExtendedOutputsSpec {
    /// No outputs were named, so the package decides.
    Default,
    /// The outputs that were named behind the `^`.
    Explicit(OutputsSpec),
}

impl ExtendedOutputsSpec {
    /// Splits `text` at its last `^` into what stands before it and the spec.
    pub fn parse(text: &str) -> Result<(&str, ExtendedOutputsSpec), OutputsSpecError> {
        match text.rsplit_once('^') {
            None => Ok((text, ExtendedOutputsSpec::Default)),
            Some((prefix, spec)) => Ok((prefix, ExtendedOutputsSpec::Explicit(spec.parse()?))),
        }
    }

    /// The JSON form: that of the spec, or null.
    pub fn to_json(&self) -> Value {
        match self {
            ExtendedOutputsSpec::Default => Value::Null,
            ExtendedOutputsSpec::Explicit(spec) => spec.to_json(),
        }
    }

    /// Reads the JSON form.
    pub fn from_json(value: &Value) -> Result<ExtendedOutputsSpec, OutputsSpecError> {
        match value {
            Value::Null => Ok(ExtendedOutputsSpec::Default),
            value => OutputsSpec::from_json(value).map(ExtendedOutputsSpec::Explicit),
        }
    }
}

impl fmt::Display for ExtendedOutputsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExtendedOutputsSpec::Default => Ok(()),
            ExtendedOutputsSpec::Explicit(spec) => write!(f, "^{spec}"),
        }
    }
}

/// A text or JSON value that is no outputs spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputsSpecError {
    /// No name at all.
    #[error("no output is named; write * for all, or names with commas between them")]
    Empty,
    /// One of the names is none.
    #[error("{0}")]
    Name(#[from] OutputNameError),
    /// The JSON is no array of texts.
    #[error("the outputs must be an array of texts")]
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> OutputsSpec {
        text.parse().expect(text)
    }

    #[test]
    fn texts() {
        for (text, canonical) in [
            ("*", "*"),
            ("out", "out"),
            ("a_b", "a_b"),
            ("01", "01"),
            ("out,bin", "bin,out"),
            ("out,out", "out"),
        ] {
            assert_eq!(spec(text).to_string(), canonical);
            assert_eq!(
                OutputsSpec::from_json(&spec(text).to_json()),
                Ok(spec(text))
            );
        }
        for text in [
            "", "&*()", "**", "*,foo", "foo,*", ",", "a,", ",a", "a,,b", " a",
        ] {
            assert!(text.parse::<OutputsSpec>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn extended() {
        for (text, prefix, spec) in [
            ("foo", "foo", ""),
            ("foo^*", "foo", "^*"),
            ("foo^out", "foo", "^out"),
            ("foo^bar^out,bin", "foo^bar", "^bin,out"),
        ] {
            let (before, parsed) = ExtendedOutputsSpec::parse(text).expect(text);
            assert_eq!((before, &*parsed.to_string()), (prefix, spec));
            assert_eq!(
                ExtendedOutputsSpec::from_json(&parsed.to_json()),
                Ok(parsed)
            );
        }
        for text in ["^", "foo^", "^&*()", "^**", "^*,foo"] {
            assert!(ExtendedOutputsSpec::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sets() {
        let (all, a, b, ab) = (spec("*"), spec("a"), spec("b"), spec("a,b"));
        for (one, other, is) in [
            (&a, &ab, true),
            (&ab, &a, false),
            (&a, &b, false),
            (&ab, &all, true),
            (&all, &ab, false),
            (&all, &all, true),
        ] {
            assert_eq!(one.is_subset_of(other), is, "{one} {other}");
        }
        assert_eq!(a.union(&b), ab);
        assert_eq!(a.union(&all), all);
        assert_eq!(all.union(&a), all);
        let name = OutputName::parse("a").expect("name");
        assert!(all.contains(&name) && ab.contains(&name) && !b.contains(&name));
    }

    #[test]
    fn bad_json() {
        for text in ["[]", "null", "\"*\"", "[1]", "[\"*\",\"a\"]", "{}", "[[]]"] {
            let value: Value = serde_json::from_str(text).expect("JSON");
            assert!(OutputsSpec::from_json(&value).is_err(), "{text}");
        }
    }
}
