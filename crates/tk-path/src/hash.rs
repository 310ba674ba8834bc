//! Hashes and their texts.
//!
//! ```text
//! prefixed = algo ":" digits        digits in hex, nix32 or base64, told apart by their number
//! sri      = algo "-" base64
//! bare     = digits                 the algorithm comes from the context
//! algo     = "md5" | "sha1" | "sha256" | "sha512" | "blake3"
//! ```
//! Hex is read in both cases. Base64 in SRI is read as Nix does: up to the first `=`, whatever follows; `\n` skipped;
//! padding may be missing. Elsewhere its length must be exact. All is written in lower case, with padding.
//! Mirrors `hash.cc`.

use std::fmt;
use std::io;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use crate::nix32::{self, Nix32Error};
use crate::text::{Byte, clip};

/// A hash algorithm that Nix knows. `Display` and `FromStr` use its lower-case name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// MD5, 16 bytes. Broken; old fixed-output derivations use it.
    Md5,
    /// SHA-1, 20 bytes. Broken; git objects use it.
    Sha1,
    /// SHA-256, 32 bytes: the hash of NARs and store paths.
    Sha256,
    /// SHA-512, 64 bytes; fixed-output derivations may use it.
    Sha512,
    /// BLAKE3, 32 bytes. Nix wants the experimental feature `blake3-hashes` for it.
    Blake3,
}

impl Algorithm {
    /// All algorithms, in the order of their declaration.
    pub const ALL: [Algorithm; 5] = [
        Algorithm::Md5,
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha512,
        Algorithm::Blake3,
    ];

    /// The length of a digest in bytes.
    pub const fn size(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Blake3 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// The name in texts: `md5`, `sha1`, `sha256`, `sha512`, `blake3`.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Md5 => "md5",
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
            Algorithm::Blake3 => "blake3",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        Algorithm::ALL
            .into_iter()
            .find(|a| a.name() == text)
            .ok_or_else(|| UnknownAlgorithm(clip(text)))
    }
}

/// A text that names no hash algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown hash algorithm {0:?}; known are md5, sha1, sha256, sha512 and blake3")]
pub struct UnknownAlgorithm(Box<str>);

/// How the bytes of a hash are written. `FromStr` also takes `base32`, Nix's old name of nix32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// Hexadecimal digits, written in lower case.
    Base16,
    /// The base-32 digits of Nix, see [`nix32`].
    Nix32,
    /// Standard base64 with padding.
    Base64,
    /// Base64 with padding behind `algo-`, as in Subresource Integrity.
    Sri,
}

impl Encoding {
    /// All encodings, in the order of their declaration.
    pub const ALL: [Encoding; 4] = [
        Encoding::Base16,
        Encoding::Nix32,
        Encoding::Base64,
        Encoding::Sri,
    ];

