//! Store paths without their directory.
//!
//! ```text
//! base  = 32 nix32 digits "-" name
//! name  = 1 to 211 of 0-9 a-z A-Z + - . _ ? =      not "." or "..", not starting with ".-" or "..-"
//! ```
//! Mirrors `path.cc`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::nix32::{self, Nix32Error};
use crate::text::{Byte, clip};

/// The base name of a store path, such as `n5wkd9frr45pa74if5gpz9j7mifg27fh-foo`. Which directory it is in, a
/// [`StoreDir`](crate::StoreDir) says. Cheap to clone; ordered by the bytes of the base name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

impl StorePath {
    /// The length of the longest name.
    pub const MAX_NAME: usize = 211;

    /// Reads a base name.
    pub fn parse(base: &str) -> Result<StorePath, StorePathError> {
        match check(base.as_bytes()) {
            Ok(()) => Ok(StorePath(base.into())),
            Err(kind) => Err(StorePathError::new(base, kind)),
        }
    }

    /// The path with this digest and name.
    pub fn from_digest(digest: &[u8; 20], name: &str) -> Result<StorePath, StorePathError> {
        check_name(name.as_bytes())
            .map_err(|e| StorePathError::new(name, StorePathErrorKind::Name(e)))?;
        let part = HashPart::from_digest(digest);
        Ok(StorePath(format!("{part}-{name}").into()))
    }

    /// The 32 nix32 digits in front.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_LEN]
    }

    /// The 32 nix32 digits in front, as a value of their own.
    pub fn to_hash_part(&self) -> HashPart {
        let mut digits = [0; HASH_LEN];
        digits.copy_from_slice(&self.0.as_bytes()[..HASH_LEN]);
        HashPart(digits)
    }

    /// The 20 bytes that the hash part stands for.
    pub fn digest(&self) -> [u8; 20] {
        self.to_hash_part().digest()
    }

    /// What follows the hash part and its dash.
    pub fn name(&self) -> &str {
        &self.0[HASH_LEN + 1..]
    }

    /// The whole base name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name ends in `.drv`.
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(".drv")
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorePath({})", self.0)
    }
}

impl AsRef<str> for StorePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Reads what [`StorePath::parse`] reads: a base name.
impl FromStr for StorePath {
    type Err = StorePathError;

    fn from_str(base: &str) -> Result<Self, StorePathError> {
        StorePath::parse(base)
    }
}

/// The 32 nix32 digits that begin a store path, as narinfo files are named by and references are found by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashPart([u8; HASH_LEN]);

impl HashPart {
    /// Its length in digits.
    pub const LEN: usize = HASH_LEN;

    /// Reads 32 nix32 digits.
    pub fn parse(text: &str) -> Result<HashPart, Nix32Error> {
        HashPart::from_ascii(text.as_bytes())
    }

    /// Reads 32 nix32 digits.
    pub fn from_ascii(text: &[u8]) -> Result<HashPart, Nix32Error> {
        let expected = HASH_LEN;
        let digits = text.len();
        let Ok(part) = <[u8; HASH_LEN]>::try_from(text) else {
            return Err(Nix32Error::Expected { digits, expected });
        };
        match part.iter().position(|&b| !nix32::is_digit(b)) {
            None => Ok(HashPart(part)),
            Some(at) => {
                let byte = part[at];
                Err(Nix32Error::Digit { at, byte })
            }
        }
    }

    /// The digits of these bytes.
    pub fn from_digest(digest: &[u8; 20]) -> HashPart {
        let mut digits = [0; HASH_LEN];
        nix32::encode_into(digest, &mut digits);
        HashPart(digits)
    }

    /// The bytes that the digits stand for.
    pub fn digest(&self) -> [u8; 20] {
        let mut digest = [0; 20];
        // Cannot fail: 32 digits are 20 bytes with no bit to spare, and all are digits.
        nix32::decode_into(&self.0, &mut digest).unwrap_or_default();
        digest
    }

    /// Returns the 32 nix32 digits as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns the 32 nix32 digits as ASCII bytes.
    pub const fn as_bytes(&self) -> &[u8; HASH_LEN] {
        &self.0
    }
}

