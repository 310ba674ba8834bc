//! The narinfo: what a binary cache says about one path.
//!
//! ```text
//! file  = { key ":" any-byte value "\n" }
//! ```
//! As in libstore's nar-info.cc a key reaches up to the first `:`, **one byte** behind it is skipped whatever it is, and the
//! value reaches up to the next `\n`, which must be there for the last line too. So `Key:` right before a line end
//! swallows the following line as its value, and a line without a colon becomes part of the next key. Both are flagged as
//! [`Quirk`]s; the writer always puts a blank.
//!
//! | Key | Value |
//! |---|---|
//! | `StorePath` | full path, cleaned; required |
//! | `URL` | relative to the cache; required |
//! | `Compression` | a name of [`Compression`]; missing or empty is bzip2 |
//! | `FileHash`, `FileSize` | of the file at `URL` |
//! | `NarHash`, `NarSize` | of the NAR inside; required, size not 0 |
//! | `References` | base names, blank separated; a second non-empty list is an error |
//! | `Deriver` | base name; `unknown-deriver` is none |
//! | `Sig` | `name:base64`, any number of lines |
//! | `CA` | content address; empty is none, a second one is an error |
//!
//! Of other repeated keys the last counts. Unknown keys are kept aside. Nothing here is verified: see [`crate::Policy`].

use std::collections::BTreeSet;

use memchr::memchr;
use tk_path::{
    ContentAddress, ContentAddressError, Encoding, Hash, HashError, HashPart, NarHash, StoreDir,
    StorePath, StorePathError, nix32,
};

use crate::compression::{Compression, UnknownCompression};
use crate::keys::{SIGNATURE_BYTES, Signature};
use crate::path_info::PathInfo;
use crate::text::shown;

/// Largest narinfo that is parsed, in bytes. The largest one known (a full TeX Live with 3,691 references) has 208 kB.
pub const MAX_NARINFO_BYTES: usize = 2 * 1024 * 1024;
/// How many unknown fields are kept; further ones are dropped, which [`Quirk::ExtraDropped`] says.
pub const MAX_EXTRA_FIELDS: usize = 64;

/// A narinfo: a path's metadata, and where its NAR is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// What is said about the path. `registration_time` and `ultimate` are not part of a narinfo: 0 and false.
    pub info: PathInfo,
    /// Where the packed NAR is, relative to the cache. Sent by the cache: may be absolute, or climb with `..`.
    pub url: String,
    /// How the file at `url` is packed.
    pub compression: Compression,
    /// Hash of the file at `url`.
    pub file_hash: Option<Hash>,
    /// Bytes of the file at `url`; `None` is unknown.
    pub file_size: Option<u64>,
    /// Fields Nix does not know, in order, such as `System` in old files. Not printed by [`NarInfo::print`].
    pub extra: Vec<(String, String)>,
    /// What a reader may want to know about the text this was parsed from, each kind once, in order of appearance.
    pub quirks: Vec<Quirk>,
}

impl NarInfo {
    /// A narinfo for a file at `url`, with no hash or size of that file.
    pub fn new(info: PathInfo, url: String, compression: Compression) -> NarInfo {
        NarInfo {
            info,
            url,
            compression,
            file_hash: None,
            file_size: None,
            extra: Vec::new(),
            quirks: Vec::new(),
        }
    }

    /// Where Nix puts a packed NAR in a cache: `nar/<nix32 of the file's hash>.nar` and the compression's extension.
    pub fn url_for(file_hash: &Hash, compression: Compression) -> String {
        format!(
            "nar/{}.nar{}",
            file_hash.digits(Encoding::Nix32),
            compression.extension()
        )
    }

    /// Reads a narinfo (text or bytes) of a cache for stores at `dir`, as Nix does.
    ///
    /// That it is about the path one asked for is not checked here: use [`NarInfo::expect`].
    pub fn parse(dir: &StoreDir, text: impl AsRef<[u8]>) -> Result<NarInfo, NarInfoError> {
        parse(dir, text.as_ref())
    }

    /// The file's text, byte for byte as Nix writes it: known fields in Nix's order, references and signatures sorted.
    ///
    /// A line break in `url`, which no parsed narinfo has, is written as `%0A`.
    pub fn print(&self, dir: &StoreDir) -> String {
        let mut text = String::with_capacity(512 + 72 * self.info.references.len());
        let mut field = |key: &str, value: &str| {
            for part in [key, ": ", value, "\n"] {
                text.push_str(part);
            }
        };
        let info = &self.info;
        field("StorePath", &dir.path(&info.path));
        field("URL", &self.url.replace('\n', "%0A"));
        field("Compression", self.compression.as_str());
        if let Some(hash) = &self.file_hash {
            field("FileHash", &hash.to_text(Encoding::Nix32));
        }
        if let Some(size) = self.file_size.filter(|&size| size != 0) {
            field("FileSize", &size.to_string());
        }
        field("NarHash", &info.nar_hash.to_string());
        field("NarSize", &info.nar_size.to_string());
        let references: Vec<_> = info.references.iter().map(StorePath::as_str).collect();
        field("References", &references.join(" "));
        if let Some(deriver) = &info.deriver {
            field("Deriver", deriver.as_str());
        }
        for signature in &info.signatures {
            field("Sig", &signature.to_string());
        }
        if let Some(ca) = &info.ca {
            field("CA", &ca.to_string());
        }
        text
    }

