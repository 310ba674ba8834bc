//! Why a request failed, whether to try it again, and how to say it.

use super::{
    body::{self, StallGuard},
    send::shown,
};
use http::{HeaderMap, StatusCode, header};
use std::{
    error::Error as StdError,
    io,
    time::{Duration, SystemTime},
};
use tk_store::Error;
use url::Url;

/// What became of one attempt.
#[derive(Debug, Clone)]
pub(crate) enum RequestFailure {
    /// There was no connection.
    Connect {
        kind: io::ErrorKind,
        words: String,
        /// Whether it will be the same in a while: a certificate that is not trusted.
        lasting: bool,
    },
    /// It broke, or nothing came any more.
    Broken { kind: io::ErrorKind, words: String },
    /// The server said something else than what was asked for.
    Status {
        status: StatusCode,
        /// What `Retry-After` asks for.
        wait: Option<Duration>,
        /// What the server said to it.
        words: String,
    },
    /// What came makes no sense, and would not the next time.
    Nonsense(String),
    /// The fault is on this side, so to send it again would not help.
    Local(String),
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryClass {
    Never,
    /// It may pass, but rarely does at once: no such host, connection refused.
    Rarely,
    /// Nothing came for as long as a server may be silent. A connection may have died unseen, but
    /// whoever is silent twice will be the third time.
    Once,
    Later,
    /// The server has too much to do, and may have said how long to wait.
    SlowDown(Option<Duration>),
}

impl RequestFailure {
    /// Of an answer that is none of those expected.
    pub(crate) async fn of(response: reqwest::Response, pace: StallGuard) -> Self {
        let status = response.status();
        let wait = retry_after(response.headers());
        RequestFailure::Status {
            status,
            wait,
            words: body::words(response, pace).await,
        }
    }

    pub(crate) fn timeout(words: impl Into<String>) -> Self {
        RequestFailure::Broken {
            kind: io::ErrorKind::TimedOut,
            words: words.into(),
        }
    }

    /// Of what is larger than it may be.
    pub(crate) fn larger(limit: usize) -> Self {
        RequestFailure::Nonsense(format!("it is larger than {limit} bytes"))
    }

    /// The same, of a server that a redirect named.
    pub(crate) fn elsewhere(self, url: &Url) -> Self {
        match self {
            RequestFailure::Connect { kind, words, .. } => RequestFailure::Broken {
                kind,
                words: format!("it redirects to {}: {words}", shown(url)),
            },
            other => other,
        }
    }

    pub(crate) fn again(&self) -> RetryClass {
        match self {
            RequestFailure::Connect { lasting: true, .. }
            | RequestFailure::Nonsense(_)
            | RequestFailure::Local(_) => RetryClass::Never,
            RequestFailure::Connect { .. } => RetryClass::Rarely,
            RequestFailure::Broken { kind, .. } if *kind == io::ErrorKind::TimedOut => {
                RetryClass::Once
            }
            RequestFailure::Broken { .. } => RetryClass::Later,
            RequestFailure::Status { status, wait, .. } => match status.as_u16() {
                429 | 503 => RetryClass::SlowDown(*wait),
                // 520 to 530 are Cloudflare's, for a server behind it that fails.
                408 | 425 | 500 | 502 | 504 | 520..=530 => RetryClass::Later,
                _ => RetryClass::Never,
            },
        }
    }

    /// What went wrong, in a few words.
    pub(crate) fn reason(&self) -> String {
        match self {
            RequestFailure::Status { status, words, .. } => said(*status, words),
            RequestFailure::Connect { words, .. }
            | RequestFailure::Broken { words, .. }
            | RequestFailure::Nonsense(words)
            | RequestFailure::Local(words) => words.clone(),
        }
    }