impl fmt::Display for HashPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for HashPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashPart({self})")
    }
}

impl FromStr for HashPart {
    type Err = Nix32Error;

    fn from_str(text: &str) -> Result<Self, Nix32Error> {
        HashPart::parse(text)
    }
}

impl From<&StorePath> for HashPart {
    fn from(path: &StorePath) -> HashPart {
        path.to_hash_part()
    }
}

/// A text that is no store path: which text, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a store path: {kind}")]
pub struct StorePathError {
    text: Box<str>,
    kind: StorePathErrorKind,
}

impl StorePathError {
    pub(crate) fn new(text: &str, kind: StorePathErrorKind) -> Self {
        let text = clip(text);
        StorePathError { text, kind }
    }

    /// What is wrong with the text.
    pub fn kind(&self) -> &StorePathErrorKind {
        &self.kind
    }
}

/// What is wrong with a store path. Positions count bytes of the base name, from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathErrorKind {
    /// Shorter than 32 digits, a dash and one byte of name.
    #[error("its base name has {0} bytes, but 32 digits, '-' and a name are needed")]
    TooShort(usize),
    /// One of the first 32 bytes is no nix32 digit.
    #[error("byte {at} of its hash part is {}, which is not a nix32 digit (0-9 a-z without e, o, u, t)", Byte(*byte))]
    Digit {
        /// The index of the byte in the hash part, from 0.
        at: usize,
        /// The byte that was found there.
        byte: u8,
    },
    /// Byte 32 is not the dash.
    #[error("'-' must follow its 32 digits, not {}", Byte(*.0))]
    Dash(u8),
    /// The name is not allowed.
    #[error("{0}")]
    Name(NameError),
    /// The path is not directly in the store directory.
    #[error("it is not directly in the store directory {0}")]
    NotInStore(Box<str>),
    /// The path does not start with `/`.
    #[error("it is not an absolute path")]
    Relative,
}

/// What is wrong with the name of a store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no bytes.
    #[error("its name is empty")]
    Empty,
    /// The name has so many bytes, which is more than [`StorePath::MAX_NAME`].
    #[error("its name has {0} bytes, more than 211")]
    TooLong(usize),
    /// `.`, `..`, or one of them followed by a dash.
    #[error("its name must not be '.' or '..', nor start with '.-' or '..-'")]
    Dots,
    /// A byte that names must not have.
    #[error("byte {at} of its name is {}, which is not one of 0-9 a-z A-Z + - . _ ? =", Byte(*byte))]
    Byte {
        /// Where it stands in the name, from 0.
        at: usize,
        /// The byte that was found there.
        byte: u8,
    },
}

/// Whether `base` is a base name. Good ones take one pass; only bad ones are looked at more closely.
fn check(base: &[u8]) -> Result<(), StorePathErrorKind> {
    let Some((hash, rest)) = base.split_at_checked(HASH_LEN) else {
        return Err(StorePathErrorKind::TooShort(base.len()));
    };
    if !all_of(hash, DIGIT) {
        let at = hash.iter().position(|&b| !nix32::is_digit(b)).unwrap_or(0);
        let byte = hash[at];
        return Err(StorePathErrorKind::Digit { at, byte });
    }
    match rest.split_first() {
        Some((b'-', name)) => check_name(name).map_err(StorePathErrorKind::Name),
        Some((&other, _)) => Err(StorePathErrorKind::Dash(other)),
        None => Err(StorePathErrorKind::TooShort(base.len())),
    }
}

/// Whether `name` may be the name of a store path.
pub(crate) fn check_name(name: &[u8]) -> Result<(), NameError> {
    match name {
        [] => return Err(NameError::Empty),
        b"." | b".." | [b'.', b'-', ..] | [b'.', b'.', b'-', ..] => return Err(NameError::Dots),
        _ if name.len() > StorePath::MAX_NAME => return Err(NameError::TooLong(name.len())),
        _ => {}
    }
    if all_of(name, NAME) {
        return Ok(());
    }
    let bad = |b: &u8| CLASS[usize::from(*b)] & NAME == 0;
    let at = name.iter().position(bad).unwrap_or(0);
    let byte = name[at];
    Err(NameError::Byte { at, byte })
}

