//! Archives of github, gitlab and sourcehut, and whatever else comes over HTTP. Mirrors `github.cc`.

use super::{FetchError, FetchOptions, FetchedInput, FetchedTree};
use crate::{
    lock::InputAttrs,
    source::{ArchiveTree, SingleFolder},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
};

/// Who loads files from servers, following redirects.
pub trait HttpDownload {
    /// What is at `url`, asked for with these headers. Blocks.
    ///
    /// # Errors
    /// If it cannot be had, whatever the reason.
    ///
    /// # Security
    /// The headers may hold secrets, which are for the host of `url` and nobody else.
    fn download(&self, url: &str, headers: &[(String, String)]) -> io::Result<DownloadedFile>;
}

/// What a server gave.
#[derive(Debug)]
pub struct DownloadedFile {
    /// The file, from its beginning.
    pub content: File,
    /// The URL of a header `Link: <…>; rel="immutable"`: where the same is for ever.
    pub immutable_link: Option<String>,
}

/// Secrets by host or `host/owner/repository`, as the setting `access-tokens` of nix.conf has them.
#[derive(Clone, Default)]
pub struct AccessTokens(BTreeMap<String, String>);

impl AccessTokens {
    /// Reads the setting: `github.com=… gitlab.com=PAT:…`.
    pub fn parse(text: &str) -> AccessTokens {
        let pairs = text
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='));
        AccessTokens(
            pairs
                .map(|(host, token)| (host.into(), token.into()))
                .collect(),
        )
    }

    /// The longest name that fits.
    fn find(&self, host: &str, path: &str) -> Option<&str> {
        let fits = |name: &str| {
            path.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let best = self
            .0
            .iter()
            .filter(|(name, _)| fits(name))
            .max_by_key(|(name, _)| name.len());
        best.map(|(_, token)| token.as_str())
            .or_else(|| self.0.get(host).map(String::as_str))
    }
}

/// Tokens are secrets.
impl fmt::Debug for AccessTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A repository of a forge.
struct ForgeInput<'a> {
    kind: &'a str,
    host: &'a str,
    owner: &'a str,
    repo: &'a str,
    headers: Vec<(String, String)>,
}