    /// Whether this is about the path with that hash part. A cache that answers about another path is faulty or lying, and
    /// no signature tells: the answer may well be signed.
    pub fn expect(&self, wanted: &HashPart) -> Result<(), NarInfoError> {
        if self.info.path.hash_part() == wanted.as_str() {
            return Ok(());
        }
        Err(NarInfoError {
            line: None,
            field: "StorePath",
            kind: NarInfoErrorKind::OtherPath {
                wanted: wanted.as_str().to_owned(),
                found: self.info.path.clone(),
            },
        })
    }
}

/// Something about a narinfo's text that Nix accepts, but would not write. Lines are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quirk {
    /// No `Compression`: taken as bzip2.
    MissingCompression,
    /// An empty `Compression`: taken as bzip2.
    EmptyCompression,
    /// No `FileHash`: the packed file can only be checked by what is inside.
    MissingFileHash,
    /// No `FileSize`, or 0.
    MissingFileSize,
    /// No `References`: taken as none.
    MissingReferences,
    /// References are not sorted, or repeated. Signatures over the unsorted list do not verify.
    UnsortedReferences,
    /// The NAR hash is in hex.
    HexNarHash,
    /// A hash is written otherwise than in nix32 (and is not the NAR hash in hex).
    OtherHashForm,
    /// The deriver is `unknown-deriver`: taken as none.
    UnknownDeriver,
    /// `CA` is empty: taken as none.
    EmptyCa,
    /// The store path had to be cleaned (`//`, `/./`, a trailing `/`).
    UncleanPath,
    /// A number with a sign or leading zeros.
    OddNumber,
    /// A signature that is not 64 bytes long, or whose base64 is not what would be written.
    OddSignature,
    /// A `Sig` that is no signature at all; it is left out.
    DamagedSignature,
    /// Known fields are not in Nix's order.
    FieldOrder,
    /// A field that can be there only once is there again; the last one counts.
    RepeatedField {
        /// Where it is again.
        line: usize,
    },
    /// `Key:` directly before the line end: the following line was swallowed as the value.
    SwallowedLine {
        /// The line with the key.
        line: usize,
    },
    /// A byte other than a blank follows the colon, and was skipped.
    MissingBlank {
        /// The number of the line, counted from 1.
        line: usize,
    },
    /// A line without a colon, which was taken as the beginning of the next key.
    LineWithoutColon {
        /// The number of the line, counted from 1.
        line: usize,
    },
    /// An unknown field is not UTF-8; it is kept with replacement characters.
    ExtraNotUtf8,
    /// There are more unknown fields than are kept.
    ExtraDropped,
}

/// Why a narinfo cannot be read: which line and field, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfoError {
    /// Line, counted from 1; `None` if it is about the whole.
    pub line: Option<usize>,
    /// The field, or `""`.
    pub field: &'static str,
    /// What is wrong in that line or field.
    pub kind: NarInfoErrorKind,
}

/// The kinds of [`NarInfoError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarInfoErrorKind {
    /// The narinfo has more than [`MAX_NARINFO_BYTES`] bytes.
    #[error("{size} bytes are too many for a narinfo (limit {MAX_NARINFO_BYTES})")]
    TooLarge {
        /// The size of the narinfo in bytes.
        size: usize,
    },
    /// There is text, but no colon in it: often an error page instead of a narinfo.
    #[error("expected 'Key: value', but no ':' follows")]
    NoColon,
    /// The last line has no end.
    #[error("the line does not end in a newline: the file is cut off")]
    NoNewline,
    /// A required field is not there.
    #[error("the field is missing")]
    Missing,
    /// A required field is empty or 0.
    #[error("the field is empty or 0")]
    Empty,
    /// `References` or `CA` is there a second time.
    #[error("the field is there a second time")]
    Repeated,
    /// Bytes that are not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// Not an unsigned decimal number of 64 bits.
    #[error("{0} is not a size in bytes")]
    Number(String),
    /// Not a store path of this store.
    #[error("not a path of this store")]
    Path(#[source] StorePathError),
    /// Not a hash, or of an algorithm that cannot stand here.
    #[error("not a usable hash")]
    Hash(#[source] HashError),
    /// The compression has a name that is not known.
    #[error("cannot be unpacked")]
    Compression(#[source] UnknownCompression),
    /// Not a content address.
    #[error("not a content address")]
    ContentAddress(#[source] ContentAddressError),
    /// The narinfo is about another path than the one asked for.
    #[error("the cache was asked about {wanted} and answered about {found}")]
    OtherPath {
        /// The hash part asked for.
        wanted: String,
        /// The path in the narinfo.
        found: StorePath,
    },
}

impl std::fmt::Display for NarInfoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bad narinfo")?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        if !self.field.is_empty() {
            write!(f, ", {}", self.field)?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for NarInfoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.source()
    }
}

fn parse(dir: &StoreDir, text: &[u8]) -> Result<NarInfo, NarInfoError> {
    if text.len() > MAX_NARINFO_BYTES {
        return Err(whole("", NarInfoErrorKind::TooLarge { size: text.len() }));
    }
    let mut parser = NarInfoParser::new(dir);
    let mut at = 0;
    while at < text.len() {
        let line = || 1 + memchr::memchr_iter(b'\n', &text[..at]).count();
        let wrong = |field, kind| NarInfoError {
            line: Some(line()),
            field,
            kind,
        };
        let field = split(&text[at..]).map_err(|kind| wrong("", kind))?;
        parser.note_blank(&field, line);
        match NarInfoKey::of(field.key) {
            Some((key, name)) => {
                parser
                    .take(key, field.value, line)
                    .map_err(|kind| wrong(name, kind))?;
            }
            None => parser.take_extra(&field, line),
        }
        at += field.len;
    }
    parser.finish()
}

/// The known keys, in the order of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NarInfoKey {
    StorePath,
    Url,
    Compression,
    FileHash,
    FileSize,
    NarHash,
    NarSize,
    References,
    Deriver,
    Sig,
    Ca,
}

