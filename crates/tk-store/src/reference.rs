//! Store references: the text that names a store on a command line or in a configuration.
//!
//! ```text
//! reference = ( "" | "auto" | "daemon" | "local" | path | url ) [ "?" setting *( "&" setting ) ]
//! path      = text with a "/", without a scheme     ; a store on disk, relative to the current folder
//! url       = scheme "://" [ host ] path           ; also scheme ":" path
//!           | "file:" text                         ; a cache, relative to the current folder
//! host      = [ user "@" ] ( name | "[" IPv6 [ "%25" zone ] "]" | IPv6 [ "%" zone ] ) [ ":" port ]
//! setting   = key "=" value                        ; percent-encoded
//! ```
//! The attempts are made in Nix's order: URL, words, path, and last an IPv6 address without its
//! brackets (which therefore cannot have a port). Mirrors `store-reference.cc`; what is printed is
//! what Nix prints. More lenient than Nix 2.34 in two things: bytes that should have been encoded in the
//! path of a URL are, instead of being refused; and `file:./cache` is what it is to older ones.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::Ipv6Addr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};
use tk_path::StoreDir;

/// Which store is meant, and its settings. `Display` is the form that Nix prints.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreReference {
    /// The store that is meant, without its settings.
    pub variant: StoreVariant,
    /// Its settings, decoded. Not checked: see [`StoreReference::settings`].
    pub params: BTreeMap<String, String>,
}

/// The store that a [`StoreReference`] names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoreVariant {
    /// Whatever suits the machine: a writable local store, a daemon, or a store of the user's own.
    Auto,
    /// The daemon at its default socket, without settings.
    Daemon,
    /// The store of this machine, without settings.
    Local,
    /// Any store, by scheme.
    Specified {
        /// What comes before `://`, as written.
        scheme: String,
        /// What comes after it, up to the settings: host and path, percent-encoded.
        authority: String,
    },
}

impl StoreReference {
    /// Parses `text`; a path in it is relative to `cwd`, which must be absolute.
    ///
    /// The path is made absolute and clean without looking at the file system, so that `x/../y`
    /// is `y` even where `x` is a link. Of a setting that is given twice the first counts.
    pub fn parse(text: &str, cwd: &Path) -> Result<Self, ReferenceError> {
        let (base, query) = match text.split_once('?') {
            Some((base, query)) => (base, query),
            None => (text, ""),
        };
        let fail = |fault: ReferenceFault| ReferenceError::Text {
            text: text.to_owned(),
            fault,
        };
        let variant = match split_url(base) {
            Some((scheme, rest)) => StoreVariant::Specified {
                scheme: scheme.to_owned(),
                authority: clean_authority(rest).map_err(fail)?,
            },
            None => match base {
                "" | "auto" => StoreVariant::Auto,
                "daemon" => StoreVariant::Daemon,
                "local" => StoreVariant::Local,
                _ => match split_scheme(base) {
                    Some((scheme, rest)) => of_folder(scheme, rest, cwd).map_err(fail)?,
                    None if base.contains('/') && !base.contains("://") => local(&cwd.join(base)),
                    None => return Err(fail(ReferenceFault::Kind)),
                },
            },
        };
        if split_scheme(base).is_some() && text.contains('#') {
            return Err(fail(ReferenceFault::Fragment));
        }
        Ok(Self::new(variant, decode_query(query).map_err(fail)?))
    }

    /// The reference with `params`. `daemon` and `local` become URLs when there are any.
    pub fn new(variant: StoreVariant, params: BTreeMap<String, String>) -> Self {
        let scheme = match variant {
            StoreVariant::Daemon if !params.is_empty() => "unix",
            StoreVariant::Local if !params.is_empty() => "local",
            _ => return StoreReference { variant, params },
        };
        let variant = StoreVariant::Specified {
            scheme: scheme.to_owned(),
            authority: String::new(),
        };
        StoreReference { variant, params }
    }

    /// The reference to the store on disk below the folder `root`, an absolute path.
    pub fn of_root(root: &Path) -> Self {
        Self::new(local(root), BTreeMap::new())
    }

