use std::{fmt, path::PathBuf, str::FromStr};
use tk_path::{DerivedPath, OutputsSpec, SingleDerivedPath, StoreDir};

/// What people name to be built, evaluated or entered.
///
/// | Text | |
/// |---|---|
/// | `FLAKE[#ATTR][^OUT,…]` | an attribute of a flake |
/// | `/nix/store/….drv[^OUT,…]` | a derivation |
/// | `/nix/store/…` | a path |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installable {
    /// Where it comes from.
    pub source: InstallableSource,
    /// The attribute; empty is the default one.
    pub attr: String,
    /// The outputs that were asked for; `None`: those that are usual.
    pub outputs: Option<OutputsSpec>,
}

/// Where an [`Installable`] comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallableSource {
    /// A flake, by a reference that nix reads: `.`, `path:/a`, `github:a/b`.
    Flake(String),
    /// A file of Nix code, or a folder with a `default.nix`.
    File(PathBuf),
    /// An expression of the Nix language, as text.
    Expr(String),
    /// A path of the store, or outputs of a derivation.
    Store(DerivedPath),
}

impl Installable {
    /// What `text` names, where `dir` is the store's directory.
    ///
    /// A derivation without outputs means all of them, since building it is what it is named for.
    pub fn parse(dir: &StoreDir, text: &str) -> Result<Installable, InstallableError> {
        if text.starts_with(dir.as_str()) && !text.contains('#') {
            let path = DerivedPath::parse(dir, text);
            let path = path.map_err(|e| InstallableError::new(text, e))?;
            let path = match path {
                DerivedPath::Opaque(drv) if drv.is_derivation() => DerivedPath::Built {
                    drv: SingleDerivedPath::Opaque(drv),
                    outputs: OutputsSpec::All,
                },
                path => path,
            };
            return Ok(Installable::of(InstallableSource::Store(path), ""));
        }
        let (reference, attr, outputs) = match text.split_once('#') {
            Some((reference, rest)) => {
                let (attr, outputs) = split_outputs(text, rest)?;
                (reference, attr, outputs)
            }
            // As Nix: a name may hold a "^" that no outputs follow.
            None => match split_outputs(text, text) {
                Ok((reference, outputs)) => (reference, "", outputs),
                Err(_) => (text, "", None),
            },
        };
        let reference = match reference {
            "" => ".",
            reference => reference,
        };
        if reference.starts_with('-') {
            return Err(InstallableError::new(text, "a flake begins with no '-'"));
        }
        Ok(Installable {
            outputs,
            ..Installable::of(InstallableSource::Flake(reference.to_owned()), attr)
        })
    }

    /// The attribute `attr`, perhaps with `^OUT,…`, of a file or an expression.
    pub fn attribute(
        source: InstallableSource,
        attr: &str,
    ) -> Result<Installable, InstallableError> {
        let (name, outputs) = split_outputs(attr, attr)?;
        Ok(Installable {
            outputs,
            ..Installable::of(source, name)
        })
    }

    fn of(source: InstallableSource, attr: &str) -> Installable {
        Installable {
            source,
            attr: attr.to_owned(),
            outputs: None,
        }
    }
}

/// `packages.x^out,dev` is an attribute and outputs; an attribute may hold quoted parts.
fn split_outputs<'a>(
    whole: &str,
    text: &'a str,
) -> Result<(&'a str, Option<OutputsSpec>), InstallableError> {
    match text.rsplit_once('^') {
        Some((attr, outputs)) if !outputs.contains('"') => {
            let outputs = OutputsSpec::from_str(outputs);
            let outputs = outputs.map_err(|e| InstallableError::new(whole, e))?;
            Ok((attr, Some(outputs)))
        }
        _ => Ok((text, None)),
    }
}

impl fmt::Display for Installable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            InstallableSource::Flake(reference) => write!(f, "{reference}#{}", self.attr)?,
            InstallableSource::File(file) if self.attr.is_empty() => {
                write!(f, "{}", file.display())?
            }
            InstallableSource::File(file) => write!(f, "{} of {}", self.attr, file.display())?,
            InstallableSource::Expr(_) => f.write_str("the expression")?,
            InstallableSource::Store(path) => return path.display(&StoreDir::default()).fmt(f),
        }
        match &self.outputs {
            Some(outputs) => write!(f, "^{outputs}"),
            None => Ok(()),
        }
    }
}

/// A text that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' names nothing to build: {why}")]
pub struct InstallableError {
    text: String,
    why: String,
}

impl InstallableError {
    fn new(text: &str, why: impl fmt::Display) -> Self {
        InstallableError {
            text: text.to_owned(),
            why: why.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let dir = StoreDir::default();
        let flake = |reference: &str| InstallableSource::Flake(reference.into());
        for (text, source, attr, outputs) in [
            (".", flake("."), "", None),
            ("#x", flake("."), "x", None),
            (
                "nixpkgs#hello^out,dev",
                flake("nixpkgs"),
                "hello",
                Some("dev,out"),
            ),
            (
                "path:/a?dir=b#c.\"d.e\"",
                flake("path:/a?dir=b"),
                "c.\"d.e\"",
                None,
            ),
            (".#x^*", flake("."), "x", Some("*")),
            ("./flake^lib", flake("./flake"), "", Some("lib")),
            ("path:/a^out,dev", flake("path:/a"), "", Some("dev,out")),
            (".^*", flake("."), "", Some("*")),
            ("./a^b/c", flake("./a^b/c"), "", None),
        ] {
            let read = Installable::parse(&dir, text).unwrap();
            let outputs_read = read.outputs.as_ref().map(ToString::to_string);
            assert_eq!(
                (&read.source, read.attr.as_str()),
                (&source, attr),
                "{text}"
            );
            assert_eq!(outputs_read.as_deref(), outputs, "{text}");
        }
        let path = format!("{dir}/{}-x.drv", "a".repeat(32));
        match Installable::parse(&dir, &path).unwrap().source {
            InstallableSource::Store(DerivedPath::Built { outputs, .. }) => {
                assert_eq!(outputs, OutputsSpec::All)
            }
            other => panic!("{other:?}"),
        }
        for text in ["--impure", "/nix/store/x", ".#a^", ".#a^o/t"] {
            assert!(Installable::parse(&dir, text).is_err(), "{text}");
        }
    }
}
