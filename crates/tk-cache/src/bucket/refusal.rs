//! What services say when they say no, and what a person can do about it.

use crate::{
    http::{RetryClass, causes, innermost, io_kind, retry_after},
    sentence::{element, one_line, sentence_of},
};
use http::{HeaderMap, StatusCode};
use std::{error::Error as StdError, fmt, io, time::Duration};
use tk_store::Error;

/// An answer that is not the one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The service's word for it, such as `NoSuchKey`; empty if it gave none.
    pub(super) code: String,
    /// What the service says about it, in one line; empty if it gave only a code.
    pub(super) message: String,
    /// The region that it asks to use instead.
    pub(super) region: Option<String>,
    /// What `Retry-After` asks for.
    pub(super) wait: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let header = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let code = element(&text, "Code").or_else(|| header("x-ms-error-code"));
        let message = match element(&text, "Message") {
            Some(message) => one_line(&message),
            None if code.is_some() => String::new(),
            None => sentence_of(&text),
        };
        let region = element(&text, "Region").or_else(|| header("x-amz-bucket-region"));
        Refusal {
            status,
            code: code.unwrap_or_default(),
            message,
            region,
            wait: retry_after(headers),
        }
    }

    /// The refusal behind an error, if there is one.
    pub(super) fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Refusal> {
        causes(error).find_map(|error| error.downcast_ref())
    }

    /// Whether, and when, to send the same request again.
    pub(super) fn retry_class(&self) -> RetryClass {
        RetryClass::of_answer(self.status, &self.code, self.wait)
    }

    /// Whether the same request may succeed later.
    pub(super) fn may_pass(&self) -> bool {
        self.retry_class() != RetryClass::Never
    }

    /// Whether it says in so many words that there is no such object.
    pub(super) fn is_absent(&self) -> bool {
        matches!(
            self.code.as_str(),
            "NoSuchKey" | "BlobNotFound" | "NoSuchVersion"
        )
    }

    /// Whether it does not allow it to whoever asks, and does not say that it does not know them.
    pub(super) fn is_denied(&self) -> bool {
        matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        ) && matches!(
            self.code.as_str(),
            "" | "AccessDenied" | "AuthorizationFailure" | "AuthorizationPermissionMismatch"
        )
    }

    pub(super) fn is(&self, code: &str) -> bool {
        self.code == code
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP status {}", self.status.as_u16())?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        match self.message.as_str() {
            "" => Ok(()),
            message => write!(f, ": {message}"),
        }
    }
}

impl StdError for Refusal {}

/// Who was asked, for sentences about it.
#[derive(Debug, Clone)]
pub(super) struct AskedService {
    /// The URI of the cache.
    pub(super) uri: String,
    pub(super) bucket: String,
    /// The URL of the server.
    pub(super) server: String,
    pub(super) region: String,
    /// Whether nothing was signed, for want of credentials.
    pub(super) anonymous: bool,
}

impl AskedService {
    /// The error of a request that did `doing` ("reading nar/x").
    pub(super) fn failed(&self, doing: &str, error: &(dyn StdError + 'static)) -> Error {
        match Refusal::of(error) {
            Some(refusal) => self.refused(doing, refusal),
            None => {
                let kind = io_kind(error).unwrap_or(io::ErrorKind::Other);
                Error::io(
                    format!("{doing} in {}", self.uri),
                    io::Error::new(kind, innermost(error)),
                )
            }
        }
    }

    pub(super) fn refused(&self, doing: &str, refusal: &Refusal) -> Error {
        if refusal.may_pass() {
            let said = io::Error::other(refusal.to_string());
            return Error::io(format!("{doing} in {}", self.uri), said);
        }
        let said = refusal.to_string();
        let words = match self.advice(refusal) {
            Some(advice) => format!("{advice} ({doing}: {said})"),
            None => format!("{doing}: {said}"),
        };
        let who = self.uri.clone();
        Error::Refused { who, words }
    }

    fn advice(&self, refusal: &Refusal) -> Option<String> {
        let other_region = refusal
            .region
            .as_deref()
            .filter(|region| *region != self.region);
        Some(match refusal.code.as_str() {
            "NoSuchBucket" | "ContainerNotFound" => {
                format!("there is no bucket {} at {}", self.bucket, self.server)
            }
            "InvalidAccessKeyId" => {
                "the service does not know this access key: check AWS_ACCESS_KEY_ID or the profile"
                    .to_owned()
            }
            "SignatureDoesNotMatch" => {
                "the secret key is not that of the access key: check AWS_SECRET_ACCESS_KEY or the \
                 profile"
                    .to_owned()
            }
            "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException" => {
                "the session token has expired: sign in again".to_owned()
            }
            "InvalidToken" => "the session token is not valid: sign in again".to_owned(),
            "RequestTimeTooSkewed" => {
                "the clock of this machine and that of the service differ too much".to_owned()
            }
            "AuthenticationFailed" | "InvalidAuthenticationInfo" => {
                "the service does not take these credentials".to_owned()
            }
            _ => match other_region {
                Some(region) => format!(
                    "the bucket {} is in the region {region}, not in {}: use ?region={region}",
                    self.bucket, self.region
                ),
                None if matches!(refusal.status.as_u16(), 301 | 307 | 308) => format!(
                    "the bucket {} is not at {}: check region and endpoint",
                    self.bucket, self.server
                ),
                None if refusal.status == StatusCode::UNAUTHORIZED || refusal.is_denied() => {
                    self.no_permission()
                }
                None => return None,
            },
        })
    }

    fn no_permission(&self) -> String {
        if self.anonymous {
            format!(
                "no permission: no credentials were found, and the bucket {} is not open to all",
                self.bucket
            )
        } else {
            format!("no permission for this in the bucket {}", self.bucket)
        }
    }
}

/// Whether the network is behind an error.
pub(super) fn is_io(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|error| error.is::<io::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::RETRY_AFTER;
    use std::time::SystemTime;

    #[test]
    fn waits_in_seconds_and_as_dates() {
        let wait = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, &headers, b"").wait
        };
        assert_eq!(wait(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(
            wait("Thu, 01 Jan 1970 00:00:00 GMT"),
            Some(Duration::ZERO),
            "it is over"
        );
        let hour = Duration::from_secs(3600);
        let later = wait(&httpdate::fmt_http_date(SystemTime::now() + hour)).unwrap();
        assert!(later > hour / 2 && later <= hour, "{later:?}");
        assert_eq!(wait("soon"), None);
    }
}
