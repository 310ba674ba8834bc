//! What can be built: a store path, or outputs of a derivation that is there or is itself an output.
//!
//! ```text
//! single  = path | single "^" output
//! derived = path | single "^" outputs         outputs as in an outputs spec
//! legacy  = the same with "!" for "^"         the worker protocol's form
//! json    = base | {"drvPath": single, "output": name} | {"drvPath": single, "outputs": spec}
//! ```
//! Split at the last mark; paths are full, and read as people write them. More than one mark needs Nix's
//! experimental feature `dynamic-derivations`; here at most [`MAX_DEPTH`] are taken. Mirrors `derived-path.cc`.

use std::fmt;

use serde_json::{Value, json};

use crate::text::clip;
use crate::{
    OutputName, OutputNameError, OutputsSpec, OutputsSpecError, StoreDir, StorePath, StorePathError,
};

/// The deepest nesting of derivations in derivations that is read.
pub const MAX_DEPTH: usize = 64;

/// One store object that is there, or is going to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SingleDerivedPath {
    /// A store path as it is.
    Opaque(StorePath),
    /// An output of a derivation.
    Built {
        /// The derivation, which may be the output of another one.
        drv: Box<SingleDerivedPath>,
        /// The name of the output.
        output: OutputName,
    },
}

impl SingleDerivedPath {
    /// Reads the form with `^`.
    pub fn parse(dir: &StoreDir, text: &str) -> Result<Self, DerivedPathError> {
        SingleDerivedPath::read(dir, text, MODERN).map_err(|why| DerivedPathError::new(text, why))
    }

    /// Reads the form with `!`.
    pub fn parse_legacy(dir: &StoreDir, text: &str) -> Result<Self, DerivedPathError> {
        SingleDerivedPath::read(dir, text, LEGACY).map_err(|why| DerivedPathError::new(text, why))
    }

    /// The text with `^`.
    pub fn display<'a>(&'a self, dir: &'a StoreDir) -> impl fmt::Display + 'a {
        MarkedPathText(self, dir, MODERN)
    }

    /// The text with `!`.
    pub fn display_legacy<'a>(&'a self, dir: &'a StoreDir) -> impl fmt::Display + 'a {
        MarkedPathText(self, dir, LEGACY)
    }

    /// The store path below all nesting.
    pub fn base(&self) -> &StorePath {
        match self {
            SingleDerivedPath::Opaque(path) => path,
            SingleDerivedPath::Built { drv, .. } => drv.base(),
        }
    }

    /// Returns the JSON form: the base name of a path, or an object with `drvPath` and `output`.
    pub fn to_json(&self) -> Value {
        match self {
            SingleDerivedPath::Opaque(path) => path.as_str().into(),
            SingleDerivedPath::Built { drv, output } => {
                json!({"drvPath": drv.to_json(), "output": output.as_str()})
            }
        }
    }

    /// Reads the JSON form.
    pub fn from_json(value: &Value) -> Result<Self, DerivedPathError> {
        SingleDerivedPath::read_json(value, MAX_DEPTH).map_err(DerivedPathError::json)
    }

    fn read(dir: &StoreDir, text: &str, mark: char) -> Result<Self, DerivedPathFault> {
        let mut parts = text.split(mark);
        let base = dir.parse(parts.next().unwrap_or_default())?;
        let mut path = SingleDerivedPath::Opaque(base);
        for (depth, output) in parts.enumerate() {
            if depth == MAX_DEPTH {
                return Err(DerivedPathFault::Depth);
            }
            path = path.output(OutputName::parse(output)?);
        }
        Ok(path)
    }

    fn read_json(value: &Value, depth: usize) -> Result<Self, DerivedPathFault> {
        if let Some(base) = value.as_str() {
            return Ok(SingleDerivedPath::Opaque(StorePath::parse(base)?));
        }
        let depth = depth.checked_sub(1).ok_or(DerivedPathFault::Depth)?;
        let output = value["output"].as_str().ok_or(DerivedPathFault::Json)?;
        let drv = SingleDerivedPath::read_json(&value["drvPath"], depth)?;
        Ok(drv.output(OutputName::parse(output)?))
    }

    /// The path of this one's output, if this is a derivation.
    pub fn output(self, output: OutputName) -> SingleDerivedPath {
        let drv = Box::new(self);
        SingleDerivedPath::Built { drv, output }
    }
}

/// What a builder is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DerivedPath {
    /// A store path as it is: it shall be there.
    Opaque(StorePath),
    /// Outputs of a derivation: they shall be built.
    Built {
        /// The derivation, which may be the output of another one.
        drv: SingleDerivedPath,
        /// The outputs that shall be built.
        outputs: OutputsSpec,
    },
}