    /// Adds settings that win over those that are there.
    pub fn with_params(mut self, params: impl IntoIterator<Item = (String, String)>) -> Self {
        self.params.extend(params);
        Self::new(self.variant, self.params)
    }

    /// The same store without its settings: what names a cache in Nix's narinfo disk cache.
    pub fn without_params(&self) -> Self {
        StoreReference {
            variant: self.variant.clone(),
            params: BTreeMap::new(),
        }
    }

    /// The scheme, also of the words: `unix` for `daemon`, `local` for `local`, `None` for `auto`.
    pub fn scheme(&self) -> Option<&str> {
        match &self.variant {
            StoreVariant::Auto => None,
            StoreVariant::Daemon => Some("unix"),
            StoreVariant::Local => Some("local"),
            StoreVariant::Specified { scheme, .. } => Some(scheme),
        }
    }

    /// The file system path that the authority of `local`, `unix` and `file` is; `None` if empty.
    ///
    /// # Errors
    /// When it is not absolute (`file://a/b` names a host `a`), or holds a NUL.
    pub fn path(&self) -> Result<Option<PathBuf>, ReferenceError> {
        let StoreVariant::Specified { authority, .. } = &self.variant else {
            return Ok(None);
        };
        if authority.is_empty() {
            return Ok(None);
        }
        let bytes: Vec<u8> = percent_decode_str(authority).collect();
        if bytes[0] != b'/' || bytes.contains(&0) {
            return Err(ReferenceError::Text {
                text: self.to_string(),
                fault: ReferenceFault::Relative,
            });
        }
        Ok(Some(PathBuf::from(OsString::from_vec(bytes))))
    }

    /// The settings, to be taken one by one.
    pub fn settings(&self) -> Settings {
        Settings {
            store: self.to_string(),
            rest: self.params.clone(),
        }
    }
}

impl fmt::Display for StoreReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variant {
            StoreVariant::Auto => f.write_str("auto")?,
            StoreVariant::Daemon => f.write_str("daemon")?,
            StoreVariant::Local => f.write_str("local")?,
            StoreVariant::Specified { scheme, authority } => write!(f, "{scheme}://{authority}")?,
        }
        for (i, (key, value)) in self.params.iter().enumerate() {
            let key = percent_encode(key.as_bytes(), QUERY);
            let value = percent_encode(value.as_bytes(), QUERY);
            write!(f, "{}{key}={value}", if i == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

/// The settings of one reference. Whoever opens the store takes those it knows, each checked as it
/// is taken; what is [`unknown`](Settings::unknown) at the end deserves a warning, as in Nix.
#[derive(Debug, Clone)]
pub struct Settings {
    store: String,
    rest: BTreeMap<String, String>,
}

impl Settings {
    /// The text of a setting; `None` if it is not given, here and below.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.rest.remove(key)
    }

    /// `true`, `yes` or `1`; `false`, `no` or `0`.
    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>, ReferenceError> {
        self.take_with(key, "true or false", |text| match text {
            "true" | "yes" | "1" => Some(true),
            "false" | "no" | "0" => Some(false),
            _ => None,
        })
    }

    /// A number, which may end in K, M, G or T (powers of 1024).
    pub fn take_u64(&mut self, key: &str) -> Result<Option<u64>, ReferenceError> {
        self.take_with(key, "a number such as 5 or 64M", number)
    }

    /// A number that may be negative.
    pub fn take_i64(&mut self, key: &str) -> Result<Option<i64>, ReferenceError> {
        self.take_with(key, "a whole number", |text| text.parse().ok())
    }

    /// Takes the setting `key`, which must be an absolute path.
    pub fn take_path(&mut self, key: &str) -> Result<Option<PathBuf>, ReferenceError> {
        self.take_with(key, "an absolute path", |text| {
            Some(PathBuf::from(text)).filter(|path| path.is_absolute())
        })
    }

    /// The store directory, setting `store`, made canonical.
    pub fn take_store_dir(&mut self) -> Result<Option<StoreDir>, ReferenceError> {
        self.take_with("store", "an absolute path such as /nix/store", |text| {
            StoreDir::new(text).ok()
        })
    }

    /// A setting of any type; `wanted` tells in the error what it should have been.
    pub fn take_with<T>(
        &mut self,
        key: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ReferenceError> {
        let Some(value) = self.rest.remove(key) else {
            return Ok(None);
        };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(ReferenceError::Setting {
                store: self.store.clone(),
                key: key.to_owned(),
                value,
                wanted: wanted.to_owned(),
            }),
        }
    }

    /// The names of settings that nobody took.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.rest.keys().map(String::as_str)
    }
}