    /// The error of the cache `store`, when `verb` ("reading") was done to `url`.
    pub(crate) fn into_error(self, store: &str, verb: &str, url: &Url) -> Error {
        let what = shown(url);
        match self {
            RequestFailure::Connect { kind, words, .. }
            | RequestFailure::Broken { kind, words } => {
                Error::io(format!("{verb} {what}"), io::Error::new(kind, words))
            }
            RequestFailure::Status { status, words, .. } => {
                of_status(status, &words, store, verb, &what)
            }
            RequestFailure::Nonsense(words) => {
                Error::malformed(format!("the answer for {what}"), words)
            }
            RequestFailure::Local(words) => {
                Error::io(format!("{verb} {what}"), io::Error::other(words))
            }
        }
    }
}

/// For those who have nothing of the server's words in it.
#[cfg(feature = "bucket")]
impl From<RequestFailure> for io::Error {
    fn from(failure: RequestFailure) -> Self {
        match failure {
            RequestFailure::Connect { kind, words, .. }
            | RequestFailure::Broken { kind, words } => io::Error::new(kind, words),
            RequestFailure::Status { status, .. } => {
                io::Error::other(format!("HTTP status {status}"))
            }
            RequestFailure::Nonsense(words) => io::Error::new(io::ErrorKind::InvalidData, words),
            RequestFailure::Local(words) => io::Error::other(words),
        }
    }
}

impl From<reqwest::Error> for RequestFailure {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let kind = io_kind(&error);
        // How rustls begins what is not its own.
        let words = cause(&error).replacen("other error: ", "", 1);
        if error.is_builder() || is_local(&error) {
            return RequestFailure::Local(words);
        }
        if error.is_connect() {
            let timeout = error.is_timeout() || kind == Some(io::ErrorKind::TimedOut);
            return RequestFailure::Connect {
                kind: if timeout {
                    io::ErrorKind::TimedOut
                } else {
                    kind.unwrap_or(io::ErrorKind::NotConnected)
                },
                words: if timeout {
                    "no connection in time".to_owned()
                } else {
                    format!("no connection: {words}")
                },
                lasting: is_tls(&error),
            };
        }
        RequestFailure::Broken {
            kind: kind.unwrap_or(io::ErrorKind::ConnectionAborted),
            words,
        }
    }
}

fn of_status(status: StatusCode, words: &str, store: &str, verb: &str, what: &str) -> Error {
    let said = said(status, words);
    let writes = matches!(verb, "writing" | "uploading" | "removing");
    let hint = match status.as_u16() {
        401 => "it wants a login, or does not take the one it was sent",
        403 if writes => "the login, if any, does not allow to write there",
        403 => "the login, if any, does not allow to read this",
        407 => "the proxy wants a login",
        405 | 501 if writes => {
            return Error::Unsupported {
                store: store.to_owned(),
                what: format!("does not take uploads ({said})"),
            };
        }
        409 if writes => "the server cannot put it there; its folder may be missing",
        413 if writes => "it is larger than the server allows",
        507 if writes => "the server has no space left",
        408 | 425 | 429 | 500.. => {
            return Error::io(format!("{verb} {what}"), io::Error::other(said));
        }
        _ => "",
    };
    Error::Refused {
        who: store.to_owned(),
        words: match hint {
            "" => format!("{said} for {what}"),
            hint => format!("{hint} ({said} for {what})"),
        },
    }
}

/// The status, and the server's own words unless they only repeat it.
fn said(status: StatusCode, words: &str) -> String {
    let name = status.canonical_reason().unwrap_or_default();
    let new = words.replace(status.as_str(), "").replace(name, "");
    if new.contains(char::is_alphanumeric) {
        format!("HTTP status {status}: {words}")
    } else {
        format!("HTTP status {status}")
    }
}

/// What `Retry-After` asks for, in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The innermost reason, which is what a person can act on.
fn cause(error: &(dyn StdError + 'static)) -> String {
    sources(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

pub(super) fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    // The source of an `io::Error` is that of what it holds, which would be left out.
    std::iter::successors(Some(error), |&e| {
        match e.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held as &(dyn StdError + 'static)),
            None => e.source(),
        }
    })
}

fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    let kinds = sources(error).filter_map(|e| e.downcast_ref::<io::Error>());
    kinds
        .map(io::Error::kind)
        .find(|kind| *kind != io::ErrorKind::Other)
}

fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    sources(error).any(|e| {
        matches!(
            e.downcast_ref(),
            Some(
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::NoCertificatesPresented
                    // There is nobody to trust.
                    | rustls::Error::Other(_)
                    | rustls::Error::AlertReceived(_)
            )
        )
    })
}

fn is_local(error: &(dyn StdError + 'static)) -> bool {
    sources(error).any(|e| e.is::<super::send::BodyFailed>())
}
