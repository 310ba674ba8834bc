//! Content addresses, and the store paths they make.
//!
//! ```text
//! ca       = "text:" algo ":" digits | "fixed:" ["r:" | "git:"] algo ":" digits
//! protocol = "text:" algo | "fixed:" ["r:" | "git:"] algo
//! aterm    = "text:" algo | ["r:" | "git:"] algo
//! ```
//! Written in nix32; hex and base64 are read too, SRI is not. Mirrors `content-address.cc` and
//! `store-dir-config.cc`.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use crate::text::clip;
use crate::{
    Algorithm, Encoding, Hash, HashError, StoreDir, StorePath, StorePathError, UnknownAlgorithm,
};

/// What of a file system object is hashed. `Display` and `FromStr` use the lower-case name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// The bytes of one file, which may refer to other paths.
    Text,
    /// The bytes of one file.
    Flat,
    /// The NAR.
    Nar,
    /// The git object: a blob, or a tree. Experimental in Nix.
    Git,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 4] = [Method::Text, Method::Flat, Method::Nar, Method::Git];

    /// The name: `text`, `flat`, `nar`, `git`.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Text => "text",
            Method::Flat => "flat",
            Method::Nar => "nar",
            Method::Git => "git",
        }
    }

    /// The prefix in derivations, and behind `fixed:`.
    const fn prefix(self) -> &'static str {
        match self {
            Method::Text => "text:",
            Method::Flat => "",
            Method::Nar => "r:",
            Method::Git => "git:",
        }
    }

    /// Takes the prefix off `text`.
    fn split_prefix(text: &str) -> (Method, &str) {
        [Method::Text, Method::Nar, Method::Git]
            .into_iter()
            .find_map(|m| Some((m, text.strip_prefix(m.prefix())?)))
            .unwrap_or((Method::Flat, text))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(text: &str) -> Result<Self, UnknownMethod> {
        Method::ALL
            .into_iter()
            .find(|m| m.name() == text)
            .ok_or_else(|| UnknownMethod(clip(text)))
    }
}

/// A text that names no method.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown content-address method {0:?}; known are text, flat, nar and git")]
pub struct UnknownMethod(Box<str>);

/// A method with an algorithm: how content is going to be addressed, before it is known. `Display` and `FromStr` use
/// the form of the protocols, `fixed:r:sha256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MethodAlgorithm {
    /// What is hashed.
    pub method: Method,
    /// How.
    pub algorithm: Algorithm,
}

impl MethodAlgorithm {
    /// The form in derivations: `r:sha256`, `sha1`, `text:sha256`.
    pub fn to_aterm(self) -> String {
        format!("{}{}", self.method.prefix(), self.algorithm)
    }

    /// Reads the form in derivations.
    pub fn parse_aterm(text: &str) -> Result<Self, ContentAddressError> {
        let (method, algorithm) = Method::split_prefix(text);
        let algorithm = algorithm
            .parse()
            .map_err(|e| ContentAddressError::new(text, Why::Algorithm(e)))?;
        Ok(MethodAlgorithm { method, algorithm })
    }
}

impl fmt::Display for MethodAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = if self.method == Method::Text {
            ""
        } else {
            "fixed:"
        };
        write!(f, "{fixed}{}{}", self.method.prefix(), self.algorithm)
    }
}

impl FromStr for MethodAlgorithm {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        let (method, algorithm) = split_fixed(text)?;
        let algorithm = algorithm
            .parse()
            .map_err(|e| ContentAddressError::new(text, Why::Algorithm(e)))?;
        Ok(MethodAlgorithm { method, algorithm })
    }
}

/// What the content of a store path is, independent of who made it. `Display` and `FromStr` use the form of narinfo
/// and the database, `fixed:r:sha256:<nix32>`. That method and algorithm go together is checked when a path is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress {
    /// What is hashed.
    pub method: Method,
    /// Its hash.
    pub hash: Hash,
}

impl ContentAddress {
    /// The method with the algorithm of the hash.
    pub fn method_algorithm(&self) -> MethodAlgorithm {
        let method = self.method;
        let algorithm = self.hash.algorithm();
        MethodAlgorithm { method, algorithm }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = if self.method == Method::Text {
            ""
        } else {
            "fixed:"
        };
        write!(f, "{fixed}{}{}", self.method.prefix(), self.hash)
    }
}

impl FromStr for ContentAddress {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        let (method, rest) = split_fixed(text)?;
        let Some((algorithm, digits)) = rest.split_once(':') else {
            return Err(ContentAddressError::new(text, Why::Form));
        };
        let hash = algorithm
            .parse()
            .map_err(Why::Algorithm)
            .and_then(|a| Hash::parse_digits(digits, a).map_err(Why::Hash))
            .map_err(|why| ContentAddressError::new(text, why))?;
        Ok(ContentAddress { method, hash })
    }
}

/// A text that is no content address, or no method with algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a content address: {why}")]
pub struct ContentAddressError {
    text: Box<str>,
    why: Why,
}

