//! Keys and signatures: who vouches for a path.
//!
//! ```text
//! text      = name ":" base64          split at the first ":", the name is not empty
//! public    = 32 bytes                 Ed25519 public key
//! secret    = 64 bytes                 seed, then the public key that belongs to it
//! signature = 64 bytes                 Ed25519, detached
//! ```
//! Base64 is written with padding and without line breaks. Reading is as lenient as Nix: `\n` is skipped (so a key file may
//! end in one), and what follows the first `=` is not looked at.
//!
//! Neither name nor base64 may be empty. A signature of another length is carried along, as Nix does, and becomes an error only when it is to be verified
//! under a key of its name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::text::{decode_base64, encode_base64, shown};

/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// Bytes of a secret key as Nix stores it: seed and public key.
pub const SECRET_KEY_BYTES: usize = 64;
/// Bytes of a signature that can be verified.
pub const SIGNATURE_BYTES: usize = 64;

/// A named public key, as in `trusted-public-keys`. `Display` and `FromStr` are `name:base64`.
///
/// Bytes that are no point of the curve are accepted, as in Nix, so that a key list with a damaged entry stays readable;
/// such a key verifies nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: Box<str>,
    bytes: [u8; PUBLIC_KEY_BYTES],
    point: Option<VerifyingKey>,
}

impl PublicKey {
    /// The key of these bytes, named `name`.
    pub fn new(name: &str, bytes: [u8; PUBLIC_KEY_BYTES]) -> PublicKey {
        let point = VerifyingKey::from_bytes(&bytes).ok();
        PublicKey {
            name: name.into(),
            bytes,
            point,
        }
    }

    /// Reads `name:base64` of 32 bytes.
    pub fn parse(text: &str) -> Result<PublicKey, KeyError> {
        let (name, bytes) = split(KeyTextKind::PublicKey, text)?;
        let bytes = sized(KeyTextKind::PublicKey, name, &bytes)?;
        Ok(PublicKey::new(name, bytes))
    }

    /// The name, by which signatures refer to the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.bytes
    }

    /// Whether `signature` is this key's over `text`; the name in the signature is not looked at.
    ///
    /// # Errors
    /// [`KeyError::Size`] for a signature that is not 64 bytes long, as in Nix.
    pub fn verify(&self, text: &[u8], signature: &Signature) -> Result<bool, KeyError> {
        let bytes = sized(
            KeyTextKind::Signature,
            &signature.key_name,
            &signature.bytes,
        )?;
        let signature = ed25519_dalek::Signature::from_bytes(&bytes);
        // Strict is what libsodium's crypto_sign_verify_detached does: it refuses keys and R of small order and an S
        // that is not reduced, and compares R without the cofactor.
        Ok(self
            .point
            .is_some_and(|p| p.verify_strict(text, &signature).is_ok()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, encode_base64(&self.bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        PublicKey::parse(text)
    }
}

/// A named secret key. It is wiped from memory when dropped, and neither `Debug` nor any error shows it.
#[derive(Clone)]
pub struct SecretKey {
    name: Box<str>,
    key: SigningKey,
}

impl SecretKey {
    /// A new key from the system's random numbers.
    ///
    /// # Errors
    /// [`KeyError::Name`] for a name that could not be told apart later (empty, or with `:`, blanks or control characters:
    /// lists of keys and signatures are separated by blanks), [`KeyError::Random`] when the system has no random numbers.
    pub fn generate(name: &str) -> Result<SecretKey, KeyError> {
        if name.is_empty()
            || name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control())
        {
            // What is behind a ':' may be a secret that was given by mistake.
            let (before, rest) = name.split_at(name.find(':').unwrap_or(name.len()));
            let more = if rest.is_empty() { "" } else { ":…" };
            let name = shown(before) + more;
            return Err(KeyError::Name { name });
        }
        let mut seed = Zeroizing::new([0; PUBLIC_KEY_BYTES]);
        getrandom::fill(&mut *seed).map_err(KeyError::Random)?;
        Ok(SecretKey {
            name: name.into(),
            key: SigningKey::from_bytes(&seed),
        })
    }

    /// Reads `name:base64` of 64 bytes, such as the content of a key file; a final newline is fine.
    ///
    /// The second half must be the public key of the first: [`KeyError::PublicHalf`]. Nix does not check that, but
    /// signing with a foreign second half would reveal the secret.
    pub fn parse(text: &str) -> Result<SecretKey, KeyError> {
        let (name, bytes) = split(KeyTextKind::SecretKey, text)?;
        let bytes = Zeroizing::new(bytes);
        let pair = Zeroizing::new(sized::<SECRET_KEY_BYTES>(
            KeyTextKind::SecretKey,
            name,
            &bytes,
        )?);
        let key = SigningKey::from_keypair_bytes(&pair)
            .map_err(|_| KeyError::PublicHalf { name: shown(name) })?;
        Ok(SecretKey {
            name: name.into(),
            key,
        })
    }

    /// The content of a key file: `name:base64` without a final newline, as Nix writes it. The text is wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(self.key.to_keypair_bytes());
        let digits = Zeroizing::new(encode_base64(&*pair));
        // Reserved in full, so that growing leaves no copy of the digits behind.
        let mut text = Zeroizing::new(String::with_capacity(self.name.len() + 1 + digits.len()));
        text.push_str(&self.name);
        text.push(':');
        text.push_str(&digits);
        text
    }

    /// The name that signatures and the public key carry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        let point = self.key.verifying_key();
        PublicKey {
            name: self.name.clone(),
            bytes: point.to_bytes(),
            point: Some(point),
        }
    }

    /// The signature over `text`; the same text always gives the same bytes.
    pub fn sign(&self, text: &[u8]) -> Signature {
        Signature {
            key_name: self.name.clone(),
            bytes: self.key.sign(text).to_bytes().into(),
        }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({}, hidden)", self.name)
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        SecretKey::parse(text)
    }
}

