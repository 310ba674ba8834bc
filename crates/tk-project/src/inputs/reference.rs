//! References to flakes: URLs, names and attributes. Mirrors `flakeref.cc` and the kinds of `libfetchers`.
//!
//! ```text
//! reference = id [ "/" ref ] [ "/" rev ]        "flake:" in front of it may be left out
//!           | "path:" path | a path
//!           | [ "git+" ] url | ( "tarball+" | "file+" ) ( "file" | "http" | "https" ) ":" …
//!           | ( "github" | "gitlab" | "sourcehut" ) ":" owner "/" repo [ "/" ( ref | rev ) ]
//! ```
//! `?dir=` of any of them is where flake.nix is in it.

use crate::{
    lock::{AttrValue, InputAttrs},
    url::NixUrl,
};

/// Reads a reference. Without a scheme for what is packed, a URL of `is_flake` is that of a tarball, else of a file.
///
/// # Errors
/// With the reason, if it is none or of an unknown kind.
pub fn parse_reference(text: &str, is_flake: bool) -> Result<InputAttrs, String> {
    let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
    if !fragment.is_empty() {
        return Err(format!(
            "'{text}' has a fragment, '#{fragment}', which inputs do not have"
        ));
    }
    if before.is_empty() {
        return Err("an empty text names no source".into());
    }
    if let Some(attrs) = indirect(before)? {
        return Ok(attrs);
    }
    match NixUrl::parse(text) {
        Ok(url) => of_url(url, is_flake),
        Err(error) if before.contains(':') => Err(error),
        Err(_) => {
            let (path, query) = before.split_once('?').unwrap_or((before, ""));
            let segments: Vec<String> = path.split('/').map(str::to_owned).collect();
            let mut url = NixUrl::parse(&format!("path:?{query}"))?;
            url.path = segments;
            of_url(url, is_flake)
        }
    }
}

/// Reads a reference that is an attribute set, and cleans it.
///
/// # Errors
/// With the reason, if an attribute is not known or lacking.
pub fn reference_from_attrs(mut attrs: InputAttrs) -> Result<InputAttrs, String> {
    let kind = attrs.kind().to_owned();
    let Some((allowed, needed)) = attributes(&kind) else {
        return Err(format!("inputs of the kind '{kind}' are not known"));
    };
    for (name, _) in attrs.iter() {
        if !matches!(name, "type" | "dir") && !allowed.contains(&name) {
            return Err(format!(
                "inputs of the kind '{kind}' have no attribute '{name}'"
            ));
        }
    }
    for name in needed {
        if attrs.text(name).is_none() {
            return Err(format!("the attribute '{name}' of the input is missing"));
        }
    }
    match kind.as_str() {
        "git" => {
            let url = fixed_git_url(attrs.text("url").unwrap_or_default())?;
            attrs.set_text("url", url.to_string());
        }
        "github" | "gitlab" | "sourcehut" if attrs.has("ref") && attrs.has("rev") => {
            return Err("the input has both a commit and a branch".into());
        }
        "indirect" if !is_id(attrs.text("id").unwrap_or_default()) => {
            return Err("the input has an 'id' that is none".into());
        }
        _ => (),
    }
    for name in ["ref", "rev", "narHash"] {
        let bad = |text: &str| {
            text.starts_with('-') || text.contains(|c: char| c.is_control() || c == ' ')
        };
        if attrs.text(name).is_some_and(bad) {
            return Err(format!("the attribute '{name}' of the input is none"));
        }
    }
    let of_git = matches!(kind.as_str(), "git" | "github" | "gitlab" | "sourcehut");
    if let Some(name) = attrs.text("ref").filter(|name| of_git && !is_git_ref(name)) {
        return Err(format!("'{name}' is no name of a branch or a tag"));
    }
    Ok(attrs)
}

/// The same reference as Nix compares them: `dir` in a URL counts once.
pub(crate) fn canonical(reference: &InputAttrs) -> InputAttrs {
    let mut out = reference.clone();
    if let Some(mut url) = reference
        .text("url")
        .and_then(|url| NixUrl::parse(url).ok())
    {
        if let Some(dir) = reference.text("dir")
            && url.query.get("dir").is_some_and(|other| other == dir)
        {
            url.query.remove("dir");
        }
        out.set_text("url", url.to_string());
    }
    out
}

/// The path of an input that lies in the flake that asks for it.
pub(crate) fn is_relative(reference: &InputAttrs) -> Option<&str> {
    let path = reference
        .text("path")
        .filter(|_| reference.kind() == "path");
    path.filter(|path| !path.starts_with('/'))
}

