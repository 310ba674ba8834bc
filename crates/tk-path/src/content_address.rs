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
    /// The NAR of a file, a directory or a symlink.
    Nar,
    /// The git object: a blob, or a tree. Experimental in Nix.
    Git,
}

impl Method {
    /// All methods, in the order of their declaration.
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
    /// What of the object is going to be hashed.
    pub method: Method,
    /// The algorithm that hashes it.
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
            .map_err(|e| ContentAddressError::new(text, ContentAddressFault::Algorithm(e)))?;
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
            .map_err(|e| ContentAddressError::new(text, ContentAddressFault::Algorithm(e)))?;
        Ok(MethodAlgorithm { method, algorithm })
    }
}

/// What the content of a store path is, independent of who made it. `Display` and `FromStr` use the form of narinfo
/// and the database, `fixed:r:sha256:<nix32>`. That method and algorithm go together is checked when a path is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress {
    /// What of the object was hashed.
    pub method: Method,
    /// The hash of what the method selects.
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
            return Err(ContentAddressError::new(text, ContentAddressFault::Form));
        };
        let hash = algorithm
            .parse()
            .map_err(ContentAddressFault::Algorithm)
            .and_then(|a| Hash::parse_digits(digits, a).map_err(ContentAddressFault::Hash))
            .map_err(|why| ContentAddressError::new(text, why))?;
        Ok(ContentAddress { method, hash })
    }
}

/// A text that is no content address, or no method with algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a content address: {why}")]
pub struct ContentAddressError {
    text: Box<str>,
    why: ContentAddressFault,
}

impl ContentAddressError {
    fn new(text: &str, why: ContentAddressFault) -> Self {
        let text = clip(text);
        ContentAddressError { text, why }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum ContentAddressFault {
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

    /// Returns the type that is hashed into a path: `kind:ref:ref:self`.
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
        .ok_or_else(|| ContentAddressError::new(text, ContentAddressFault::Form))?;
    match Method::split_prefix(rest) {
        // `fixed:text:` does not exist; the algorithm is then unknown.
        (Method::Text, _) => Ok((Method::Flat, rest)),
        split => Ok(split),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let hash = Hash::digest(Algorithm::Sha256, b"abc");
        for (method, text, protocol, aterm) in [
            (Method::Text, "text:", "text:sha256", "text:sha256"),
            (Method::Flat, "fixed:", "fixed:sha256", "sha256"),
            (Method::Nar, "fixed:r:", "fixed:r:sha256", "r:sha256"),
            (Method::Git, "fixed:git:", "fixed:git:sha256", "git:sha256"),
        ] {
            let ca = ContentAddress { method, hash };
            assert_eq!(ca.to_string(), format!("{text}{hash}"));
            for encoding in [Encoding::Base16, Encoding::Nix32, Encoding::Base64] {
                assert_eq!(format!("{text}{}", hash.to_text(encoding)).parse(), Ok(ca));
            }
            assert!(
                format!("{text}{}", hash.to_text(Encoding::Sri))
                    .parse::<ContentAddress>()
                    .is_err()
            );
            assert_eq!(ca.method_algorithm().to_string(), protocol);
            assert_eq!(protocol.parse(), Ok(ca.method_algorithm()));
            assert_eq!(ca.method_algorithm().to_aterm(), aterm);
            assert_eq!(
                MethodAlgorithm::parse_aterm(aterm),
                Ok(ca.method_algorithm())
            );
            assert_eq!(method.name().parse(), Ok(method));
        }
        assert!("narwhal".parse::<Method>().is_err());
    }

    #[test]
    fn refuses_texts() {
        for text in [
            "",
            "fixed",
            "fixed:",
            "r:sha256:00",
            "fixed:text:sha256:00",
            "fixed:r:sha256",
            "fixed:r:git:sha1:00",
            "text:sha257:00",
        ] {
            let error = text.parse::<ContentAddress>().expect_err(text).to_string();
            assert!(
                error.starts_with(&format!("{text:?} is not a content address: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn paths() {
        let path = |method, algorithm, references: &References| {
            let hash = Hash::digest(algorithm, b"hello");
            let ca = ContentAddress { method, hash };
            StoreDir::default()
                .path_of_content("x", &ca, references)
                .map(|p| p.to_string())
        };
        let none = References::default();
        let other = StorePath::parse("0c6rn30q4frawknapgwq386zq358m8r6-zed").expect("path");
        let one = References {
            others: [other].into(),
            itself: false,
        };
        let itself = References {
            itself: true,
            ..References::default()
        };
        use {Algorithm::*, ContentPathError as E};
        assert_eq!(path(Method::Text, Sha1, &none), Err(E::TextAlgorithm(Sha1)));
        assert_eq!(path(Method::Text, Sha256, &itself), Err(E::TextSelf));
        assert_eq!(
            path(Method::Git, Sha512, &none),
            Err(E::GitAlgorithm(Sha512))
        );
        for (method, algorithm) in [
            (Method::Flat, Sha256),
            (Method::Nar, Sha1),
            (Method::Git, Sha256),
        ] {
            assert!(path(method, algorithm, &none).is_ok());
            for refs in [&one, &itself] {
                assert_eq!(
                    path(method, algorithm, refs),
                    Err(E::References(method, algorithm))
                );
            }
        }
        // All differ, references and the place of `self` included.
        let made: BTreeSet<_> = [
            path(Method::Text, Sha256, &none),
            path(Method::Text, Sha256, &one),
            path(Method::Nar, Sha256, &none),
            path(Method::Nar, Sha256, &one),
            path(Method::Nar, Sha256, &itself),
            path(Method::Flat, Sha256, &none),
            path(Method::Git, Sha256, &none),
        ]
        .into_iter()
        .map(|p| p.expect("a path"))
        .collect();
        assert_eq!(made.len(), 7);
    }

    /// Paths that Nix made.
    #[test]
    fn paths_as_nix() {
        let sha1 = |hex| Hash::parse_digits(hex, Algorithm::Sha1).expect("hash");
        let path = |dir: &str, method, hash| {
            let dir = StoreDir::new(dir).expect("directory");
            let ca = ContentAddress { method, hash };
            let path = dir.path_of_content("hello-2.12.1", &ca, &References::default());
            dir.path(&path.expect("path"))
        };
        let (flat, git) = (
            sha1("33469b9b10ef7391db7dd2f56c8d4d487137cf10"),
            sha1("8a9353e0b8836f5e29da789eaecc4dac76142027"),
        );
        assert_eq!(
            path("/nix/store", Method::Flat, flat),
            "/nix/store/s3lsgczj4ayja4ry7xcl5pylmr9956pz-hello-2.12.1"
        );
        assert_eq!(
            path("/nix/store", Method::Git, git),
            "/nix/store/jgkd3lyvzypv2m6hspkfp4lpgybj1jfg-hello-2.12.1"
        );
        assert_eq!(
            path("/my/store", Method::Git, git),
            "/my/store/z7ggsdhxg56pcyxnhvi8qvlphzbjl7za-hello-2.12.1"
        );
        let dir = StoreDir::default();
        let ca = ContentAddress {
            method: Method::Nar,
            hash: flat,
        };
        let error = dir
            .path_of_content("a b", &ca, &References::default())
            .expect_err("name");
        assert!(
            error.to_string().contains("byte 1 of its name is 0x20"),
            "{error}"
        );
    }
}