    /// The name: `base16`, `nix32`, `base64`, `sri`.
    pub const fn name(self) -> &'static str {
        match self {
            Encoding::Base16 => "base16",
            Encoding::Nix32 => "nix32",
            Encoding::Base64 => "base64",
            Encoding::Sri => "sri",
        }
    }

    /// The number of digits for `bytes` bytes.
    const fn digits(self, bytes: usize) -> usize {
        match self {
            Encoding::Base16 => bytes * 2,
            Encoding::Nix32 => nix32::encoded_len(bytes),
            Encoding::Base64 | Encoding::Sri => bytes.div_ceil(3) * 4,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Encoding {
    type Err = UnknownEncoding;

    fn from_str(text: &str) -> Result<Self, UnknownEncoding> {
        match text {
            "base32" => Ok(Encoding::Nix32),
            _ => Encoding::ALL
                .into_iter()
                .find(|e| e.name() == text)
                .ok_or_else(|| UnknownEncoding(clip(text))),
        }
    }
}

/// A text that names no hash encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown hash format {0:?}; known are base16, nix32, base64 and sri")]
pub struct UnknownEncoding(Box<str>);

/// A digest together with its algorithm. `Display` writes `algo:` and nix32; order is by algorithm, then bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash {
    algorithm: Algorithm,
    /// Zero behind the digest, so that the derived comparisons hold.
    bytes: [u8; MAX_SIZE],
}

impl Hash {
    /// The hash that consists of `digest`, whose length must be that of the algorithm.
    pub fn new(algorithm: Algorithm, digest: &[u8]) -> Result<Hash, HashError> {
        if digest.len() != algorithm.size() {
            let kind = HashErrorKind::Size {
                algorithm,
                bytes: digest.len(),
            };
            return Err(HashError::new(&HEXLOWER.encode(shown(digest)), kind));
        }
        Ok(Hash::from_slice(algorithm, digest))
    }

    /// Computes the hash of `data`.
    pub fn digest(algorithm: Algorithm, data: &[u8]) -> Hash {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish()
    }

    /// Returns the algorithm that made the hash.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest, [`Algorithm::size`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size()]
    }

    /// Reads a prefixed text, SRI, or, when `expected` is given, bare digits. An algorithm in the text must agree
    /// with the expected one.
    pub fn parse_any(text: &str, expected: Option<Algorithm>) -> Result<Hash, HashError> {
        let (algorithm, digits, sri) = match split_algorithm(text)? {
            Some((algorithm, digits, sri)) => (algorithm, digits, sri),
            None => match expected {
                Some(algorithm) => (algorithm, text, false),
                None => return Err(HashError::new(text, HashErrorKind::NoAlgorithm)),
            },
        };
        if let Some(expected) = expected.filter(|e| *e != algorithm) {
            let kind = HashErrorKind::OtherAlgorithm {
                expected,
                given: algorithm,
            };
            return Err(HashError::new(text, kind));
        }
        read(digits, algorithm, sri).map_err(|kind| HashError::new(text, kind))
    }

    /// Reads `algo:digits` in any base, or SRI: the forms that name their algorithm.
    pub fn parse_prefixed(text: &str) -> Result<Hash, HashError> {
        Hash::parse_any(text, None)
    }

    /// Reads SRI only. The leniency of its base64 is told at the head of this module.
    pub fn parse_sri(text: &str) -> Result<Hash, HashError> {
        let Some((algorithm, digits)) = text.split_once('-') else {
            return Err(HashError::new(text, HashErrorKind::NotSri));
        };
        let algorithm = named(text, algorithm)?;
        read(digits, algorithm, true).map_err(|kind| HashError::new(text, kind))
    }

    /// Reads bare digits in hex, nix32 or base64, told apart by their number.
    pub fn parse_digits(text: &str, algorithm: Algorithm) -> Result<Hash, HashError> {
        read(text, algorithm, false).map_err(|kind| HashError::new(text, kind))
    }

    /// The text that names the algorithm: `sha256:<digits>`, or `sha256-<base64>` for [`Encoding::Sri`].
    pub fn to_text(&self, encoding: Encoding) -> String {
        let digits = self.digits(encoding);
        let mark = if encoding == Encoding::Sri { '-' } else { ':' };
        format!("{}{mark}{digits}", self.algorithm)
    }

    /// The digits alone; [`Encoding::Sri`] gives those of base64.
    pub fn digits(&self, encoding: Encoding) -> String {
        match encoding {
            Encoding::Base16 => HEXLOWER.encode(self.as_bytes()),
            Encoding::Nix32 => nix32::encode(self.as_bytes()),
            Encoding::Base64 | Encoding::Sri => BASE64.encode(self.as_bytes()),
        }
    }

    /// The digest folded to `size` bytes: byte `i` is XORed into byte `i mod size`. Empty for size 0; a size beyond
    /// the digest's leaves zeros at the end.
    pub fn compress(&self, size: usize) -> Vec<u8> {
        let mut folded = vec![0; size];
        fold(self.as_bytes(), &mut folded);
        folded
    }

    /// [`Hash::compress`] to the size of a store path's digest.
    pub(crate) fn compress_to_path(self) -> [u8; 20] {
        let mut folded = [0; 20];
        fold(self.as_bytes(), &mut folded);
        folded
    }

    /// `digest` has the algorithm's length.
    fn from_slice(algorithm: Algorithm, digest: &[u8]) -> Hash {
        let mut bytes = [0; MAX_SIZE];
        bytes[..digest.len()].copy_from_slice(digest);
        Hash { algorithm, bytes }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One piece, because each one costs a `String` that is written to.
        let mut text = [0; MAX_NAME + 1 + nix32::encoded_len(MAX_SIZE)];
        let name = self.algorithm.name().as_bytes();
        let (start, end) = (
            name.len() + 1,
            name.len() + 1 + nix32::encoded_len(self.algorithm.size()),
        );
        text[..name.len()].copy_from_slice(name);
        text[name.len()] = b':';
        nix32::encode_into(self.as_bytes(), &mut text[start..end]);
        f.pad(std::str::from_utf8(&text[..end]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// Reads what [`Hash::parse_prefixed`] reads.
impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        Hash::parse_prefixed(text)
    }
}

/// A text that is not the hash it should be: which text, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid hash: {kind}")]
pub struct HashError {
    text: Box<str>,
    kind: HashErrorKind,
}

impl HashError {
    fn new(text: &str, kind: HashErrorKind) -> Self {
        let text = clip(text);
        HashError { text, kind }
    }

    /// What is wrong with the text.
    pub fn kind(&self) -> &HashErrorKind {
        &self.kind
    }
}

/// What is wrong with the text of a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashErrorKind {
    /// The part before `:` or `-` names no algorithm.
    #[error("{0}")]
    UnknownAlgorithm(UnknownAlgorithm),
    /// Bare digits where nothing tells the algorithm.
    #[error("it does not name its algorithm; write ALGO:DIGITS or the SRI form ALGO-BASE64")]
    NoAlgorithm,
    /// The text names another algorithm than the context asks for.
    #[error("it is {given} where {expected} is expected")]
    OtherAlgorithm {
        /// What the context asks for.
        expected: Algorithm,
        /// What the text names.
        given: Algorithm,
    },
    /// There is no `-`.
    #[error("SRI is written ALGO-BASE64")]
    NotSri,
    /// The number of digits belongs to no encoding.
    #[error(
        "{digits} digits, but {algorithm} has {} in hex, {} in nix32 or {} in base64",
        Encoding::Base16.digits(algorithm.size()),
        Encoding::Nix32.digits(algorithm.size()),
        Encoding::Base64.digits(algorithm.size())
    )]
    Length {
        /// The algorithm that is wanted.
        algorithm: Algorithm,
        /// The number of digits that were found.
        digits: usize,
    },
    /// The digits decode to the wrong number of bytes.
    #[error("it holds {bytes} bytes, but {algorithm} has {}", algorithm.size())]
    Size {
        /// The algorithm that is wanted.
        algorithm: Algorithm,
        /// The number of bytes that were found.
        bytes: usize,
    },
    /// A byte that is no digit of the encoding.
    #[error("byte {at} of its digits is {}, which is not in {encoding}", Byte(*byte))]
    Digit {
        /// The encoding that the number of digits tells.
        encoding: Encoding,
        /// Where it stands in the digits, from 0.
        at: usize,
        /// The byte that does not belong to the encoding.
        byte: u8,
    },
    /// The digits are not right as nix32.
    #[error("{0}")]
    Nix32(Nix32Error),
}