/// Whether all bytes have the class; without a branch per byte.
fn all_of(bytes: &[u8], class: u8) -> bool {
    bytes
        .iter()
        .fold(class, |all, &b| all & CLASS[usize::from(b)])
        != 0
}

const HASH_LEN: usize = 32;
const DIGIT: u8 = 1;
const NAME: u8 = 2;

/// What each byte may stand for.
static CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        let byte = b as u8;
        if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=') {
            table[b] |= NAME;
        }
        b += 1;
    }
    let mut i = 0;
    while i < 32 {
        table[nix32::ALPHABET[i] as usize] |= DIGIT;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts() {
        let path = StorePath::parse(&format!("{HASH}-foo.drv")).expect("store path");
        assert_eq!((path.hash_part(), path.name()), (HASH, "foo.drv"));
        assert!(path.is_derivation());
        assert_eq!(
            StorePath::from_digest(&path.digest(), path.name()),
            Ok(path.clone())
        );
        assert_eq!(HashPart::parse(HASH), Ok(path.to_hash_part()));
        assert!(
            HashPart::parse(&HASH[1..]).is_err()
                && HashPart::parse(&HASH.replace('5', "e")).is_err()
        );
    }

    #[test]
    fn names() {
        let with = |name: &str| StorePath::parse(&format!("{HASH}-{name}"));
        for name in [
            "02345",
            "FOO",
            "foo+bar",
            "a_b",
            "foo?why",
            "foo=foo",
            ".gitignore",
            "...a",
            "...-",
            "...",
        ] {
            assert_eq!(with(name).expect(name).name(), name);
        }
        assert!(with(&"x".repeat(211)).is_ok());
        let long = "x".repeat(212);
        for (name, says) in [
            ("", "its name is empty"),
            (".", "'.-'"),
            ("..", "'.-'"),
            (".-1", "'.-'"),
            ("..-a", "'.-'"),
            ("foo!o", "byte 3 of its name is '!'"),
            ("a\0", "byte 1 of its name is 0x00"),
            ("fooé", "byte 3 of its name is 0xc3"),
            (&long, "its name has 212 bytes"),
        ] {
            let error = with(name).expect_err(name).to_string();
            assert!(error.contains(says), "{error} / {says}");
            assert!(StorePath::from_digest(&[0; 20], name).is_err());
        }
    }

    #[test]
    fn hash_parts() {
        for (base, says) in [
            ("", "0 bytes"),
            (HASH, "32 bytes"),
            (&format!("{HASH}_foo"), "must follow its 32 digits, not '_'"),
            (
                &format!("{HASH}\0foo"),
                "must follow its 32 digits, not 0x00",
            ),
            (
                &format!("{}-foo", HASH.replace('y', "u")),
                "byte 13 of its hash part is 'u'",
            ),
            (
                &format!("{}-foo", HASH.replace('y', "Y")),
                "byte 13 of its hash part is 'Y'",
            ),
            (&"é".repeat(40), "byte 0 of its hash part is 0xc3"),
        ] {
            let error = StorePath::parse(base).expect_err(base).to_string();
            assert!(error.contains(says), "{error} / {says}");
        }
    }

    proptest! {
        #[test]
        fn order_is_that_of_base_names(a in "[0-9a-d]{32}-[a-zA-Z0-9+_?=]{1,9}", b in "[0-9a-d]{32}-[a-zA-Z0-9+_?=]{1,9}") {
            let (x, y) = (StorePath::parse(&a).expect("path"), StorePath::parse(&b).expect("path"));
            prop_assert_eq!(x.cmp(&y), a.as_bytes().cmp(b.as_bytes()));
            prop_assert_eq!(StorePath::from_digest(&x.digest(), x.name()), Ok(x));
        }

        #[test]
        fn never_panics(base: String, tail: String) {
            let _ = StorePath::parse(&base);
            let _ = StorePath::parse(&format!("{HASH}{tail}"));
        }
    }

    const HASH: &str = "575s52sh487i0ylmbs9pvi606ljdszr0";
}