fn of_url(mut url: NixUrl, is_flake: bool) -> Result<InputAttrs, String> {
    let dir = url.query.remove("dir").filter(|dir| !dir.is_empty());
    url.fragment.clear();
    let mut attrs = match (url.scheme.as_str(), url.application()) {
        ("git", _) | (_, Some("git")) => git(url)?,
        ("path", _) => path(&url)?,
        ("flake", _) => {
            let id = url.path.join("/");
            let bad = || format!("'{url}' names no flake");
            indirect(&id)?.ok_or_else(bad)?
        }
        ("github" | "gitlab" | "sourcehut", _) => forge(&url)?,
        _ => match curl_kind(&url, is_flake) {
            Some(kind) => curl(url, kind)?,
            None => return Err(format!("'{url}' is of a kind that is not known")),
        },
    };
    if let Some(dir) = dir {
        attrs.set_text("dir", dir);
    }
    Ok(attrs)
}

/// `id`, `id/ref`, `id/rev`, `id/ref/rev`; `None` if it is something else.
fn indirect(text: &str) -> Result<Option<InputAttrs>, String> {
    let mut parts = text.split('/');
    let id = parts.next().unwrap_or_default();
    let rest: Vec<_> = parts.collect();
    let is_ref = |c: char| c.is_ascii_alphanumeric() || "_./@+-".contains(c);
    let begins = |text: &str| text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '@');
    let joined = rest.join("/");
    if !is_id(id) || (!rest.is_empty() && (!begins(&joined) || !joined.chars().all(is_ref))) {
        return Ok(None);
    }
    let mut attrs = InputAttrs::of_kind("indirect");
    attrs.set_text("id", id);
    match rest
        .iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()[..]
    {
        [] => (),
        [rev] if is_rev(rev) => attrs.set_text("rev", rev.to_ascii_lowercase()),
        [name] => attrs.set_text("ref", *name),
        [name, rev] if is_rev(rev) => {
            attrs.set_text("ref", *name);
            attrs.set_text("rev", rev.to_ascii_lowercase());
        }
        _ => {
            return Err(format!(
                "'{text}' is neither a flake of a registry nor a URL"
            ));
        }
    }
    Ok(Some(attrs))
}

fn path(url: &NixUrl) -> Result<InputAttrs, String> {
    if url
        .authority
        .as_ref()
        .is_some_and(|authority| !authority.is_empty())
    {
        return Err(format!("'{url}' is a path on another machine"));
    }
    let mut attrs = InputAttrs::of_kind("path");
    attrs.set_text("path", path_of(&url.path));
    for (name, value) in &url.query {
        match name.as_str() {
            "rev" | "narHash" => attrs.set_text(name, value),
            "revCount" | "lastModified" => {
                let bad = |_| format!("'{name}' of '{url}' is no number");
                attrs.set_number(name, value.parse().map_err(bad)?);
            }
            _ => {
                return Err(format!(
                    "'{url}' has a parameter that paths have not, '{name}'"
                ));
            }
        }
    }
    Ok(attrs)
}

/// As `urlPathToPath`: slashes count once.
fn path_of(segments: &[String]) -> String {
    let mut path = String::new();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        if segment.is_empty() && index > 0 && !is_last {
            continue;
        }
        if index > 0 && !path.ends_with('/') {
            path.push('/');
        }
        path.push_str(segment);
        if segment.is_empty() && index == 0 && segments.len() > 1 {
            path.push('/');
        }
    }
    path
}

fn git(mut url: NixUrl) -> Result<InputAttrs, String> {
    let mut attrs = InputAttrs::of_kind("git");
    for (name, value) in std::mem::take(&mut url.query) {
        match name.as_str() {
            "rev" | "ref" | "keytype" | "publicKey" | "publicKeys" => attrs.set_text(&name, value),
            "shallow" | "submodules" | "lfs" | "exportIgnore" | "allRefs" | "verifyCommit" => {
                attrs.set(&name, AttrValue::Flag(value == "1"));
            }
            _ => {
                url.query.insert(name, value);
            }
        }
    }
    attrs.set_text("url", url.to_string());
    reference_from_attrs(attrs)
}

fn fixed_git_url(text: &str) -> Result<NixUrl, String> {
    let is_file = text.starts_with("file:") || text.starts_with("git+file:");
    let mut text = text.to_owned();
    // user@host:path
    if !text.starts_with('/')
        && let Some((user, rest)) = text.split_once('@')
        && let Some((host, path)) = rest.rsplit_once(':')
        && !user.contains('/')
    {
        text = format!("ssh://{user}@{host}/{path}");
    }
    if !is_file && !text.contains("://") {
        let path: Vec<String> = text.split('/').map(str::to_owned).collect();
        if path[0].contains(':') {
            return Err(format!("'{text}' must be written as ssh://…"));
        }
        return Ok(NixUrl {
            scheme: "file".into(),
            authority: text.starts_with('/').then(String::new),
            path,
            ..NixUrl::default()
        });
    }
    let mut url = NixUrl::parse(&text)?;
    if url.application() == Some("git") {
        url.scheme = url.transport().to_owned();
    }
    Ok(url)
}