impl NarInfoKey {
    fn of(text: &[u8]) -> Option<(NarInfoKey, &'static str)> {
        Some(match text {
            b"StorePath" => (NarInfoKey::StorePath, "StorePath"),
            b"URL" => (NarInfoKey::Url, "URL"),
            b"Compression" => (NarInfoKey::Compression, "Compression"),
            b"FileHash" => (NarInfoKey::FileHash, "FileHash"),
            b"FileSize" => (NarInfoKey::FileSize, "FileSize"),
            b"NarHash" => (NarInfoKey::NarHash, "NarHash"),
            b"NarSize" => (NarInfoKey::NarSize, "NarSize"),
            b"References" => (NarInfoKey::References, "References"),
            b"Deriver" => (NarInfoKey::Deriver, "Deriver"),
            b"Sig" => (NarInfoKey::Sig, "Sig"),
            b"CA" => (NarInfoKey::Ca, "CA"),
            _ => return None,
        })
    }
}

fn whole(field: &'static str, kind: NarInfoErrorKind) -> NarInfoError {
    NarInfoError {
        line: None,
        field,
        kind,
    }
}

/// One `key: value`, with the skipped byte between.
struct NarInfoField<'a> {
    key: &'a [u8],
    skipped: u8,
    value: &'a [u8],
    /// Bytes of it all, with the newline.
    len: usize,
}

/// The field at the start of `text`.
fn split(text: &[u8]) -> Result<NarInfoField<'_>, NarInfoErrorKind> {
    let colon = memchr(b':', text).ok_or(NarInfoErrorKind::NoColon)?;
    let start = colon + 2;
    let rest = text.get(start..).ok_or(NarInfoErrorKind::NoNewline)?;
    let end = memchr(b'\n', rest).ok_or(NarInfoErrorKind::NoNewline)?;
    let value = &rest[..end];
    Ok(NarInfoField {
        key: &text[..colon],
        skipped: text[colon + 1],
        value,
        len: start + value.len() + 1,
    })
}

/// What has been read so far.
struct NarInfoParser<'a> {
    dir: &'a StoreDir,
    path: Option<StorePath>,
    url: Option<String>,
    /// `Some(None)` is the empty value.
    compression: Option<Option<Compression>>,
    file_hash: Option<Hash>,
    file_size: Option<u64>,
    nar_hash: Option<NarHash>,
    nar_size: Option<u64>,
    references: Option<BTreeSet<StorePath>>,
    deriver: Option<StorePath>,
    signatures: BTreeSet<Signature>,
    ca: Option<ContentAddress>,
    extra: Vec<(String, String)>,
    quirks: Vec<Quirk>,
    /// The last known field, and a bit for each one seen.
    last: Option<NarInfoKey>,
    seen: u16,
}

impl<'a> NarInfoParser<'a> {
    fn new(dir: &'a StoreDir) -> Self {
        NarInfoParser {
            dir,
            path: None,
            url: None,
            compression: None,
            file_hash: None,
            file_size: None,
            nar_hash: None,
            nar_size: None,
            references: None,
            deriver: None,
            signatures: BTreeSet::new(),
            ca: None,
            extra: Vec::new(),
            quirks: Vec::new(),
            last: None,
            seen: 0,
        }
    }

    fn note_blank(&mut self, field: &NarInfoField<'_>, line: impl Fn() -> usize) {
        match field.skipped {
            b' ' => {}
            b'\n' => self.quirk(Quirk::SwallowedLine { line: line() }),
            _ => self.quirk(Quirk::MissingBlank { line: line() }),
        }
    }

    fn take(
        &mut self,
        key: NarInfoKey,
        value: &[u8],
        line: impl Fn() -> usize,
    ) -> Result<(), NarInfoErrorKind> {
        if Some(key) < self.last {
            self.quirk(Quirk::FieldOrder);
        }
        if self.seen & 1 << key as u16 != 0 && key != NarInfoKey::Sig {
            self.quirk(Quirk::RepeatedField { line: line() });
        }
        self.last = Some(key);
        self.seen |= 1 << key as u16;
        let value = std::str::from_utf8(value).map_err(|_| NarInfoErrorKind::NotUtf8)?;
        self.take_known(key, value)
    }