/// Computes a [`struct@Hash`] from data that comes in pieces, and counts the bytes.
#[derive(Debug, Clone)]
pub struct Hasher {
    state: HasherState,
    bytes: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Hasher {
        let state = match algorithm {
            Algorithm::Md5 => HasherState::Md5(Md5::new()),
            Algorithm::Sha1 => HasherState::Sha1(Sha1::new()),
            Algorithm::Sha256 => HasherState::Sha256(Sha256::new()),
            Algorithm::Sha512 => HasherState::Sha512(Sha512::new()),
            Algorithm::Blake3 => HasherState::Blake3(Box::default()),
        };
        Hasher { state, bytes: 0 }
    }

    /// Takes in more data.
    pub fn update(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        match &mut self.state {
            HasherState::Md5(h) => h.update(data),
            HasherState::Sha1(h) => h.update(data),
            HasherState::Sha256(h) => h.update(data),
            HasherState::Sha512(h) => h.update(data),
            HasherState::Blake3(h) => drop(h.update(data)),
        }
    }

    /// The number of bytes seen so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash of all that was seen.
    pub fn finish(self) -> Hash {
        match self.state {
            HasherState::Md5(h) => Hash::from_slice(Algorithm::Md5, &h.finalize()),
            HasherState::Sha1(h) => Hash::from_slice(Algorithm::Sha1, &h.finalize()),
            HasherState::Sha256(h) => Hash::from_slice(Algorithm::Sha256, &h.finalize()),
            HasherState::Sha512(h) => Hash::from_slice(Algorithm::Sha512, &h.finalize()),
            HasherState::Blake3(h) => Hash::from_slice(Algorithm::Blake3, h.finalize().as_bytes()),
        }
    }
}

