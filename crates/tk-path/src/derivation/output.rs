//! One output of a derivation, and the three texts it is written as in derivations and in the protocols.
//!
//! ```text
//! kind               path   method+algo      hash
//! input-addressed    full                             what stands in hash is not looked at
//! fixed              full   "r:sha256" etc.  hex      path: the one that the content address makes
//! floating                  method+algo               needs ca-derivations
//! deferred
//! impure                    method+algo      "impure" needs impure-derivations
//! ```

use crate::output_name::OutputName;
use crate::text::clip;
use crate::{
    ContentAddress, ContentAddressError, ContentPathError, Encoding, Hash, HashError,
    MethodAlgorithm, References, StoreDir, StorePath, StorePathError,
};

/// How the path of an output comes about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DerivationOutput {
    /// By what goes into the derivation.
    InputAddressed(StorePath),
    /// By the content that is demanded of it.
    Fixed(ContentAddress),
    /// By the content that it turns out to have.
    Floating(MethodAlgorithm),
    /// As input-addressed, but an input's path is not known yet, so neither is this one.
    Deferred,
    /// As floating, and every build may give another content.
    Impure(MethodAlgorithm),
}

impl DerivationOutput {
    /// The path, when it is known before building. `derivation` is the name of the derivation. An error when the
    /// content address of a fixed output makes no path.
    pub fn path(
        &self,
        dir: &StoreDir,
        derivation: &str,
        output: &OutputName,
    ) -> Result<Option<StorePath>, ContentPathError> {
        match self {
            DerivationOutput::InputAddressed(path) => Ok(Some(path.clone())),
            DerivationOutput::Fixed(ca) => {
                let name = output.path_name(derivation);
                dir.path_of_content(&name, ca, &References::default())
                    .map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Path, method with algorithm, and hash, as derivations and the protocols have them.
    pub fn to_strings(
        &self,
        dir: &StoreDir,
        derivation: &str,
        output: &OutputName,
    ) -> Result<[String; 3], ContentPathError> {
        let path = self.path(dir, derivation, output)?;
        let path = path.map(|path| dir.path(&path)).unwrap_or_default();
        let (method, hash) = match self {
            DerivationOutput::InputAddressed(_) | DerivationOutput::Deferred => Default::default(),
            DerivationOutput::Fixed(ca) => (
                ca.method_algorithm().to_aterm(),
                ca.hash.digits(Encoding::Base16),
            ),
            DerivationOutput::Floating(method) => (method.to_aterm(), String::new()),
            DerivationOutput::Impure(method) => (method.to_aterm(), IMPURE.to_owned()),
        };
        Ok([path, method, hash])
    }

    /// Reads path, method with algorithm, and hash. The path of a fixed output must be the one that its content
    /// address makes, which is why the names are asked for.
    pub fn from_strings(
        dir: &StoreDir,
        derivation: &str,
        output: &OutputName,
        [path, method, hash]: [&str; 3],
    ) -> Result<DerivationOutput, OutputError> {
        match (path, method, hash) {
            ("", "", _) => return Ok(DerivationOutput::Deferred),
            (path, "", _) => {
                let path = dir.parse_canonical(path)?;
                return Ok(DerivationOutput::InputAddressed(path));
            }
            _ => {}
        }
        let method = MethodAlgorithm::parse_aterm(method)?;
        match (path, hash) {
            ("", "") => Ok(DerivationOutput::Floating(method)),
            ("", IMPURE) => Ok(DerivationOutput::Impure(method)),
            (path, "" | IMPURE) => Err(OutputError::Unexpected(clip(path))),
            (path, digits) => {
                let hash = Hash::parse_digits(digits, method.algorithm)?;
                let method = method.method;
                let fixed = DerivationOutput::Fixed(ContentAddress { method, hash });
                let stated = dir.parse_canonical(path)?;
                let computed = fixed.path(dir, derivation, output)?;
                match computed.filter(|computed| *computed != stated) {
                    None => Ok(fixed),
                    Some(computed) => Err(OutputError::OtherPath { stated, computed }),
                }
            }
        }
    }
}

/// What is wrong with the texts of an output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// The path is none.
    #[error("{0}")]
    Path(#[from] StorePathError),
    /// The method or algorithm is unknown.
    #[error("{0}")]
    Method(#[from] ContentAddressError),
    /// The hash is none.
    #[error("{0}")]
    Hash(#[from] HashError),
    /// The content address makes no path.
    #[error("{0}")]
    Content(#[from] ContentPathError),
    /// There is a path where it cannot be known.
    #[error("it states the path {0:?}, but only its content will tell the path")]
    Unexpected(Box<str>),
    /// The path of a fixed output is not the one that its content address makes.
    #[error("it states the path {stated}, but its content address makes {computed}")]
    OtherPath {
        /// What the derivation says.
        stated: StorePath,
        /// What follows from its content address.
        computed: StorePath,
    },
}

const IMPURE: &str = "impure";

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/nix/store/c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-fixed";
    const HEX: &str = "894517c9163c896ec31a2adbd33c0681fd5f45b2c0ef08a64c92a03fb97f390f";

    fn read(strings: [&str; 3]) -> Result<DerivationOutput, OutputError> {
        let (dir, out) = (StoreDir::default(), OutputName::out());
        DerivationOutput::from_strings(&dir, "source", &out, strings)
    }

    #[test]
    fn round_trips() {
        let source = "/nix/store/i00sflxqsj37lfmf95m8mn0grv615hpj-source";
        for strings in [
            [PATH, "", ""],
            [source, "r:sha256", HEX],
            ["", "r:sha256", ""],
            ["", "text:sha256", ""],
            ["", "sha1", ""],
            ["", "", ""],
            ["", "git:sha1", "impure"],
        ] {
            let output = read(strings).expect("output");
            let written = output.to_strings(&StoreDir::default(), "source", &OutputName::out());
            assert_eq!(written, Ok(strings.map(str::to_owned)));
        }
    }

    #[test]
    fn refuses() {
        for (strings, says) in [
            (["x", "", ""], "not a store path"),
            (
                ["/nix/store//c015dhfh5l0lp6wxyvdn7bmwhbbr6hr9-x", "", ""],
                "not a store path",
            ),
            ([PATH, "sha256", HEX], "its content address makes"),
            (["", "sha256", HEX], "not a store path"),
            ([PATH, "r:sha256", ""], "only its content will tell"),
            ([PATH, "r:sha256", "impure"], "only its content will tell"),
            (["", "sha257", ""], "unknown hash algorithm"),
            (["", "fixed:r:sha256", ""], "not a content address"),
            ([PATH, "r:sha256", "zz"], "not a valid hash"),
            (
                [
                    PATH,
                    "r:sha256",
                    "sha256-iUUXyRY8iW7DGirb0zwGgf1fRbLA7wimTJKgP7l/OQ8=",
                ],
                "not a valid hash",
            ),
            ([PATH, "git:sha256", HEX], "its content address makes"),
            (
                [
                    PATH,
                    "text:sha1",
                    "894517c9163c896ec31a2adbd33c0681fd5f45b2",
                ],
                "must be hashed with sha256",
            ),
        ] {
            let error = read(strings).expect_err(says).to_string();
            assert!(error.contains(says), "{error} / {says}");
        }
    }
}
