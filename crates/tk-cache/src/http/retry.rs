//! What is tried again, how often, and after which wait: for HTTP servers and for buckets.

use crate::{
    limit::{Limit, Permit},
    observer::{NetworkObserver, RetriedRequest},
};
use http::{HeaderMap, StatusCode, header};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What is tried again: broken connections, timeouts, and statuses that say "later". Waits double
/// each time, and vary by chance. Only the request itself waits; others go on.
#[derive(Debug, Clone)]
pub struct Retry {
    /// How often a request is sent at most, 1 for once. Fewer times where there is no connection at
    /// all, twice where nothing came for the stall timeout; nearly twice as often where the server
    /// says that it has too much to do.
    pub attempts: u32,
    /// How long the first wait is; each further one is twice as long. Default: 250 ms.
    pub delay: Duration,
    /// The first wait after "too many requests" (429, 503) that does not say how long. Servers that
    /// refuse every third request are no slower for it, so it is as short as the others.
    pub delay_rate_limited: Duration,
    /// The longest wait, also if the server asks for more.
    pub max_delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            attempts: 5,
            delay: Duration::from_millis(250),
            delay_rate_limited: Duration::from_millis(250),
            max_delay: Duration::from_secs(60),
        }
    }
}

impl Retry {
    /// How often a request is sent at most to a server that has too much to do: with the defaults
    /// for about a minute.
    fn attempts_rate_limited(&self) -> u32 {
        self.attempts.saturating_mul(2).saturating_sub(1)
    }
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

impl RetryClass {
    /// Of an answer with `status`, the service's own `code` for it (empty if it gave none) and the
    /// wait that it asks for.
    pub(crate) fn of_answer(status: StatusCode, code: &str, wait: Option<Duration>) -> Self {
        match (status.as_u16(), code) {
            (429 | 503, _) | (_, "SlowDown") => RetryClass::SlowDown(wait),
            // 520 to 530 are Cloudflare's, for a server behind it that fails.
            (408 | 425 | 500 | 502 | 504 | 520..=530, _)
            | (
                _,
                "ConditionalRequestConflict"
                | "InternalError"
                | "OperationAborted"
                | "RequestTimeout"
                | "ServerBusy",
            ) => RetryClass::Later,
            _ => RetryClass::Never,
        }
    }
}

/// Why an attempt failed.
pub(crate) trait Retryable {
    /// What to do about it.
    fn retry_class(&self) -> RetryClass;
    /// What went wrong, in a few words.
    fn reason(&self) -> String;
}

/// The attempts of one request.
pub(crate) struct RetryState {
    retry: Retry,
    limit: Limit,
    made: u32,
    /// The URL for people, and who is told of what goes wrong there.
    observed: (String, Arc<dyn NetworkObserver>),
}

impl RetryState {
    pub(crate) fn new(
        retry: Retry,
        limit: Limit,
        observed: (String, Arc<dyn NetworkObserver>),
    ) -> Self {
        RetryState {
            retry,
            limit,
            made: 0,
            observed,
        }
    }

    /// Waits for the turn of the next attempt.
    pub(crate) async fn start(&self) -> Permit {
        self.limit.acquire().await
    }

    /// Waits before the next attempt; the failure, if there is none.
    pub(crate) async fn again<F: Retryable>(
        &mut self,
        mut permit: Permit,
        failure: F,
    ) -> Result<(), F> {
        // Before the wait: others need not wait as well.
        permit.give_back();
        self.made += 1;
        let Retry {
            attempts, delay, ..
        } = self.retry;
        let (attempts, wait) = match failure.retry_class() {
            RetryClass::Never => (0, Duration::ZERO),
            RetryClass::Rarely => (attempts.min(RARE_ATTEMPTS), self.delay(delay)),
            RetryClass::Once => (attempts.min(2), self.delay(delay)),
            RetryClass::Later => (attempts, self.delay(delay)),
            RetryClass::SlowDown(asked) => {
                permit.slow_down();
                let wait = match asked {
                    // A varying part on top, so that those who were told the same do not come
                    // back together.
                    Some(wait) => wait.min(self.retry.max_delay) + self.delay(delay) / 4,
                    None => self.delay(self.retry.delay_rate_limited),
                };
                (self.retry.attempts_rate_limited(), wait)
            }
        };
        if self.made >= attempts {
            return Err(failure);
        }
        let (url, observer) = &self.observed;
        observer.retrying(&RetriedRequest {
            url,
            reason: &failure.reason(),
            wait,
            attempt: self.made,
            attempts,
        });
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// It goes on since the last failure: from now on the count starts again.
    pub(crate) fn progressed(&mut self) {
        self.made = 0;
    }

    /// Doubles with each attempt, and is between half of that and all of it, so that those who
    /// failed together do not come back together.
    fn delay(&self, first: Duration) -> Duration {
        let doubled = first.saturating_mul(1 << (self.made - 1).min(16));
        let chance = RandomState::new().build_hasher().finish() as u32;
        let part = 0.5 + f64::from(chance) / f64::from(u32::MAX) / 2.0;
        doubled.min(self.retry.max_delay).mul_f64(part)
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

/// Attempts where there is no connection at all.
const RARE_ATTEMPTS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_again() {
        let class = |status, code| {
            let status = StatusCode::from_u16(status).unwrap();
            RetryClass::of_answer(status, code, None)
        };
        for (status, code, expected) in [
            (400, "", RetryClass::Never),
            (403, "AccessDenied", RetryClass::Never),
            (501, "", RetryClass::Never),
            (429, "", RetryClass::SlowDown(None)),
            (503, "ServerBusy", RetryClass::SlowDown(None)),
            (400, "SlowDown", RetryClass::SlowDown(None)),
            (502, "", RetryClass::Later),
            (530, "", RetryClass::Later),
            (400, "RequestTimeout", RetryClass::Later),
            (409, "OperationAborted", RetryClass::Later),
        ] {
            assert_eq!(class(status, code), expected, "{status} {code}");
        }
    }
}