/// Hashes all bytes that are written; writing never fails.
impl io::Write for Hasher {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum HasherState {
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
    /// Boxed: its state is twenty times as large as the others.
    Blake3(Box<blake3::Hasher>),
}

/// The SHA-256 of a NAR: what identifies the content of a store path. `Display` writes `sha256:` and nix32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarHash([u8; 32]);

impl NarHash {
    /// The hash that consists of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> NarHash {
        NarHash(bytes)
    }

    /// Returns the 32 bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Computes the hash of a whole NAR in memory.
    pub fn digest(nar: &[u8]) -> NarHash {
        NarHash(Sha256::digest(nar).into())
    }

    /// Reads `sha256:` with digits in any base, or SRI.
    pub fn parse(text: &str) -> Result<NarHash, HashError> {
        let hash = Hash::parse_any(text, None)?;
        hash.try_into()
            .map_err(|e: HashError| HashError::new(text, e.kind))
    }

    /// The digest in lower-case hex, without prefix.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// The digest in SRI, as JSON has it.
    pub fn sri(&self) -> String {
        Hash::from(*self).to_text(Encoding::Sri)
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hash::from(*self).fmt(f)
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NarHash({self})")
    }
}

impl FromStr for NarHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        NarHash::parse(text)
    }
}

impl From<NarHash> for Hash {
    fn from(hash: NarHash) -> Hash {
        Hash::from_slice(Algorithm::Sha256, &hash.0)
    }
}

/// Fails for every algorithm but SHA-256.
impl TryFrom<Hash> for NarHash {
    type Error = HashError;

    fn try_from(hash: Hash) -> Result<NarHash, HashError> {
        match (hash.algorithm, hash.as_bytes().try_into()) {
            (Algorithm::Sha256, Ok(bytes)) => Ok(NarHash(bytes)),
            (given, _) => {
                let expected = Algorithm::Sha256;
                let kind = HashErrorKind::OtherAlgorithm { expected, given };
                Err(HashError::new(&hash.to_string(), kind))
            }
        }
    }
}

/// Splits `algo:digits` or `algo-digits`; the last value says which. `None`: bare digits.
fn split_algorithm(text: &str) -> Result<Option<(Algorithm, &str, bool)>, HashError> {
    let split = match text.split_once(':') {
        Some((algorithm, digits)) => Some((algorithm, digits, false)),
        None => text.split_once('-').map(|(a, d)| (a, d, true)),
    };
    split
        .map(|(algorithm, digits, sri)| Ok((named(text, algorithm)?, digits, sri)))
        .transpose()
}

fn named(text: &str, algorithm: &str) -> Result<Algorithm, HashError> {
    algorithm
        .parse()
        .map_err(|e| HashError::new(text, HashErrorKind::UnknownAlgorithm(e)))
}

/// Reads digits: base64 for SRI, else what their number tells.
fn read(digits: &str, algorithm: Algorithm, sri: bool) -> Result<Hash, HashErrorKind> {
    let size = algorithm.size();
    let mut bytes = [0; MAX_SIZE];
    let out = &mut bytes[..size];
    let is = |encoding: Encoding| !sri && digits.len() == encoding.digits(size);
    if is(Encoding::Base16) {
        read_hex(digits.as_bytes(), out)?;
    } else if is(Encoding::Nix32) {
        nix32::decode_into(digits.as_bytes(), out).map_err(HashErrorKind::Nix32)?;
    } else if sri || is(Encoding::Base64) {
        let bytes = read_base64(digits.as_bytes(), out)?;
        if bytes != size {
            return Err(HashErrorKind::Size { algorithm, bytes });
        }
    } else {
        let digits = digits.len();
        return Err(HashErrorKind::Length { algorithm, digits });
    }
    Ok(Hash { algorithm, bytes })
}