/// A signature and the name of the key that made it. `Display` and `FromStr` are `name:base64`.
///
/// Ordered as Nix prints them: by key name, then by bytes. Usually 64 bytes, but any number is carried along.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    key_name: Box<str>,
    bytes: Box<[u8]>,
}

impl Signature {
    /// The signature `bytes` made with the key named `key_name`.
    pub fn new(key_name: &str, bytes: [u8; SIGNATURE_BYTES]) -> Signature {
        Signature {
            key_name: key_name.into(),
            bytes: bytes.into(),
        }
    }

    /// Reads `name:base64`; the number of bytes is not checked, except that there must be some.
    pub fn parse(text: &str) -> Result<Signature, KeyError> {
        let (name, bytes) = split(KeyTextKind::Signature, text)?;
        Ok(Signature {
            key_name: name.into(),
            bytes: bytes.into(),
        })
    }

    /// The signature of a key's name and its base64, which JSON keeps apart.
    pub fn from_parts(key_name: &str, base64: &str) -> Result<Signature, KeyError> {
        let bytes = decode(KeyTextKind::Signature, key_name, base64)?;
        Ok(Signature {
            key_name: key_name.into(),
            bytes: bytes.into(),
        })
    }

    /// The name of the key.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The bytes, 64 unless the signature is damaged.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes in base64.
    pub fn to_base64(&self) -> String {
        encode_base64(&self.bytes)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_name, self.to_base64())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Signature::parse(text)
    }
}

/// The public keys somebody trusts, by name.
///
/// Of several keys with one name the first counts, as in Nix (`getDefaultPublicKeys`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(BTreeMap<Box<str>, PublicKey>);

impl TrustedKeys {
    /// No key: nothing but content-addressed paths is trusted.
    pub fn new() -> TrustedKeys {
        TrustedKeys::default()
    }

    /// Reads keys separated by blanks or newlines, the form of nix.conf's `trusted-public-keys`.
    pub fn parse_list(text: &str) -> Result<TrustedKeys, KeyError> {
        text.split_ascii_whitespace()
            .map(PublicKey::parse)
            .collect()
    }