impl DerivedPath {
    /// Reads the form with `^`.
    pub fn parse(dir: &StoreDir, text: &str) -> Result<Self, DerivedPathError> {
        DerivedPath::read(dir, text, MODERN).map_err(|why| DerivedPathError::new(text, why))
    }

    /// Reads the form with `!`, as the worker protocol has it.
    pub fn parse_legacy(dir: &StoreDir, text: &str) -> Result<Self, DerivedPathError> {
        DerivedPath::read(dir, text, LEGACY).map_err(|why| DerivedPathError::new(text, why))
    }

    /// The text with `^`.
    pub fn display<'a>(&'a self, dir: &'a StoreDir) -> impl fmt::Display + 'a {
        MarkedPathText(self, dir, MODERN)
    }

    /// The text with `!`, as the worker protocol has it.
    pub fn display_legacy<'a>(&'a self, dir: &'a StoreDir) -> impl fmt::Display + 'a {
        MarkedPathText(self, dir, LEGACY)
    }

    /// The store path below all nesting.
    pub fn base(&self) -> &StorePath {
        match self {
            DerivedPath::Opaque(path) => path,
            DerivedPath::Built { drv, .. } => drv.base(),
        }
    }

    /// Returns the JSON form: the base name of a path, or an object with `drvPath` and `outputs`.
    pub fn to_json(&self) -> Value {
        match self {
            DerivedPath::Opaque(path) => path.as_str().into(),
            DerivedPath::Built { drv, outputs } => {
                json!({"drvPath": drv.to_json(), "outputs": outputs.to_json()})
            }
        }
    }

    /// Reads the JSON form.
    pub fn from_json(value: &Value) -> Result<Self, DerivedPathError> {
        DerivedPath::read_json(value).map_err(DerivedPathError::json)
    }

    fn read(dir: &StoreDir, text: &str, mark: char) -> Result<Self, DerivedPathFault> {
        let Some((drv, outputs)) = text.rsplit_once(mark) else {
            return Ok(DerivedPath::Opaque(dir.parse(text)?));
        };
        let drv = SingleDerivedPath::read(dir, drv, mark)?;
        let outputs = outputs.parse()?;
        Ok(DerivedPath::Built { drv, outputs })
    }

    fn read_json(value: &Value) -> Result<Self, DerivedPathFault> {
        if let Some(base) = value.as_str() {
            return Ok(DerivedPath::Opaque(StorePath::parse(base)?));
        }
        let outputs = OutputsSpec::from_json(value.get("outputs").ok_or(DerivedPathFault::Json)?)?;
        let drv = SingleDerivedPath::read_json(&value["drvPath"], MAX_DEPTH)?;
        Ok(DerivedPath::Built { drv, outputs })
    }
}

/// One output is a request for exactly that.
impl From<SingleDerivedPath> for DerivedPath {
    fn from(path: SingleDerivedPath) -> DerivedPath {
        match path {
            SingleDerivedPath::Opaque(path) => DerivedPath::Opaque(path),
            SingleDerivedPath::Built { drv, output } => DerivedPath::Built {
                drv: *drv,
                outputs: OutputsSpec::one(output),
            },
        }
    }
}

/// A text or JSON value that is no derived path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} is not a derived path: {why}")]
pub struct DerivedPathError {
    text: Box<str>,
    why: DerivedPathFault,
}

impl DerivedPathError {
    fn new(text: &str, why: DerivedPathFault) -> Self {
        let text = format!("{:?}", clip(text)).into();
        DerivedPathError { text, why }
    }