    fn take_known(&mut self, key: NarInfoKey, value: &str) -> Result<(), NarInfoErrorKind> {
        match key {
            NarInfoKey::StorePath => self.take_path(value)?,
            NarInfoKey::Url => self.url = Some(value.to_owned()),
            NarInfoKey::Compression if value.is_empty() => self.compression = Some(None),
            NarInfoKey::Compression => {
                let name = value.parse().map_err(NarInfoErrorKind::Compression)?;
                self.compression = Some(Some(name));
            }
            NarInfoKey::FileHash => self.file_hash = Some(self.hash(value)?),
            NarInfoKey::FileSize => self.file_size = Some(self.number(value)?),
            NarInfoKey::NarHash => self.take_nar_hash(value)?,
            NarInfoKey::NarSize => self.nar_size = Some(self.number(value)?),
            NarInfoKey::References => self.take_references(value)?,
            NarInfoKey::Deriver if value == "unknown-deriver" => self.quirk(Quirk::UnknownDeriver),
            NarInfoKey::Deriver => self.deriver = Some(base_name(value)?),
            NarInfoKey::Sig => self.take_signature(value)?,
            NarInfoKey::Ca => self.take_ca(value)?,
        }
        Ok(())
    }

    fn take_path(&mut self, value: &str) -> Result<(), NarInfoErrorKind> {
        let path = self.dir.parse(value).map_err(NarInfoErrorKind::Path)?;
        if value.len() != self.dir.as_str().len() + 1 + path.as_str().len() {
            self.quirk(Quirk::UncleanPath);
        }
        self.path = Some(path);
        Ok(())
    }

    fn take_nar_hash(&mut self, value: &str) -> Result<(), NarInfoErrorKind> {
        let hash = NarHash::parse(value).map_err(NarInfoErrorKind::Hash)?;
        if value.len() == HEX_NAR_HASH {
            self.quirk(Quirk::HexNarHash);
        } else if value.len() != NIX32_NAR_HASH {
            self.quirk(Quirk::OtherHashForm);
        }
        self.nar_hash = Some(hash);
        Ok(())
    }

    fn take_references(&mut self, value: &str) -> Result<(), NarInfoErrorKind> {
        if self.references.as_ref().is_some_and(|r| !r.is_empty()) {
            return Err(NarInfoErrorKind::Repeated);
        }
        let mut list = Vec::with_capacity(value.len() / USUAL_REFERENCE);
        let (mut last, mut sorted) = ("", true);
        let mut rest = value;
        while !rest.is_empty() {
            let end = memchr(b' ', rest.as_bytes()).unwrap_or(rest.len());
            let name = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or("");
            if !name.is_empty() {
                sorted &= last < name;
                last = name;
                list.push(base_name(name)?);
            }
        }
        if !sorted {
            self.quirk(Quirk::UnsortedReferences);
        }
        self.references = Some(list.into_iter().collect());
        Ok(())
    }

    fn take_signature(&mut self, value: &str) -> Result<(), NarInfoErrorKind> {
        // One that is none vouches for nothing, and is no reason to do without the others.
        let Ok(signature) = Signature::parse(value) else {
            self.quirk(Quirk::DamagedSignature);
            return Ok(());
        };
        let usual = signature.key_name().len() + 1 + SIGNATURE_BASE64;
        if signature.bytes().len() != SIGNATURE_BYTES || value.len() != usual {
            self.quirk(Quirk::OddSignature);
        }
        self.signatures.insert(signature);
        Ok(())
    }

    fn take_ca(&mut self, value: &str) -> Result<(), NarInfoErrorKind> {
        if self.ca.is_some() {
            return Err(NarInfoErrorKind::Repeated);
        }
        if value.is_empty() {
            self.quirk(Quirk::EmptyCa);
            return Ok(());
        }
        self.ca = Some(value.parse().map_err(NarInfoErrorKind::ContentAddress)?);
        Ok(())
    }

    fn take_extra(&mut self, field: &NarInfoField<'_>, line: impl Fn() -> usize) {
        if memchr(b'\n', field.key).is_some() {
            self.quirk(Quirk::LineWithoutColon { line: line() });
        }
        if self.extra.len() == MAX_EXTRA_FIELDS {
            return self.quirk(Quirk::ExtraDropped);
        }
        let key = String::from_utf8_lossy(field.key);
        let value = String::from_utf8_lossy(field.value);
        if key.as_bytes() != field.key || value.as_bytes() != field.value {
            self.quirk(Quirk::ExtraNotUtf8);
        }
        self.extra.push((key.into_owned(), value.into_owned()));
    }

    fn hash(&mut self, value: &str) -> Result<Hash, NarInfoErrorKind> {
        let hash = Hash::parse_any(value, None).map_err(NarInfoErrorKind::Hash)?;
        let digits = nix32::encoded_len(hash.algorithm().size());
        if !value
            .rsplit(':')
            .next()
            .is_some_and(|d| d.len() == digits && d.len() != value.len())
        {
            self.quirk(Quirk::OtherHashForm);
        }
        Ok(hash)
    }