    /// Adds `key` unless one of its name is there; tells whether it was added.
    pub fn insert(&mut self, key: PublicKey) -> bool {
        let fresh = !self.0.contains_key(key.name());
        if fresh {
            self.0.insert(key.name.clone(), key);
        }
        fresh
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The key of that name.
    pub fn get(&self, name: &str) -> Option<&PublicKey> {
        self.0.get(name)
    }

    /// The keys, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.values()
    }

    /// `None` for a signature of a key that is not here, else whether the signature over `text` is right.
    ///
    /// # Errors
    /// [`KeyError::Size`] for a signature under a key that is here, but not 64 bytes long.
    pub fn verify(&self, text: &[u8], signature: &Signature) -> Result<Option<bool>, KeyError> {
        match self.get(&signature.key_name) {
            Some(key) => key.verify(text, signature).map(Some),
            None => Ok(None),
        }
    }
}

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> TrustedKeys {
        let mut trusted = TrustedKeys::new();
        trusted.extend(keys);
        trusted
    }
}

impl Extend<PublicKey> for TrustedKeys {
    fn extend<I: IntoIterator<Item = PublicKey>>(&mut self, keys: I) {
        for key in keys {
            self.insert(key);
        }
    }
}

/// What is wrong with the text of a key or signature. No variant carries secret bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No colon between name and base64.
    #[error("a {kind} is written name:base64, but there is no ':'")]
    NoColon {
        /// What was to be read.
        kind: KeyTextKind,
    },
    /// Nothing before the colon.
    #[error("the {kind} has no name before the ':'")]
    NoName {
        /// What was to be read.
        kind: KeyTextKind,
    },
    /// No bytes behind the colon.
    #[error("the {kind} {name} has nothing behind the ':'")]
    Empty {
        /// What was to be read.
        kind: KeyTextKind,
        /// Name of the key, quoted.
        name: String,
    },
    /// A character that is none of base64's.
    #[error("the {kind} {name} is not base64: bad character {offset} bytes behind the ':'")]
    Base64 {
        /// What was to be read.
        kind: KeyTextKind,
        /// Name of the key, quoted.
        name: String,
        /// Bytes from the colon to the character.
        offset: usize,
    },
    /// The decoded bytes are too few or too many.
    #[error("the {kind} {name} has {actual} bytes, expected {expected}{}", hint(*kind, *actual))]
    Size {
        /// What was to be read.
        kind: KeyTextKind,
        /// Name of the key, quoted.
        name: String,
        /// How many bytes it must have.
        expected: usize,
        /// How many it has.
        actual: usize,
    },
    /// The public half of a secret key is not the one of its seed.
    #[error("the secret key {name} is damaged: its public half does not belong to its secret half")]
    PublicHalf {
        /// Name of the key, quoted.
        name: String,
    },
    /// A name that a new key must not have.
    #[error(
        "{name} cannot name a key: a name is not empty and has no ':', blanks or control characters (such as cache.example.org-1)"
    )]
    Name {
        /// The name that was refused, quoted.
        name: String,
    },
    /// The system gave no random numbers.
    #[error("cannot get random numbers from the system")]
    Random(#[source] getrandom::Error),
}

/// The three texts of the form `name:base64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyTextKind {
    /// 32 bytes that verify.
    PublicKey,
    /// 64 bytes that sign.
    SecretKey,
    /// 64 bytes over a text.
    Signature,
}

impl fmt::Display for KeyTextKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyTextKind::PublicKey => "public key",
            KeyTextKind::SecretKey => "secret key",
            KeyTextKind::Signature => "signature",
        })
    }
}

/// The mistake behind a wrong size that a person makes most easily.
fn hint(kind: KeyTextKind, actual: usize) -> &'static str {
    match (kind, actual) {
        (KeyTextKind::PublicKey, SECRET_KEY_BYTES) => {
            " (this looks like a secret key or a signature)"
        }
        (KeyTextKind::SecretKey, PUBLIC_KEY_BYTES) => " (this looks like a public key)",
        _ => "",
    }
}

