//! URLs as Nix takes and writes them.
//!
//! ```text
//! url       = scheme ":" [ "//" authority ] path [ "?" query ] [ "#" fragment ]
//! scheme    = [ application "+" ] transport
//! query     = name "=" value { "&" name "=" value }
//! ```
//! Parts are kept decoded, and written with all that is not unreserved encoded; the query is sorted by name. In
//! queries blanks and `"` may stand as they are, in fragments `^` too. Mirrors `url.cc`.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::{collections::BTreeMap, fmt, path::PathBuf};

/// A URL in parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NixUrl {
    pub(crate) scheme: String,
    /// As it was written.
    pub(crate) authority: Option<String>,
    /// Decoded, but for `/` in a segment.
    pub(crate) path: Vec<String>,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) fragment: String,
}

impl NixUrl {
    /// Reads `text`.
    ///
    /// # Errors
    /// With the reason.
    pub(crate) fn parse(text: &str) -> Result<NixUrl, String> {
        let bad = |why: &str| format!("'{text}' is not a URL: {why}");
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| bad("it has no scheme"))?;
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(is_scheme)
        {
            return Err(bad("it has no scheme"));
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if let Some(odd) = rest.chars().find(|c| !is_path(*c)) {
            return Err(bad(&format!("'{}' must be encoded", odd.escape_default())));
        }
        if let Some(odd) = query
            .chars()
            .find(|c| !is_path(*c) && !matches!(c, '?' | ' ' | '"'))
        {
            return Err(bad(&format!("'{}' must be encoded", odd.escape_default())));
        }
        let (authority, path) = match rest.strip_prefix("//") {
            None => (None, rest),
            Some(rest) => {
                let end = rest.find('/').unwrap_or(rest.len());
                (Some(rest[..end].to_owned()), &rest[end..])
            }
        };
        let is_file = scheme.rsplit('+').next() == Some("file");
        if is_file
            && authority
                .as_ref()
                .is_some_and(|authority| !authority.is_empty())
        {
            return Err(bad("a file is on no other machine"));
        }
        let path = if is_file && path.is_empty() {
            "/"
        } else {
            path
        };
        let segments = path
            .split('/')
            .map(|segment| decode(segment).ok_or_else(|| bad("it is not UTF-8")));
        let mut url = NixUrl {
            scheme: scheme.to_ascii_lowercase(),
            authority,
            path: segments.collect::<Result<_, _>>()?,
            query: BTreeMap::new(),
            fragment: decode(fragment).ok_or_else(|| bad("it is not UTF-8"))?,
        };
        for pair in query.split('&') {
            // What has no value is passed over, with a warning.
            if let Some((name, value)) = pair.split_once('=') {
                let (name, value) = (decode(name), decode(value));
                let (name, value) = name.zip(value).ok_or_else(|| bad("it is not UTF-8"))?;
                url.query.entry(name).or_insert(value);
            }
        }
        Ok(url)
    }

    /// The scheme without what stands in front of a `+`.
    pub(crate) fn transport(&self) -> &str {
        self.scheme
            .split_once('+')
            .map_or(&self.scheme, |(_, transport)| transport)
    }

    /// What stands in front of a `+` in the scheme.
    pub(crate) fn application(&self) -> Option<&str> {
        self.scheme
            .split_once('+')
            .map(|(application, _)| application)
    }

    /// The path as a file name.
    pub(crate) fn file_path(&self) -> String {
        self.path.join("/")
    }
}

impl fmt::Display for NixUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if let Some(authority) = &self.authority {
            write!(f, "//{authority}")?;
        }
        let path: Vec<_> = self.path.iter().map(|s| encoded(s, IN_PATH)).collect();
        f.write_str(&path.join("/"))?;
        for (index, (name, value)) in self.query.iter().enumerate() {
            let mark = if index == 0 { '?' } else { '&' };
            write!(
                f,
                "{mark}{}={}",
                encoded(name, IN_QUERY),
                encoded(value, IN_QUERY)
            )?;
        }
        if !self.fragment.is_empty() {
            write!(f, "#{}", encoded(&self.fragment, UNRESERVED))?;
        }
        Ok(())
    }
}

/// The file that a URL names, or a path that stands in place of one.
pub(crate) fn local_path(url: &str) -> Option<PathBuf> {
    if url.starts_with('/') {
        return Some(url.into());
    }
    let url = NixUrl::parse(url).ok()?;
    let path = url.file_path();
    (url.transport() == "file" && path.starts_with('/')).then(|| path.into())
}

fn encoded(text: &str, set: &'static AsciiSet) -> String {
    utf8_percent_encode(text, set).to_string()
}

fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// What may stand in a path or an authority as it is.
fn is_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%[]".contains(c)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const IN_PATH: &AsciiSet = &UNRESERVED.remove(b':').remove(b'@');
const IN_QUERY: &AsciiSet = &IN_PATH.remove(b'/').remove(b'?');