    fn number(&mut self, value: &str) -> Result<u64, NarInfoErrorKind> {
        // Nix's string2Int takes a leading plus and zeros too, and so does Rust.
        let number = value
            .parse()
            .map_err(|_| NarInfoErrorKind::Number(shown(value)))?;
        if value.starts_with(['+', '0']) && value != "0" {
            self.quirk(Quirk::OddNumber);
        }
        Ok(number)
    }

    /// Notes a quirk, the first of its kind only: a peer could send any number of them.
    fn quirk(&mut self, quirk: Quirk) {
        let kind = std::mem::discriminant(&quirk);
        if !self
            .quirks
            .iter()
            .any(|q| std::mem::discriminant(q) == kind)
        {
            self.quirks.push(quirk);
        }
    }

    fn finish(mut self) -> Result<NarInfo, NarInfoError> {
        self.note_missing();
        let path = required("StorePath", self.path)?;
        let nar_hash = required("NarHash", self.nar_hash)?;
        let url = required("URL", self.url)?;
        let nar_size = required("NarSize", self.nar_size)?;
        if url.is_empty() {
            return Err(whole("URL", NarInfoErrorKind::Empty));
        }
        if nar_size == 0 {
            return Err(whole("NarSize", NarInfoErrorKind::Empty));
        }
        Ok(NarInfo {
            info: PathInfo {
                deriver: self.deriver,
                references: self.references.unwrap_or_default(),
                signatures: self.signatures,
                ca: self.ca,
                ..PathInfo::new(path, nar_hash, nar_size)
            },
            url,
            compression: self.compression.flatten().unwrap_or(Compression::Bzip2),
            file_hash: self.file_hash,
            file_size: self.file_size.filter(|&size| size != 0),
            extra: self.extra,
            quirks: self.quirks,
        })
    }

    fn note_missing(&mut self) {
        match self.compression {
            None => self.quirk(Quirk::MissingCompression),
            Some(None) => self.quirk(Quirk::EmptyCompression),
            _ => {}
        }
        if self.file_hash.is_none() {
            self.quirk(Quirk::MissingFileHash);
        }
        if self.file_size.unwrap_or(0) == 0 {
            self.quirk(Quirk::MissingFileSize);
        }
        if self.references.is_none() {
            self.quirk(Quirk::MissingReferences);
        }
    }
}

/// Bytes of `sha256:` with 52 nix32 digits, and with 64 hex digits.
const NIX32_NAR_HASH: usize = 7 + 52;
const HEX_NAR_HASH: usize = 7 + 64;
/// Characters of a short reference with its blank, to guess how many there are.
const USUAL_REFERENCE: usize = 40;
/// Characters of a signature's 64 bytes in padded base64.
const SIGNATURE_BASE64: usize = 88;

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, NarInfoError> {
    value.ok_or_else(|| whole(field, NarInfoErrorKind::Missing))
}