/// Why a store reference cannot be used. The user's mistake, always.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The text names no store.
    #[error("'{text}' names no store: {fault}")]
    Text {
        /// The reference as given.
        text: String,
        /// What is wrong with it.
        fault: ReferenceFault,
    },
    /// A setting has a value that it cannot have.
    #[error("store '{store}': setting '{key}' must be {wanted}, not '{value}'")]
    Setting {
        /// The store reference in the form that Nix prints.
        store: String,
        /// The name of the setting.
        key: String,
        /// The value that was given, after percent-decoding.
        value: String,
        /// What the value should be, such as `true or false`.
        wanted: String,
    },
}

/// What can be wrong with the text of a store reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceFault {
    /// No word, path or URL.
    #[error(
        "write auto, daemon, local, a folder with a '/' in it (./store), or a URL such as \
         file:///cache, https://host, s3://bucket, ssh-ng://host or unix:///socket"
    )]
    Kind,
    /// The part between `://` and the path.
    #[error("what follows '://' is neither a host (name, name:port or [IPv6]:port) nor a path")]
    Host,
    /// `%` without two hex digits, or bytes in a setting that are no UTF-8.
    #[error("a '%' must be followed by two hex digits (write %25 for the sign itself)")]
    Escape,
    /// A `#`, which begins a fragment in a URL, and no store has one.
    #[error("a store URL ends before any '#' (write %23 for the sign itself)")]
    Fragment,
    /// A path that is not absolute.
    #[error("the path in it must be absolute (three slashes: file:///cache)")]
    Relative,
}

/// Scheme and rest, if `base` has the shape of a URL.
fn split_url(base: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = split_scheme(base)?;
    let rest = rest.starts_with('/').then_some(rest)?;
    Some((scheme, rest.strip_prefix("//").unwrap_or(rest)))
}

/// What stands in front of a `:` if it may be a scheme, and what is behind it.
fn split_scheme(base: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = base.split_once(':')?;
    let word = scheme
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (word && scheme.starts_with(|c: char| c.is_ascii_alphabetic())).then_some((scheme, rest))
}

/// What `scheme:path` means, where `path` begins in the folder `cwd`.
fn of_folder(scheme: &str, path: &str, cwd: &Path) -> Result<StoreVariant, ReferenceFault> {
    match scheme {
        "file" if !path.is_empty() => {
            let path = OsString::from_vec(decode(path)?);
            Ok(StoreVariant::Specified {
                scheme: scheme.to_owned(),
                authority: encoded(&cwd.join(path)),
            })
        }
        "file" | "local" | "unix" => Err(ReferenceFault::Relative),
        _ => Err(ReferenceFault::Kind),
    }
}

/// Host and path in their canonical spelling: brackets around IPv6, the path encoded anew.
fn clean_authority(text: &str) -> Result<String, ReferenceFault> {
    let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let mut clean = clean_host(host)?;
    for (i, segment) in path.split('/').enumerate() {
        if i > 0 {
            clean.push('/');
        }
        clean.extend(percent_encode(&decode(segment)?, SEGMENT));
    }
    Ok(clean)
}

fn clean_host(text: &str) -> Result<String, ReferenceFault> {
    let (user, host) = match text.split_once('@') {
        Some((user, host)) => (user, host),
        None => ("", text),
    };
    if !is_name(user, b":") {
        return Err(ReferenceFault::Host);
    }
    let at = if text.contains('@') { "@" } else { "" };
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        let address = clean_address(address, true)?;
        return match rest.strip_prefix(':').unwrap_or("0") {
            port if is_port(port) && (rest.is_empty() || rest.starts_with(':')) => {
                Ok(format!("{user}{at}[{address}]{rest}"))
            }
            _ => Err(ReferenceFault::Host),
        };
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    if is_name(name, b"") && is_port(port) {
        return Ok(text.to_owned());
    }
    Ok(format!("{user}{at}[{}]", clean_address(host, false)?))
}