impl FetchOptions<'_> {
    /// What `url` gives.
    pub(super) fn download(
        &self,
        url: &str,
        headers: &[(String, String)],
    ) -> Result<DownloadedFile, FetchError> {
        let Some(http) = self.http else {
            let what = format!("{url} is not on this machine, and nothing is loaded");
            return Err(FetchError::Unsupported(what));
        };
        let loaded = http.download(url, headers);
        loaded.map_err(|e| crate::InputSourceError::failed(format!("loading {url}"), e).into())
    }

    pub(super) fn forge(&self, wanted: &InputAttrs) -> Result<FetchedInput, FetchError> {
        let text = |name: &str| wanted.text(name).unwrap_or_default();
        let kind = wanted.kind();
        let usual = match kind {
            "github" => "github.com",
            "gitlab" => "gitlab.com",
            _ => "git.sr.ht",
        };
        let host = wanted.text("host").unwrap_or(usual);
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
        if !host.chars().all(is_host) {
            return Err(FetchError::Unsupported(format!("'{host}' is no host")));
        }
        let (owner, repo) = (text("owner"), text("repo"));
        let token = self.tokens.find(host, &format!("{host}/{owner}/{repo}"));
        let headers = token.map(|token| header(kind, token)).into_iter().collect();
        let input = ForgeInput {
            kind,
            host,
            owner,
            repo,
            headers,
        };
        let rev = match wanted.text("rev") {
            Some(rev) => rev.to_owned(),
            None => self.rev_of(&input, wanted.text("ref").unwrap_or("HEAD"))?,
        };
        if rev.len() != 40 || !rev.bytes().all(|b| b.is_ascii_hexdigit()) {
            let what = format!("{host} says that the commit is '{rev}'");
            return Err(FetchError::Unsupported(what));
        }
        let loaded = self.download(&input.archive(&rev), &input.headers)?;
        let mut archive =
            ArchiveTree::read(loaded.content, &self.scratch, SingleFolder::IsTheTree)?;
        let mut locked = wanted.clone();
        locked.remove("ref");
        locked.set_text("rev", rev);
        locked.set_number("lastModified", archive.last_modified);
        locked.set_text("narHash", archive.nar_hash()?.sri());
        Ok(FetchedInput {
            locked,
            tree: FetchedTree::Archive(archive),
        })
    }

    /// The commit that `name` means now.
    fn rev_of(&self, input: &ForgeInput<'_>, name: &str) -> Result<String, FetchError> {
        let ForgeInput {
            host, owner, repo, ..
        } = input;
        let odd = || {
            FetchError::Unsupported(format!(
                "{host} does not say which commit '{name}' of {owner}/{repo} is"
            ))
        };
        let load = |url: &str| self.text(url, &input.headers);
        let json = |url: &str| serde_json::from_str::<Value>(&load(url)?).map_err(|_| odd());
        match input.kind {
            "github" => {
                let base = match *host {
                    "github.com" => format!("https://api.{host}"),
                    _ => format!("https://{host}/api/v3"),
                };
                let found = json(&format!("{base}/repos/{owner}/{repo}/commits/{name}"))?;
                found["sha"].as_str().map(str::to_owned).ok_or_else(odd)
            }
            "gitlab" => {
                let found = json(&format!(
                    "https://{host}/api/v4/projects/{owner}%2F{repo}/repository/commits?ref_name={name}"
                ))?;
                found[0]["id"].as_str().map(str::to_owned).ok_or_else(odd)
            }
            _ => {
                let base = format!("https://{host}/{owner}/{repo}");
                let wanted = if name == "HEAD" {
                    let head = load(&format!("{base}/HEAD"))?;
                    let head = head
                        .lines()
                        .next()
                        .and_then(|line| line.strip_prefix("ref: "));
                    vec![head.ok_or_else(odd)?.trim().to_owned()]
                } else {
                    ["heads", "tags"]
                        .map(|kind| format!("refs/{kind}/{name}"))
                        .to_vec()
                };
                let refs = load(&format!("{base}/info/refs"))?;
                let mut pairs = refs
                    .lines()
                    .filter_map(|line| line.split_once(char::is_whitespace));
                let found =
                    pairs.find(|(_, name)| wanted.iter().any(|wanted| wanted == name.trim()));
                found.map(|(rev, _)| rev.to_owned()).ok_or_else(odd)
            }
        }
    }

    fn text(&self, url: &str, headers: &[(String, String)]) -> Result<String, FetchError> {
        let loaded = self.download(url, headers)?;
        let mut text = String::new();
        let read = loaded.content.take(MAX_ANSWER).read_to_string(&mut text);
        read.map_err(|e| crate::InputSourceError::failed(format!("loading {url}"), e))?;
        Ok(text)
    }
}

impl ForgeInput<'_> {
    /// Where the archive of `rev` is.
    fn archive(&self, rev: &str) -> String {
        let ForgeInput {
            host,
            owner,
            repo,
            headers,
            ..
        } = self;
        match (self.kind, *host) {
            ("github", "github.com") if headers.is_empty() => {
                format!("https://{host}/{owner}/{repo}/archive/{rev}.tar.gz")
            }
            ("github", "github.com") => {
                format!("https://api.{host}/repos/{owner}/{repo}/tarball/{rev}")
            }
            ("github", _) => format!("https://{host}/api/v3/repos/{owner}/{repo}/tarball/{rev}"),
            ("gitlab", _) => format!(
                "https://{host}/api/v4/projects/{owner}%2F{repo}/repository/archive.tar.gz?sha={rev}"
            ),
            _ => format!("https://{host}/{owner}/{repo}/archive/{rev}.tar.gz"),
        }
    }
}

/// How a token is shown.
fn header(kind: &str, token: &str) -> (String, String) {
    let authorization = |value: String| ("Authorization".to_owned(), value);
    match (kind, token.split_once(':')) {
        ("github", _) => authorization(format!("token {token}")),
        ("gitlab", Some(("OAuth2", token))) => authorization(format!("Bearer {token}")),
        ("gitlab", Some(("PAT", token))) => ("Private-token".into(), token.into()),
        ("gitlab", Some((name, value))) => (name.into(), value.into()),
        ("gitlab", None) => (token.into(), token.into()),
        _ => authorization(format!("Bearer {token}")),
    }
}

/// Bytes of an answer that is no archive.
const MAX_ANSWER: u64 = 64 << 20;