/// Name and bytes of `name:base64`.
fn split(kind: KeyTextKind, text: &str) -> Result<(&str, Vec<u8>), KeyError> {
    let (name, base64) = text.split_once(':').ok_or(KeyError::NoColon { kind })?;
    Ok((name, decode(kind, name, base64)?))
}

fn decode(kind: KeyTextKind, name: &str, base64: &str) -> Result<Vec<u8>, KeyError> {
    if name.is_empty() {
        return Err(KeyError::NoName { kind });
    }
    match decode_base64(base64.as_bytes()) {
        // Nix looks at the text, and takes "=": but that would print as nothing, which it does not read again.
        Ok(bytes) if bytes.is_empty() => Err(KeyError::Empty {
            kind,
            name: shown(name),
        }),
        Ok(bytes) => Ok(bytes),
        Err(offset) => Err(KeyError::Base64 {
            kind,
            name: shown(name),
            offset,
        }),
    }
}

fn sized<const N: usize>(kind: KeyTextKind, name: &str, bytes: &[u8]) -> Result<[u8; N], KeyError> {
    bytes.try_into().map_err(|_| KeyError::Size {
        kind,
        name: shown(name),
        expected: N,
        actual: bytes.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 8032 §7.1, TEST 2: seed and public key, the message 0x72, its signature.
    const SEED: &str = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
    const PUBLIC: &str = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
    const SIGNATURE: &str = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    fn secret_text(name: &str, seed: &str, public: &str) -> String {
        format!(
            "{name}:{}",
            encode_base64(&[hex(seed), hex(public)].concat())
        )
    }

    #[test]
    fn rfc_8032_in_nix_form() {
        let text = secret_text("two", SEED, PUBLIC);
        let key = SecretKey::parse(&text).unwrap();
        assert_eq!(*key.to_text(), text);
        assert_eq!(key.public().as_bytes()[..], hex(PUBLIC));
        let signature = key.sign(&[0x72]);
        assert_eq!(signature.bytes(), hex(SIGNATURE));
        assert_eq!(signature, key.sign(&[0x72]));
        assert_eq!(key.public().verify(&[0x72], &signature), Ok(true));
        assert_eq!(key.public().verify(&[0x73], &signature), Ok(false));
    }

    #[test]
    fn a_generated_key_survives_its_file() {
        let key = SecretKey::generate("cache.example.org-1").unwrap();
        let text = key.to_text();
        assert!(!text.ends_with('\n'));
        for read in [format!("{}\n", *text), text.to_string()] {
            let again = SecretKey::parse(&read).unwrap();
            assert_eq!(again.to_text(), text);
            assert_eq!(again.public(), key.public());
        }
        let public = key.public();
        assert_eq!(public.to_string().parse(), Ok(public));
        let other = SecretKey::generate("cache.example.org-1").unwrap();
        assert_ne!(other.to_text(), text);
    }

    #[test]
    fn names_of_new_keys_can_be_told_apart() {
        for name in ["", "a:b", "a b", "a\n", "a\tb", "a\u{0}"] {
            assert!(
                matches!(SecretKey::generate(name), Err(KeyError::Name { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn damaged_texts_say_what_is_wrong() {
        let secret = secret_text("k", SEED, PUBLIC);
        let mixed = secret_text("k", SEED, SEED);
        for (text, error) in [
            (
                "abc",
                KeyError::NoColon {
                    kind: KeyTextKind::SecretKey,
                },
            ),
            (
                "k:",
                KeyError::Empty {
                    kind: KeyTextKind::SecretKey,
                    name: "\"k\"".into(),
                },
            ),
            (
                "k:=",
                KeyError::Empty {
                    kind: KeyTextKind::SecretKey,
                    name: "\"k\"".into(),
                },
            ),
            (
                ":abc=",
                KeyError::NoName {
                    kind: KeyTextKind::SecretKey,
                },
            ),
            (
                "k:ab_=",
                KeyError::Base64 {
                    kind: KeyTextKind::SecretKey,
                    name: "\"k\"".into(),
                    offset: 2,
                },
            ),
            (
                "k:YWJj",
                KeyError::Size {
                    kind: KeyTextKind::SecretKey,
                    name: "\"k\"".into(),
                    expected: 64,
                    actual: 3,
                },
            ),
            (
                &mixed,
                KeyError::PublicHalf {
                    name: "\"k\"".into(),
                },
            ),
        ] {
            assert_eq!(SecretKey::parse(text).unwrap_err(), error, "{text:?}");
        }
        let wrong = PublicKey::parse(&secret).unwrap_err();
        assert!(
            wrong.to_string().contains("looks like a secret key"),
            "{wrong}"
        );
    }

    #[test]
    fn nothing_shows_the_secret() {
        let text = secret_text("k", SEED, PUBLIC);
        let key = SecretKey::parse(&text).unwrap();
        let digits = &text[2..20];
        assert!(!format!("{key:?}").contains(digits));
        let damaged = [text.replace("=", "*"), text[..40].to_string()];
        for text in damaged {
            let error = SecretKey::parse(&text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(digits), "{error:?}");
        }
    }

    #[test]
    fn odd_signatures_are_carried_until_they_are_verified() {
        let odd = Signature::parse("two:YWJj").unwrap();
        assert_eq!(odd.to_string(), "two:YWJj");
        let key = PublicKey::new("two", hex(PUBLIC).try_into().unwrap());
        let trusted: TrustedKeys = [key.clone()].into_iter().collect();
        assert!(matches!(
            trusted.verify(b"", &odd),
            Err(KeyError::Size { actual: 3, .. })
        ));
        let unknown = Signature::parse("three:YWJj").unwrap();
        assert_eq!(trusted.verify(b"", &unknown), Ok(None));
    }

    #[test]
    fn weak_keys_and_signatures_never_verify() {
        // With the neutral element as key and as R, and S = 0, a lenient check accepts any text.
        let mut one = [0; 32];
        one[0] = 1;
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for key in [one, [0; 32], [0xff; 32]] {
            let key = PublicKey::new("weak", key);
            for bytes in [bytes, [0; 64], [0xff; 64]] {
                assert_eq!(
                    key.verify(b"anything", &Signature::new("weak", bytes)),
                    Ok(false)
                );
            }
        }
    }

    #[test]
    fn trusted_keys_keep_the_first_of_a_name() {
        let (one, two) = (PublicKey::new("k", [1; 32]), PublicKey::new("k", [2; 32]));
        let trusted = TrustedKeys::parse_list(&format!(" {one}\n  {two} ")).unwrap();
        assert_eq!(trusted.len(), 1);
        assert_eq!(trusted.get("k"), Some(&one));
        assert!(TrustedKeys::parse_list("").unwrap().is_empty());
        assert!(TrustedKeys::parse_list("nonsense").is_err());
    }

    #[test]
    fn signatures_sort_by_name_and_then_by_bytes() {
        // As text "a-1:…" would come before "a:…".
        let mut list = [
            Signature::new("b", [0; 64]),
            Signature::new("a-1", [0; 64]),
            Signature::new("a", [255; 64]),
            Signature::new("a", [7; 64]),
        ];
        list.sort();
        let order: Vec<_> = list.iter().map(|s| (s.key_name(), s.bytes()[0])).collect();
        assert_eq!(order, [("a", 7), ("a", 255), ("a-1", 0), ("b", 0)]);
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_comes_back(text in "\\PC{0,20}:?[A-Za-z0-9+/=]{0,100}") {
            if let Ok(s) = Signature::parse(&text) {
                prop_assert_eq!(s.to_string().parse(), Ok(s));
            }
            if let Ok(k) = PublicKey::parse(&text) {
                prop_assert_eq!(k.to_string().parse(), Ok(k));
            }
            let _ = SecretKey::parse(&text);
        }

        #[test]
        fn one_flipped_bit_breaks_a_signature(bit in 0usize..512, text in any::<[u8; 16]>()) {
            let key = SecretKey::parse(&secret_text("two", SEED, PUBLIC)).unwrap();
            let mut bytes: [u8; 64] = key.sign(&text).bytes().try_into().unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(key.public().verify(&text, &Signature::new("two", bytes)), Ok(false));
        }
    }
}
