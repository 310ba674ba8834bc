//! Why a request failed, whether to try it again, and how to say it.

use super::{
    causes::{causes, innermost, io_kind, is_tls},
    login::shown,
    retry::{RetryClass, Retryable},
};
use http::StatusCode;
use std::{io, time::Duration};
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

impl RequestFailure {
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

impl Retryable for RequestFailure {
    fn retry_class(&self) -> RetryClass {
        match self {
            RequestFailure::Connect { lasting: true, .. }
            | RequestFailure::Nonsense(_)
            | RequestFailure::Local(_) => RetryClass::Never,
            RequestFailure::Connect { .. } => RetryClass::Rarely,
            RequestFailure::Broken { kind, .. } if *kind == io::ErrorKind::TimedOut => {
                RetryClass::Once
            }
            RequestFailure::Broken { .. } => RetryClass::Later,
            RequestFailure::Status { status, wait, .. } => {
                RetryClass::of_answer(*status, "", *wait)
            }
        }
    }

    fn reason(&self) -> String {
        match self {
            RequestFailure::Status { status, words, .. } => said(*status, words),
            RequestFailure::Connect { words, .. }
            | RequestFailure::Broken { words, .. }
            | RequestFailure::Nonsense(words)
            | RequestFailure::Local(words) => words.clone(),
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
        let words = innermost(&error).replacen("other error: ", "", 1);
        if error.is_builder() || causes(&error).any(|e| e.is::<BodyFailed>()) {
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

/// Why a body ended early; the reason is known to whoever made it.
#[derive(Debug, thiserror::Error)]
#[error("what was to be sent could not be made")]
pub(super) struct BodyFailed;