fn read_hex(digits: &[u8], out: &mut [u8]) -> Result<(), HashErrorKind> {
    let digit = |at: usize| {
        let byte = digits[at];
        let value = (byte as char).to_digit(16);
        value.ok_or(HashErrorKind::Digit {
            encoding: Encoding::Base16,
            at,
            byte,
        })
    };
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = (digit(2 * i)? << 4 | digit(2 * i + 1)?) as u8;
    }
    Ok(())
}

/// Reads base64 as leniently as Nix and returns the number of bytes it holds, which may be more than fit `out`.
fn read_base64(digits: &[u8], out: &mut [u8]) -> Result<usize, HashErrorKind> {
    let (mut bits, mut pending, mut bytes) = (0u32, 0, 0);
    for (at, &byte) in digits.iter().enumerate() {
        let value = match byte {
            b'=' => break,
            b'\n' => continue,
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => {
                let encoding = Encoding::Base64;
                return Err(HashErrorKind::Digit { encoding, at, byte });
            }
        };
        bits = bits << 6 | u32::from(value);
        pending += 6;
        if pending >= 8 {
            pending -= 8;
            if let Some(out) = out.get_mut(bytes) {
                *out = (bits >> pending) as u8;
            }
            bytes += 1;
        }
    }
    Ok(bytes)
}

/// XORs `from` into `into`, round and round.
fn fold(from: &[u8], into: &mut [u8]) {
    if into.is_empty() {
        return;
    }
    for chunk in from.chunks(into.len()) {
        for (a, b) in into.iter_mut().zip(chunk) {
            *a ^= b;
        }
    }
}

/// What an error shows of a digest of the wrong length.
fn shown(digest: &[u8]) -> &[u8] {
    &digest[..digest.len().min(MAX_SIZE)]
}