impl ContentAddressError {
    fn new(text: &str, why: Why) -> Self {
        let text = clip(text);
        ContentAddressError { text, why }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error("it must start with text: or fixed:, and name an algorithm")]
    Form,
    #[error("{0}")]
    Algorithm(UnknownAlgorithm),
    #[error("{0}")]
    Hash(HashError),
}

/// What a store path refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct References {
    /// The paths other than itself.
    pub others: BTreeSet<StorePath>,
    /// Whether it refers to itself.
    pub itself: bool,
}

impl References {
    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && !self.itself
    }
}

impl StoreDir {
    /// The path with the name `name` that a fingerprint of `kind` and `hash` gives: the rule below all store paths.
    /// Kinds are `text…`, `source…` and `output:<output>`, see [`StoreDir::path_of_content`].
    pub fn make_path(
        &self,
        kind: &str,
        hash: &Hash,
        name: &str,
    ) -> Result<StorePath, StorePathError> {
        let hash = hash.to_text(Encoding::Base16);
        let fingerprint = format!("{kind}:{hash}:{self}:{name}");
        let digest = Hash::digest(Algorithm::Sha256, fingerprint.as_bytes());
        StorePath::from_digest(&digest.compress_to_path(), name)
    }

    /// The path that content has by its address. Not every combination makes one: `text` wants sha256 and no self
    /// reference, `git` wants sha1 or sha256, and only `text` and `nar` with sha256 may have references.
    pub fn path_of_content(
        &self,
        name: &str,
        ca: &ContentAddress,
        references: &References,
    ) -> Result<StorePath, ContentPathError> {
        check_combination(ca, references)?;
        let sha256 = ca.hash.algorithm() == Algorithm::Sha256;
        let path = match ca.method {
            Method::Text => self.make_path(&self.kind("text", references), &ca.hash, name),
            Method::Nar if sha256 => {
                self.make_path(&self.kind("source", references), &ca.hash, name)
            }
            _ => self.make_path("output:out", &fixed_hash(ca), name),
        };
        path.map_err(ContentPathError::Name)
    }

    /// `kind:ref:ref:self`
    fn kind(&self, kind: &str, references: &References) -> String {
        let mut text = kind.to_owned();
        for path in &references.others {
            // Writing to a String does not fail.
            let _ = write!(text, ":{}", self.display(path));
        }
        if references.itself {
            text.push_str(":self");
        }
        text
    }
}

/// Why a content address makes no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentPathError {
    /// `text` with another algorithm than sha256.
    #[error("content addressed as text must be hashed with sha256, not {0}")]
    TextAlgorithm(Algorithm),
    /// `text` with a self reference.
    #[error("content addressed as text cannot refer to itself")]
    TextSelf,
    /// `git` with an algorithm that git does not have.
    #[error("content addressed by git must be hashed with sha1 or sha256, not {0}")]
    GitAlgorithm(Algorithm),
    /// References where the rule has no place for them.
    #[error(
        "content addressed as {0} with {1} cannot have references; only text and nar with sha256 can"
    )]
    References(Method, Algorithm),
    /// The name cannot be the name of a store path.
    #[error("{0}")]
    Name(StorePathError),
}

fn check_combination(ca: &ContentAddress, references: &References) -> Result<(), ContentPathError> {
    use {Algorithm::*, ContentPathError as E};
    match (ca.method, ca.hash.algorithm()) {
        (Method::Text, Sha256) if references.itself => Err(E::TextSelf),
        (Method::Text, Sha256) | (Method::Nar, Sha256) => Ok(()),
        (Method::Text, other) => Err(E::TextAlgorithm(other)),
        (Method::Git, other) if !matches!(other, Sha1 | Sha256) => Err(E::GitAlgorithm(other)),
        (_, _) if references.is_empty() => Ok(()),
        (method, algorithm) => Err(E::References(method, algorithm)),
    }
}

/// The hash that stands for a fixed output: of its description, not of its content.
fn fixed_hash(ca: &ContentAddress) -> Hash {
    let prefix = ca.method.prefix();
    let hash = ca.hash.to_text(Encoding::Base16);
    let text = format!("fixed:out:{prefix}{hash}:");
    Hash::digest(Algorithm::Sha256, text.as_bytes())
}

/// Takes `text:` or `fixed:` with its method off `text`.
fn split_fixed(text: &str) -> Result<(Method, &str), ContentAddressError> {
    if let Some(rest) = text.strip_prefix("text:") {
        return Ok((Method::Text, rest));
    }
    let rest = text
        .strip_prefix("fixed:")
        .ok_or_else(|| ContentAddressError::new(text, Why::Form))?;
    match Method::split_prefix(rest) {
        // `fixed:text:` does not exist; the algorithm is then unknown.
        (Method::Text, _) => Ok((Method::Flat, rest)),
        split => Ok(split),
    }
}