fn base_name(text: &str) -> Result<StorePath, NarInfoErrorKind> {
    StorePath::parse(text).map_err(NarInfoErrorKind::Path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::narinfo;
    use crate::keys::{SecretKey, TrustedKeys};
    use proptest::prelude::*;
    use std::error::Error;
    use tk_path::Method;

    /// A narinfo with every field, as Nix would write it.
    const SAMPLE: &str = "\
StorePath: /nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo-1.2
URL: nar/1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3.nar.xz
Compression: xz
FileHash: sha256:1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3
FileSize: 4029176
NarHash: sha256:1lr187v6dck1rjh2j6svpikcfz53wyl3qrlcbb405zlh13x0khhh
NarSize: 34878
References: g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo-1.2 n5wkd9frr45pa74if5gpz9j7mifg27fh-bar
Deriver: n5wkd9frr45pa74if5gpz9j7mifg27fh-foo-1.2.drv
Sig: asdf:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
Sig: qwer:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
CA: fixed:r:sha256:1lr187v6dck1rjh2j6svpikcfz53wyl3qrlcbb405zlh13x0khhh
";

    fn read(text: impl AsRef<[u8]>) -> Result<NarInfo, NarInfoError> {
        NarInfo::parse(&StoreDir::default(), text)
    }

    /// [`SAMPLE`] with one piece replaced, which must be there.
    fn with(piece: &str, other: &str) -> String {
        assert!(SAMPLE.contains(piece), "{piece:?}");
        SAMPLE.replacen(piece, other, 1)
    }

    /// [`SAMPLE`] without the lines of `key`.
    fn without(key: &str) -> String {
        SAMPLE
            .split_inclusive('\n')
            .filter(|line| !line.starts_with(key))
            .collect()
    }

    #[test]
    fn every_field_is_read_and_printed_back() {
        let narinfo = read(SAMPLE).unwrap();
        assert_eq!(narinfo.print(&StoreDir::default()), SAMPLE);
        assert_eq!(narinfo.info.path.name(), "foo-1.2");
        assert_eq!(narinfo.info.nar_size, 34878);
        assert_eq!(narinfo.info.references.len(), 2);
        assert_eq!(narinfo.info.deriver.as_ref().unwrap().name(), "foo-1.2.drv");
        assert_eq!(narinfo.info.signatures.len(), 2);
        assert_eq!(narinfo.info.ca.unwrap().method, Method::Nar);
        assert_eq!(narinfo.compression, Compression::Xz);
        assert_eq!(narinfo.file_size, Some(4029176));
        assert_eq!(
            narinfo.url,
            NarInfo::url_for(&narinfo.file_hash.unwrap(), Compression::Xz)
        );
        assert_eq!(narinfo.quirks, []);
    }

    #[test]
    fn the_store_dir_is_that_of_the_cache() {
        let dir = StoreDir::new("/gnu/store").unwrap();
        let text = with("/nix/store", "/gnu/store");
        assert!(read(&text).is_err());
        assert_eq!(NarInfo::parse(&dir, &text).unwrap().print(&dir), text);
    }

    #[test]
    fn what_nix_accepts_is_accepted_and_flagged() {
        let many = "Colour: red\n".repeat(MAX_EXTRA_FIELDS + 1);
        let table: &[(String, &[Quirk])] = &[
            (without("Compression"), &[Quirk::MissingCompression]),
            (with("n: xz", "n: "), &[Quirk::EmptyCompression]),
            (without("FileHash"), &[Quirk::MissingFileHash]),
            (with("4029176", "0"), &[Quirk::MissingFileSize]),
            (without("References"), &[Quirk::MissingReferences]),
            (
                with(
                    "n5wkd9frr45pa74if5gpz9j7mifg27fh-bar",
                    "1".repeat(32).as_str(),
                )
                .replace("1\nD", "1-b\nD"),
                &[Quirk::UnsortedReferences],
            ),
            (
                with("-bar\n", "-bar n5wkd9frr45pa74if5gpz9j7mifg27fh-bar\n"),
                &[Quirk::UnsortedReferences],
            ),
            (
                with("References: ", "References: \nReferences:  "),
                &[Quirk::RepeatedField { line: 9 }],
            ),
            (
                with(
                    "NarHash: sha256:1lr187v6dck1rjh2j6svpikcfz53wyl3qrlcbb405zlh13x0khhh",
                    &format!("NarHash: sha256:{}", "0a".repeat(32)),
                ),
                &[Quirk::HexNarHash],
            ),
            (
                with(
                    "NarHash: sha256:1lr187v6dck1rjh2j6svpikcfz53wyl3qrlcbb405zlh13x0khhh",
                    "NarHash: sha256-EMIJ+giQ/gLIWoxmPKjno3zHZrxbGymgzGGyZvZBIdM=",
                ),
                &[Quirk::OtherHashForm],
            ),
            (
                with(
                    "FileHash: sha256:1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3",
                    "FileHash: sha256-EMIJ+giQ/gLIWoxmPKjno3zHZrxbGymgzGGyZvZBIdM=",
                ),
                &[Quirk::OtherHashForm],
            ),
            (
                with(
                    "n5wkd9frr45pa74if5gpz9j7mifg27fh-foo-1.2.drv",
                    "unknown-deriver",
                ),
                &[Quirk::UnknownDeriver],
            ),
            (
                with(
                    "CA: fixed:r:sha256:1lr187v6dck1rjh2j6svpikcfz53wyl3qrlcbb405zlh13x0khhh",
                    "CA: ",
                ),
                &[Quirk::EmptyCa],
            ),
            (with("/nix/store/", "/nix//store/"), &[Quirk::UncleanPath]),
            (with("34878", "+34878"), &[Quirk::OddNumber]),
            (with("34878", "034878"), &[Quirk::OddNumber]),
            (with("Sig: qwer:AAAA", "Sig: qwer:"), &[Quirk::OddSignature]),
            (with("AAA==", "AAA"), &[Quirk::OddSignature]),
            (with("qwer:", "qwer"), &[Quirk::DamagedSignature]),
            (with("qwer:A", "qwer:_"), &[Quirk::DamagedSignature]),
            (
                format!("CA: \n{SAMPLE}"),
                &[
                    Quirk::EmptyCa,
                    Quirk::FieldOrder,
                    Quirk::RepeatedField { line: 13 },
                ],
            ),
            (
                with("URL:", "URL: other\nURL:"),
                &[Quirk::RepeatedField { line: 3 }],
            ),
            (
                format!("System:\nColour: red\n{SAMPLE}"),
                &[Quirk::SwallowedLine { line: 1 }],
            ),
            (with("URL: ", "URL:/"), &[Quirk::MissingBlank { line: 2 }]),
            (
                format!("{SAMPLE}no colon\nColour: red\n"),
                &[Quirk::LineWithoutColon { line: 13 }],
            ),
            (format!("System: i686-linux\n{SAMPLE}"), &[]),
            (format!("{SAMPLE}{many}"), &[Quirk::ExtraDropped]),
        ];
        for (text, quirks) in table {
            let narinfo = read(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(narinfo.quirks, *quirks, "{text}");
            let printed = narinfo.print(&StoreDir::default());
            let again = read(&printed).unwrap();
            assert_eq!(again.info, narinfo.info, "{text}");
            assert_eq!(again.print(&StoreDir::default()), printed);
        }
    }

    #[test]
    fn defaults_and_oddities_have_the_values_nix_gives_them() {
        assert_eq!(
            read(without("Compression")).unwrap().compression,
            Compression::Bzip2
        );
        assert_eq!(
            read(with("n: xz", "n: ")).unwrap().compression,
            Compression::Bzip2
        );
        assert_eq!(
            read(with("URL:", "URL: other\nURL:")).unwrap().url,
            read(SAMPLE).unwrap().url
        );
        assert_eq!(
            read(with("URL: ", "URL:/")).unwrap().url,
            read(SAMPLE).unwrap().url
        );
        let swallowed = read(format!("System:\nColour: red\n{SAMPLE}")).unwrap();
        assert_eq!(
            swallowed.extra,
            [("System".to_owned(), "Colour: red".to_owned())]
        );
        let joined = read(format!("{SAMPLE}no colon\nColour: red\n")).unwrap();
        assert_eq!(
            joined.extra,
            [("no colon\nColour".to_owned(), "red".to_owned())]
        );
        let bytes = [SAMPLE.as_bytes(), b"Colour: \xff\n"].concat();
        let lossy = read(&bytes).unwrap();
        assert_eq!(lossy.extra, [("Colour".to_owned(), "\u{fffd}".to_owned())]);
        assert_eq!(lossy.quirks, [Quirk::ExtraNotUtf8]);
        let odd = read(with("Sig: qwer:AAAA", "Sig: qwer:")).unwrap();
        assert_eq!(
            odd.print(&StoreDir::default()),
            with("Sig: qwer:AAAA", "Sig: qwer:")
        );
        // The blank of an empty list stays.
        let alone = with(
            "References: g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo-1.2 n5wkd9frr45pa74if5gpz9j7mifg27fh-bar",
            "References: ",
        );
        assert_eq!(read(&alone).unwrap().print(&StoreDir::default()), alone);
    }

    #[test]
    fn errors_name_line_and_field() {
        let table = [
            (
                String::new(),
                "bad narinfo, StorePath: the field is missing",
            ),
            (
                "<html>\n".into(),
                "bad narinfo, line 1: expected 'Key: value', but no ':' follows",
            ),
            (
                SAMPLE.trim_end().into(),
                "bad narinfo, line 12: the line does not end in a newline: the file is cut off",
            ),
            (
                format!("{SAMPLE}x:"),
                "bad narinfo, line 13: the line does not end in a newline: the file is cut off",
            ),
            (
                format!("{SAMPLE}x:\n"),
                "bad narinfo, line 13: the line does not end in a newline: the file is cut off",
            ),
            (without("URL"), "bad narinfo, URL: the field is missing"),
            (
                with(
                    "URL: nar/1w1fff338fvdw53sqgamddn1b2xgds473pv6y13gizdbqjv4i5p3.nar.xz",
                    "URL: ",
                ),
                "bad narinfo, URL: the field is empty or 0",
            ),
            (
                without("NarHash"),
                "bad narinfo, NarHash: the field is missing",
            ),
            (
                without("NarSize"),
                "bad narinfo, NarSize: the field is missing",
            ),
            (
                with("34878", "0"),
                "bad narinfo, NarSize: the field is empty or 0",
            ),
            (
                with("34878", "-1"),
                "bad narinfo, line 7, NarSize: \"-1\" is not a size in bytes",
            ),
            (
                with("34878", "34878 "),
                "bad narinfo, line 7, NarSize: \"34878 \" is not a size in bytes",
            ),
            (
                with("34878", "18446744073709551616"),
                "bad narinfo, line 7, NarSize: \"18446744073709551616\" is not a size in bytes",
            ),
            (
                with("4029176", "4 MB"),
                "bad narinfo, line 5, FileSize: \"4 MB\" is not a size in bytes",
            ),
            (
                with("n: xz", "n: arj"),
                "bad narinfo, line 3, Compression: cannot be unpacked",
            ),
            (
                with("/nix/store/g", "/nix/store/x/g"),
                "bad narinfo, line 1, StorePath: not a path of this store",
            ),
            (
                with("-foo-1.2\n", "-foo-1.2\r\n"),
                "bad narinfo, line 1, StorePath: not a path of this store",
            ),
            (
                with("n5wkd9frr45pa74if5gpz9j7mifg27fh-bar", "/nix/store/x"),
                "bad narinfo, line 8, References: not a path of this store",
            ),
            (
                with("Deriver: n", "Deriver: /n"),
                "bad narinfo, line 9, Deriver: not a path of this store",
            ),
            (
                with("NarHash: sha256:1l", "NarHash: sha256:1e"),
                "bad narinfo, line 6, NarHash: not a usable hash",
            ),
            (
                with("FileHash: sha256:1", "FileHash: sha257:1"),
                "bad narinfo, line 4, FileHash: not a usable hash",
            ),
            (
                with(
                    "NarHash: ",
                    "NarHash: sha1:1ak1ymbmsfx7z8kh09jzkr3a4dvkrfjw\nNarHash: ",
                ),
                "bad narinfo, line 6, NarHash: not a usable hash",
            ),
            (
                with("fixed:r:", "fixed:x:"),
                "bad narinfo, line 12, CA: not a content address",
            ),
            (
                format!("{SAMPLE}CA: \n"),
                "bad narinfo, line 13, CA: the field is there a second time",
            ),
            (
                format!("{SAMPLE}References: \n"),
                "bad narinfo, line 13, References: the field is there a second time",
            ),
            (
                "x: ".repeat(MAX_NARINFO_BYTES),
                "bad narinfo: 6291456 bytes are too many for a narinfo (limit 2097152)",
            ),
        ];
        for (text, expected) in table {
            let error = read(&text).unwrap_err();
            assert_eq!(error.to_string(), expected);
            let Some(source) = error.source() else {
                continue;
            };
            assert!(
                !expected.contains(&source.to_string()),
                "{error} repeats its source"
            );
        }
        let error = read(b"URL: \xff\n").unwrap_err();
        assert_eq!(error.to_string(), "bad narinfo, line 1, URL: not UTF-8");
    }

    #[test]
    fn an_answer_about_another_path_is_an_error() {
        let narinfo = read(SAMPLE).unwrap();
        let wanted = HashPart::parse("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q").unwrap();
        assert_eq!(narinfo.expect(&wanted), Ok(()));
        let other = HashPart::parse("n5wkd9frr45pa74if5gpz9j7mifg27fh").unwrap();
        let error = narinfo.expect(&other).unwrap_err().to_string();
        assert!(
            error.contains("asked about n5wkd9f") && error.contains("answered about g1w7hy3"),
            "{error}"
        );
    }

    #[test]
    fn a_line_break_in_the_url_cannot_smuggle_a_field() {
        let mut narinfo = read(SAMPLE).unwrap();
        narinfo.url = "x\nNarSize: 1".into();
        let again = read(narinfo.print(&StoreDir::default())).unwrap();
        assert_eq!(
            (again.url.as_str(), again.info.nar_size),
            ("x%0ANarSize: 1", 34878)
        );
    }

    #[test]
    fn cut_anywhere_it_is_an_error_or_lacks_lines() {
        for cut in 0..SAMPLE.len() {
            let text = &SAMPLE[..cut];
            let whole_lines = text.ends_with('\n') && text.contains("NarSize");
            assert_eq!(read(text).is_ok(), whole_lines, "{text}");
        }
    }

    fn signed(seed: u8) -> (NarInfo, TrustedKeys) {
        let key = SecretKey::generate(&format!("k-{seed}")).unwrap();
        let mut narinfo = read(SAMPLE).unwrap();
        narinfo.info.signatures.clear();
        narinfo.info.sign(&StoreDir::default(), &key).unwrap();
        (narinfo, [key.public()].into_iter().collect())
    }

    #[test]
    fn a_changed_bit_is_never_trusted_under_another_signed_text() {
        let dir = StoreDir::default();
        let (narinfo, keys) = signed(0);
        let text = narinfo.print(&dir).into_bytes();
        let fingerprint = narinfo.info.fingerprint(&dir).unwrap();
        let mut trusted = 0;
        for bit in 0..text.len() * 8 {
            let mut text = text.clone();
            text[bit / 8] ^= 1 << (bit % 8);
            let Ok(changed) = NarInfo::parse(&dir, &text) else {
                continue;
            };
            if changed.info.valid_signatures(&dir, &keys) == Ok(1) {
                trusted += 1;
                assert_eq!(changed.info.fingerprint(&dir).unwrap(), fingerprint);
            }
        }
        // Unsigned fields may change: the URL alone has some three hundred such bits.
        assert!(trusted > 300, "{trusted}");
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(narinfo in narinfo()) {
            let dir = StoreDir::default();
            let text = narinfo.print(&dir);
            let again = NarInfo::parse(&dir, &text).unwrap();
            prop_assert_eq!(again.print(&dir), text);
            prop_assert_eq!(NarInfo { quirks: Vec::new(), ..again }, narinfo);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(bytes);
        }

        #[test]
        fn likely_text_is_read_or_refused(text in "((StorePath|References|Sig|CA|NarSize|:|x)(:| |: |\n)?(:| |\n|[0-9a-z/=-]{0,50})\n?){0,8}") {
            let _ = read(text);
        }

        #[test]
        fn a_mutated_narinfo_is_refused_or_prints_stably(
            edits in proptest::collection::vec((0..SAMPLE.len(), 0usize..9, proptest::collection::vec(any::<u8>(), 0..4)), 1..4),
        ) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            for (at, remove, insert) in edits {
                let at = at.min(bytes.len());
                let end = (at + remove).min(bytes.len());
                bytes.splice(at..end, insert);
            }
            if let Ok(narinfo) = read(&bytes) {
                let text = narinfo.print(&StoreDir::default());
                prop_assert_eq!(read(&text).unwrap().print(&StoreDir::default()), text);
            }
        }
    }
}