fn forge(url: &NixUrl) -> Result<InputAttrs, String> {
    let mut attrs = InputAttrs::of_kind(&url.scheme);
    let parts: Vec<_> = url.path.iter().filter(|part| !part.is_empty()).collect();
    let [owner, repo, rest @ ..] = &parts[..] else {
        return Err(format!("'{url}' has no owner or no repository"));
    };
    attrs.set_text("owner", owner.as_str());
    attrs.set_text("repo", repo.as_str());
    let mut set = |name: &str, value: &str| {
        if attrs.has(name) {
            return Err(format!("'{url}' has more than one '{name}'"));
        }
        attrs.set_text(name, value);
        Ok(())
    };
    match rest {
        [] => (),
        [rev] if is_rev(rev) => set("rev", rev)?,
        parts => {
            let parts: Vec<_> = parts.iter().map(|part| part.as_str()).collect();
            set("ref", &parts.join("/"))?;
        }
    }
    for (name, value) in &url.query {
        if matches!(name.as_str(), "rev" | "ref" | "host" | "narHash") {
            set(name, value)?;
        }
    }
    reference_from_attrs(attrs)
}

/// Which of `file` and `tarball` it is.
fn curl_kind(url: &NixUrl, is_flake: bool) -> Option<&'static str> {
    if !matches!(url.transport(), "file" | "http" | "https") {
        return None;
    }
    let last = url.path.last().map(String::as_str).unwrap_or_default();
    let is_tarball = is_flake || TARBALLS.iter().any(|end| last.ends_with(end));
    match url.application() {
        Some("file") => Some("file"),
        Some("tarball") => Some("tarball"),
        Some(_) => None,
        None if is_tarball => Some("tarball"),
        None => Some("file"),
    }
}

fn curl(mut url: NixUrl, kind: &str) -> Result<InputAttrs, String> {
    let mut attrs = InputAttrs::of_kind(kind);
    url.scheme = url.transport().to_owned();
    for name in ["narHash", "rev"] {
        if let Some(value) = url.query.get(name) {
            attrs.set_text(name, value);
        }
    }
    for name in ["revCount", "lastModified"] {
        if let Some(value) = url.query.get(name).and_then(|value| value.parse().ok()) {
            attrs.set_number(name, value);
        }
    }
    for name in CURL {
        url.query.remove(*name);
    }
    attrs.set_text("url", url.to_string());
    reference_from_attrs(attrs)
}

fn is_id(text: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(rest)
}

/// As `git check-ref-format --branch`.
fn is_git_ref(text: &str) -> bool {
    let odd = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    text != "@"
        && !text.starts_with('-')
        && !text.ends_with('.')
        && !text.contains("..")
        && !text.contains("@{")
        && !text.contains(odd)
        && text.split('/').all(part)
}

fn is_rev(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What an input of a kind may have, and what it must have.
fn attributes(kind: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    Some(match kind {
        "path" => (PATH, &["path"]),
        "git" => (GIT, &["url"]),
        "tarball" | "file" => (CURL, &["url"]),
        "github" | "gitlab" | "sourcehut" => (FORGE, &["owner", "repo"]),
        "indirect" => (INDIRECT, &["id"]),
        "hg" => (HG, &["url"]),
        _ => return None,
    })
}

const PATH: &[&str] = &["path", "rev", "revCount", "lastModified", "narHash"];
const GIT: &[&str] = &[
    "url",
    "ref",
    "rev",
    "shallow",
    "submodules",
    "lfs",
    "exportIgnore",
    "lastModified",
    "revCount",
    "narHash",
    "allRefs",
    "name",
    "dirtyRev",
    "dirtyShortRev",
    "verifyCommit",
    "keytype",
    "publicKey",
    "publicKeys",
];
const CURL: &[&str] = &[
    "url",
    "narHash",
    "name",
    "unpack",
    "rev",
    "revCount",
    "lastModified",
];
const FORGE: &[&str] = &[
    "owner",
    "repo",
    "ref",
    "rev",
    "narHash",
    "lastModified",
    "host",
    "treeHash",
];
const INDIRECT: &[&str] = &["id", "ref", "rev", "narHash"];
const HG: &[&str] = &["url", "ref", "rev", "revCount", "narHash", "name"];
const TARBALLS: [&str; 7] = [
    ".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst",
];