    fn json(why: DerivedPathFault) -> Self {
        let text = "the JSON value".into();
        DerivedPathError { text, why }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum DerivedPathFault {
    #[error("{0}")]
    Path(#[from] StorePathError),
    #[error("{0}")]
    Output(#[from] OutputNameError),
    #[error("{0}")]
    Outputs(#[from] OutputsSpecError),
    #[error("it is nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error("it must be a base name, or an object with drvPath and its output or outputs")]
    Json,
}

/// The text of a path with this mark.
struct MarkedPathText<'a, T>(&'a T, &'a StoreDir, char);

impl fmt::Display for MarkedPathText<'_, SingleDerivedPath> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MarkedPathText(path, dir, mark) = *self;
        match path {
            SingleDerivedPath::Opaque(path) => dir.display(path).fmt(f),
            SingleDerivedPath::Built { drv, output } => {
                write!(f, "{}{mark}{output}", MarkedPathText(&**drv, dir, mark))
            }
        }
    }
}

impl fmt::Display for MarkedPathText<'_, DerivedPath> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MarkedPathText(path, dir, mark) = *self;
        match path {
            DerivedPath::Opaque(path) => dir.display(path).fmt(f),
            DerivedPath::Built { drv, outputs } => {
                write!(f, "{}{mark}{outputs}", MarkedPathText(drv, dir, mark))
            }
        }
    }
}

const MODERN: char = '^';
const LEGACY: char = '!';

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts() {
        let dir = StoreDir::default();
        for (text, canonical) in [
            ("P", "P"),
            ("P^*", "P^*"),
            ("P^bar,foo", "P^bar,foo"),
            ("P^foo,bar", "P^bar,foo"),
            ("P^foo^bar,baz", "P^foo^bar,baz"),
            ("P^a^b^c^*", "P^a^b^c^*"),
        ] {
            let (text, canonical) = (text.replace('P', P), canonical.replace('P', P));
            let path = DerivedPath::parse(&dir, &text).expect("derived path");
            assert_eq!(path.display(&dir).to_string(), canonical);
            let legacy = canonical.replace('^', "!");
            assert_eq!(path.display_legacy(&dir).to_string(), legacy);
            assert_eq!(DerivedPath::parse_legacy(&dir, &legacy), Ok(path.clone()));
            assert_eq!(DerivedPath::from_json(&path.to_json()), Ok(path.clone()));
            assert_eq!(dir.path(path.base()), P);
        }
        for text in [
            "",
            "^",
            "P^",
            "^out",
            "P^^out",
            "P^*^out",
            "P^a,b^out",
            "P!out",
            "P^out^",
            "x^out",
        ] {
            let text = text.replace('P', P);
            assert!(DerivedPath::parse(&dir, &text).is_err(), "{text}");
        }
    }

    #[test]
    fn singles() {
        let dir = StoreDir::default();
        for text in ["P", "P^out", "P^a^b^c"] {
            let text = text.replace('P', P);
            let path = SingleDerivedPath::parse(&dir, &text).expect("single");
            assert_eq!(path.display(&dir).to_string(), text);
            let legacy = path.display_legacy(&dir).to_string();
            assert_eq!(
                SingleDerivedPath::parse_legacy(&dir, &legacy),
                Ok(path.clone())
            );
            assert_eq!(
                SingleDerivedPath::from_json(&path.to_json()),
                Ok(path.clone())
            );
            let derived = DerivedPath::from(path);
            assert_eq!(derived.display(&dir).to_string(), text);
        }
        for text in ["P^*", "P^a,b", "P^"] {
            assert!(SingleDerivedPath::parse(&dir, &text.replace('P', P)).is_err());
        }
    }

    #[test]
    fn depth() {
        let dir = StoreDir::default();
        let deep = |n| format!("{P}{}", "^a".repeat(n));
        assert!(SingleDerivedPath::parse(&dir, &deep(MAX_DEPTH)).is_ok());
        for n in [MAX_DEPTH + 1, 1 << 20] {
            let error = SingleDerivedPath::parse(&dir, &deep(n)).expect_err("too deep");
            assert!(error.to_string().ends_with("nested more than 64 deep"));
        }
        let path = SingleDerivedPath::parse(&dir, &deep(MAX_DEPTH)).expect("deep");
        assert!(SingleDerivedPath::from_json(&path.to_json()).is_ok());
        let deeper = path.output(OutputName::out());
        assert!(SingleDerivedPath::from_json(&deeper.to_json()).is_err());
    }

    #[test]
    fn bad_json() {
        for text in [
            "null",
            "1",
            "{}",
            "[]",
            "\"x\"",
            r#"{"drvPath":"B"}"#,
            r#"{"drvPath":"B","outputs":[]}"#,
            r#"{"drvPath":"B","outputs":"*"}"#,
            r#"{"drvPath":{"drvPath":"B","outputs":["*"]},"outputs":["*"]}"#,
        ] {
            let text = text.replace('B', &P[11..]);
            let value = serde_json::from_str(&text).expect("JSON");
            assert!(DerivedPath::from_json(&value).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String, tail in "[a-c^!*,]{0,12}") {
            let dir = StoreDir::default();
            for text in [text, format!("{P}{tail}")] {
                if let Ok(path) = DerivedPath::parse(&dir, &text) {
                    let again = path.display(&dir).to_string();
                    prop_assert_eq!(DerivedPath::parse(&dir, &again), Ok(path));
                }
                let _ = DerivedPath::parse_legacy(&dir, &text);
            }
        }
    }

    const P: &str = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-x.drv";
}