/// An IPv6 address with its zone in the form of RFC 6874. A bare `%` is accepted in front of the
/// zone; within brackets `%25` is that sign encoded, elsewhere it is not decoded.
fn clean_address(text: &str, bracketed: bool) -> Result<String, ReferenceFault> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    address
        .parse::<Ipv6Addr>()
        .map_err(|_| ReferenceFault::Host)?;
    let Some(zone) = zone else {
        return Ok(address.to_owned());
    };
    let zone = match zone.strip_prefix("25") {
        Some(encoded) if bracketed && !encoded.is_empty() => decode(encoded)?,
        _ => zone.as_bytes().to_vec(),
    };
    if zone.is_empty() {
        return Err(ReferenceFault::Host);
    }
    Ok(format!("{address}%25{}", percent_encode(&zone, UNRESERVED)))
}

/// Whether `text` may stand in a URL as a host or user name, which may be empty.
fn is_name(text: &str, also: &[u8]) -> bool {
    decode(text).is_ok()
        && text.bytes().all(|b| {
            b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b) || also.contains(&b)
        })
}

fn is_port(text: &str) -> bool {
    text.is_empty() || (text.parse::<u16>().is_ok() && !text.starts_with('+'))
}

fn local(path: &Path) -> StoreVariant {
    StoreVariant::Specified {
        scheme: "local".to_owned(),
        authority: encoded(path),
    }
}

/// An absolute path, clean and percent-encoded.
fn encoded(path: &Path) -> String {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    percent_encode(clean.as_os_str().as_bytes(), PATH).to_string()
}

/// A setting without `=` has an empty value, where Nix warns and forgets it: so the caller learns
/// of it, as an unknown setting or as a value that cannot be.
fn decode_query(query: &str) -> Result<BTreeMap<String, String>, ReferenceFault> {
    let mut params = BTreeMap::new();
    for setting in query.split('&').filter(|setting| !setting.is_empty()) {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        let text = |part| String::from_utf8(decode(part)?).map_err(|_| ReferenceFault::Escape);
        params.entry(text(key)?).or_insert(text(value)?);
    }
    Ok(params)
}

/// Percent-decodes strictly: the crate hands on a `%` that is not followed by two hex digits.
fn decode(text: &str) -> Result<Vec<u8>, ReferenceFault> {
    let mut pieces = text.as_bytes().split(|b| *b == b'%').skip(1);
    if pieces.all(|p| p.len() >= 2 && p[..2].iter().all(u8::is_ascii_hexdigit)) {
        Ok(percent_decode_str(text).collect())
    } else {
        Err(ReferenceFault::Escape)
    }
}

fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// What RFC 3986 leaves as it is everywhere.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// Nix's choices for a segment of a path, a whole path, and the settings.
const SEGMENT: &AsciiSet = &UNRESERVED.remove(b':').remove(b'@');
const PATH: &AsciiSet = &SEGMENT.remove(b'/');
const QUERY: &AsciiSet = &PATH.remove(b'?');

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<StoreReference, ReferenceError> {
        StoreReference::parse(text, Path::new("/home/me"))
    }

    fn specified(scheme: &str, authority: &str) -> StoreVariant {
        StoreVariant::Specified {
            scheme: scheme.into(),
            authority: authority.into(),
        }
    }

    #[test]
    fn words_paths_and_urls() {
        for (text, variant, printed) in [
            ("", StoreVariant::Auto, "auto"),
            ("auto", StoreVariant::Auto, "auto"),
            ("?a=b", StoreVariant::Auto, "auto?a=b"),
            ("daemon", StoreVariant::Daemon, "daemon"),
            ("daemon?a=b", specified("unix", ""), "unix://?a=b"),
            ("local", StoreVariant::Local, "local"),
            (
                "local?root=/x y",
                specified("local", ""),
                "local://?root=/x%20y",
            ),
            ("local://", specified("local", ""), "local://"),
            ("/a/b", specified("local", "/a/b"), "local:///a/b"),
            ("/", specified("local", "/"), "local:///"),
            (
                "./a",
                specified("local", "/home/me/a"),
                "local:///home/me/a",
            ),
            (
                "../../../a/./b//",
                specified("local", "/a/b"),
                "local:///a/b",
            ),
            (
                "/a%b#c é",
                specified("local", "/a%25b%23c%20%C3%A9"),
                "local:///a%25b%23c%20%C3%A9",
            ),
            ("file:///a/b/", specified("file", "/a/b/"), "file:///a/b/"),
            ("file:/a", specified("file", "/a"), "file:///a"),
            (
                "file:./a%20b?x=1",
                specified("file", "/home/me/a%20b"),
                "file:///home/me/a%20b?x=1",
            ),
            ("file:../c", specified("file", "/home/c"), "file:///home/c"),
            (
                "file:c",
                specified("file", "/home/me/c"),
                "file:///home/me/c",
            ),
            (
                "./file:c",
                specified("local", "/home/me/file:c"),
                "local:///home/me/file:c",
            ),
            (
                "file:///a b%7e%41!",
                specified("file", "/a%20b~A%21"),
                "file:///a%20b~A%21",
            ),
            (
                "https://h:80/a?x=1&b=2&x=3",
                specified("https", "h:80/a"),
                "https://h:80/a?b=2&x=1",
            ),
            (
                "s3://bucket?k=a+b%2b",
                specified("s3", "bucket"),
                "s3://bucket?k=a%2Bb%2B",
            ),
            ("ssh://me@h", specified("ssh", "me@h"), "ssh://me@h"),
            (
                "ssh://[::1]:22",
                specified("ssh", "[::1]:22"),
                "ssh://[::1]:22",
            ),
            ("ssh://::1", specified("ssh", "[::1]"), "ssh://[::1]"),
            (
                "ssh-ng://me@fe80::1%eth0",
                specified("ssh-ng", "me@[fe80::1%25eth0]"),
                "ssh-ng://me@[fe80::1%25eth0]",
            ),
            (
                "ssh://fe80::1%25",
                specified("ssh", "[fe80::1%2525]"),
                "ssh://[fe80::1%2525]",
            ),
            (
                "ssh://[fe80::1%eth0]",
                specified("ssh", "[fe80::1%25eth0]"),
                "ssh://[fe80::1%25eth0]",
            ),
            (
                "ssh://[fe80::1%25eth0]",
                specified("ssh", "[fe80::1%25eth0]"),
                "ssh://[fe80::1%25eth0]",
            ),
        ] {
            let reference = parse(text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(reference.variant, variant, "{text}");
            assert_eq!(reference.to_string(), printed, "{text}");
            assert_eq!(parse(printed).as_ref(), Ok(&reference), "{text}");
        }
    }

    #[test]
    fn refused() {
        for (text, fault) in [
            ("deamon", ReferenceFault::Kind),
            ("foo:bar", ReferenceFault::Kind),
            ("foo:./bar", ReferenceFault::Kind),
            ("http:x/y", ReferenceFault::Kind),
            ("ssh:./x", ReferenceFault::Kind),
            ("local:./x", ReferenceFault::Relative),
            ("unix:s", ReferenceFault::Relative),
            ("file:", ReferenceFault::Relative),
            ("file:%zz", ReferenceFault::Escape),
            (r"C:\foo\bar?trusted=true", ReferenceFault::Kind),
            ("a/b://c", ReferenceFault::Kind),
            ("://x/y", ReferenceFault::Kind),
            ("https://h:x/a", ReferenceFault::Host),
            ("https://a b/c", ReferenceFault::Host),
            ("ssh://[::1]x", ReferenceFault::Host),
            ("ssh://[::1", ReferenceFault::Host),
            ("ssh://[h]", ReferenceFault::Host),
            ("ssh://::1%", ReferenceFault::Host),
            ("ssh://a@b@c", ReferenceFault::Host),
            ("file:///a%zz", ReferenceFault::Escape),
            ("file:///a%4", ReferenceFault::Escape),
            ("local?root=%", ReferenceFault::Escape),
            ("local?root=%ff", ReferenceFault::Escape),
            ("file:///a#b", ReferenceFault::Fragment),
            ("file:///a?b=c#d", ReferenceFault::Fragment),
        ] {
            let expected = ReferenceError::Text {
                text: text.to_owned(),
                fault,
            };
            assert_eq!(parse(text), Err(expected), "{text}");
        }
        let sentence = parse("deamon").unwrap_err().to_string();
        assert!(sentence.starts_with("'deamon' names no store: write auto, daemon, local,"));
    }

    #[test]
    fn paths_of_references() {
        for (text, path) in [
            ("auto", Some(None)),
            ("local", Some(None)),
            ("unix://", Some(None)),
            ("unix:///run/s%20s", Some(Some("/run/s s"))),
            ("./x y", Some(Some("/home/me/x y"))),
            ("file://a/b", None),
            ("file:///a%00", None),
        ] {
            let found = parse(text).unwrap().path().ok();
            assert_eq!(found, path.map(|p| p.map(PathBuf::from)), "{text}");
        }
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/a\xff?"));
        let reference = StoreReference::of_root(odd);
        assert_eq!(reference.to_string(), "local:///a%FF%3F");
        assert_eq!(reference.path().unwrap().as_deref(), Some(odd));
    }

    #[test]
    fn settings_are_checked_and_counted() {
        let text =
            "file:///c?trusted=yes&priority=-1&size=3K&x=1&store=/my//store/../store&real=y&b=2";
        let reference = parse(text)
            .unwrap()
            .with_params([("b".into(), "maybe".into())]);
        let mut settings = reference.settings();
        assert_eq!(settings.take_bool("trusted"), Ok(Some(true)));
        assert_eq!(settings.take_bool("trusted"), Ok(None));
        assert_eq!(settings.take_i64("priority"), Ok(Some(-1)));
        assert_eq!(settings.take_u64("size"), Ok(Some(3072)));
        let dir = settings.take_store_dir().unwrap().unwrap();
        assert_eq!(dir.as_str(), "/my/store");
        let error = settings.take_path("real").unwrap_err().to_string();
        assert!(
            error.ends_with("setting 'real' must be an absolute path, not 'y'"),
            "{error}"
        );
        let error = settings.take_bool("b").unwrap_err().to_string();
        assert!(
            error.ends_with("setting 'b' must be true or false, not 'maybe'"),
            "{error}"
        );
        assert_eq!(settings.unknown().collect::<Vec<_>>(), ["x"]);
        for bad in [
            "",
            "-1",
            "1X",
            "K",
            "99999999999999999999",
            "99999999T",
            "é",
        ] {
            assert_eq!(number(bad), None, "{bad}");
        }
        for bad in ["/c?store=", "/c?store=x"] {
            assert!(parse(bad).unwrap().settings().take_store_dir().is_err());
        }
    }

    #[test]
    fn words_take_settings() {
        let set = || [("a".to_owned(), "b".to_owned())];
        let of = |text| parse(text).unwrap();
        assert_eq!(of("daemon").with_params(set()), of("daemon?a=b"));
        assert_eq!(of("local").with_params(set()), of("local?a=b"));
        assert_eq!(of("local?a=b").without_params().to_string(), "local://");
        assert_eq!(of("daemon").scheme(), Some("unix"));
        assert_eq!(of("").scheme(), None);
    }

    proptest! {
        #[test]
        fn printing_is_a_fixpoint(text in "(ssh://|file:|local|[a-z]{1,3}://)?[]\\[a1/:.%25?&=@# é~+-]{0,24}") {
            if let Ok(reference) = parse(&text) {
                let printed = reference.to_string();
                prop_assert_eq!(parse(&printed), Ok(reference), "{}", printed);
            }
        }

        #[test]
        fn any_text_is_survived(text in "\\PC*") {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(parse(&reference.to_string()), Ok(reference));
            }
        }
    }
}