/// The longest name of an algorithm.
const MAX_NAME: usize = 6;
/// The longest digest in bytes.
const MAX_SIZE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    #[test]
    fn digests_of_abc() {
        for (algorithm, hex) in [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                Algorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                Algorithm::Blake3,
                "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
        ] {
            let mut hasher = Hasher::new(algorithm);
            hasher.write_all(b"a").expect("write");
            hasher.write_all(b"bc").expect("write");
            assert_eq!(hasher.bytes(), 3);
            assert_eq!(hasher.finish().digits(Encoding::Base16), hex);
        }
    }

    #[test]
    fn texts() {
        let hash = Hash::digest(Algorithm::Sha1, b"abc");
        for (encoding, text) in [
            (
                Encoding::Base16,
                "sha1:a9993e364706816aba3e25717850c26c9cd0d89d",
            ),
            (Encoding::Nix32, "sha1:kpcd173cq987hw957sx6m0868wv3x6d9"),
            (Encoding::Base64, "sha1:qZk+NkcGgWq6PiVxeFDCbJzQ2J0="),
            (Encoding::Sri, "sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J0="),
        ] {
            assert_eq!(hash.to_text(encoding), text);
            assert_eq!(Hash::parse_prefixed(text), Ok(hash));
        }
        assert_eq!(hash.to_string(), hash.to_text(Encoding::Nix32));
        let upper = "A9993E364706816ABA3E25717850C26C9CD0D89D";
        assert_eq!(Hash::parse_any(upper, Some(Algorithm::Sha1)), Ok(hash));
    }

    #[test]
    fn base64_is_read_as_nix_reads_it() {
        let hash = Hash::digest(Algorithm::Sha512, b"abc");
        let digits = hash.digits(Encoding::Base64);
        let bare = digits.trim_end_matches('=');
        for tail in ["", "=", "==", "===", "== cheesecake", "\n==\n", "\n"] {
            let text = format!("sha512-{bare}{tail}");
            assert_eq!(Hash::parse_sri(&text), Ok(hash), "{text}");
            assert_eq!(Hash::parse_any(&text, None), Ok(hash), "{text}");
        }
        // Outside of SRI the length decides what it is.
        for tail in ["", "=", "===", "== cheesecake"] {
            let text = format!("{bare}{tail}");
            let error = Hash::parse_digits(&text, Algorithm::Sha512).expect_err(&text);
            assert!(
                matches!(error.kind(), HashErrorKind::Length { .. }),
                "{error}"
            );
        }
        assert_eq!(Hash::parse_digits(&digits, Algorithm::Sha512), Ok(hash));
    }

    #[test]
    fn refuses() {
        let sha256 = Hash::digest(Algorithm::Sha256, b"abc");
        let hex = sha256.digits(Encoding::Base16);
        let sri = sha256.to_text(Encoding::Sri);
        let (bad_hex, bad_sri) = (hex.replacen("ba", "bg", 1), sri.replacen('W', "_", 1));
        let any =
            |text: &str, expected| Hash::parse_any(text, expected).expect_err(text).to_string();
        for (error, says) in [
            (any(&hex, None), "does not name its algorithm"),
            (
                any(&hex, Some(Algorithm::Sha1)),
                "64 digits, but sha1 has 40 in hex, 32 in nix32 or 28 in base64",
            ),
            (
                any(&sri, Some(Algorithm::Sha1)),
                "is sha256 where sha1 is expected",
            ),
            (
                any(&bad_hex, Some(Algorithm::Sha256)),
                "byte 1 of its digits is 'g', which is not in base16",
            ),
            (any(&bad_sri, None), "is '_', which is not in base64"),
            (any("sha1-AAAA", None), "holds 3 bytes, but sha1 has 20"),
            (any("sha3:00", None), "unknown hash algorithm \"sha3\""),
            (any("SHA256:00", None), "unknown hash algorithm"),
            (any("", None), "does not name"),
        ] {
            assert!(error.contains(says), "{error} / {says}");
        }
        assert!(Hash::parse_sri(&hex).is_err() && Hash::new(Algorithm::Md5, &[0; 17]).is_err());
        let long = any(&"é".repeat(10_000), None);
        assert!(long.len() < 500, "{long}");
    }

    #[test]
    fn names() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
            assert!(algorithm.name().len() <= MAX_NAME && algorithm.size() <= MAX_SIZE);
        }
        for encoding in Encoding::ALL {
            assert_eq!(encoding.name().parse(), Ok(encoding));
        }
        assert_eq!("base32".parse(), Ok(Encoding::Nix32));
        assert!("sha0042".parse::<Encoding>().is_err());
    }

    #[test]
    fn nar_hashes_are_sha256() {
        let hash = NarHash::digest(b"abc");
        assert_eq!(NarHash::parse(&hash.to_string()), Ok(hash));
        assert_eq!(NarHash::parse(&hash.sri()), Ok(hash));
        assert_eq!(NarHash::parse(&format!("sha256:{}", hash.hex())), Ok(hash));
        let blake3 = Hash::digest(Algorithm::Blake3, b"abc").to_string();
        let error = NarHash::parse(&blake3).expect_err("blake3").to_string();
        assert!(error.contains("blake3 where sha256"), "{error}");
    }

    #[test]
    fn compressing() {
        let hash = Hash::new(
            Algorithm::Md5,
            &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        );
        let hash = hash.expect("16 bytes");
        assert_eq!(
            hash.compress(5),
            [
                1 ^ 6 ^ 11 ^ 16,
                2 ^ 7 ^ 12,
                3 ^ 8 ^ 13,
                4 ^ 9 ^ 14,
                5 ^ 10 ^ 15
            ]
        );
        assert_eq!(hash.compress(0), [0; 0]);
        assert_eq!(hash.compress(20)[16..], [0; 4]);
    }

    fn hashes() -> impl Strategy<Value = Hash> {
        (prop::sample::select(&Algorithm::ALL[..]), any::<Vec<u8>>())
            .prop_map(|(a, data)| Hash::digest(a, &data))
    }

    proptest! {
        #[test]
        fn there_and_back(hash in hashes(), encoding in prop::sample::select(&Encoding::ALL[..])) {
            let text = hash.to_text(encoding);
            prop_assert_eq!(Hash::parse_any(&text, None), Ok(hash));
            prop_assert_eq!(Hash::parse_any(&text, Some(hash.algorithm())), Ok(hash));
            prop_assert_eq!(Hash::parse_digits(&hash.digits(encoding), hash.algorithm()), Ok(hash));
        }

        #[test]
        fn never_panics(text in "(md5|sha1|sha256|sha512|blake3|)[:-]?.{0,130}") {
            let _ = Hash::parse_any(&text, None);
            let _ = Hash::parse_any(&text, Some(Algorithm::Sha512));
        }
    }
}
