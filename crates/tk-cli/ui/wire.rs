//! What happens between this machine and servers.

use super::{Ui, seconds, size};
use serde_json::json;
use std::{
    collections::HashMap,
    fmt::Display,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tk_cache::observer::{AnsweredRequest, NetworkObserver, RetriedRequest};

/// What was counted so far, and which troubles were told of.
#[derive(Debug, Default)]
pub struct Wire {
    answers: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    troubles: Mutex<HashMap<String, Trouble>>,
}

/// So much happened since the beginning.
#[derive(Debug, Clone, Copy, Default)]
pub struct WireCount {
    /// Requests that were answered.
    pub answers: u64,
    received: u64,
    sent: u64,
}

impl WireCount {
    /// Bytes in both directions.
    pub fn bytes(&self) -> u64 {
        self.received + self.sent
    }
}

/// What went wrong more than once.
#[derive(Debug)]
struct Trouble {
    told: Instant,
    /// Times since, about which nothing was said.
    held: u32,
}

impl Wire {
    pub fn count(&self) -> WireCount {
        WireCount {
            answers: self.answers.load(Relaxed),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
        }
    }

    /// Whether something about `cause` may be said now: how often nothing was said since the last
    /// time.
    fn may_tell(&self, cause: String, now: Instant) -> Option<u32> {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        // Who invents causes does not fill the memory.
        troubles.retain(|_, trouble| now - trouble.told < FORGOTTEN);
        let full = troubles.len() >= MOST_CAUSES;
        match troubles.get_mut(&cause) {
            Some(trouble) if now - trouble.told < TELL_EVERY => {
                trouble.held += 1;
                None
            }
            Some(trouble) => {
                trouble.told = now;
                Some(std::mem::take(&mut trouble.held))
            }
            None if full => None,
            None => {
                let (told, held) = (now, 0);
                troubles.insert(cause, Trouble { told, held });
                Some(0)
            }
        }
    }
}

impl NetworkObserver for Ui {
    fn answered(&self, request: &AnsweredRequest<'_>) {
        self.0.wire.answers.fetch_add(1, Relaxed);
        if !self.0.verbose {
            return;
        }
        let (method, url) = (request.method, request.url);
        let milliseconds = request.time.as_millis();
        if self.is_json() {
            let fields = json!({ "method": method, "url": url, "status": request.outcome.ok(),
                "error": request.outcome.err(), "milliseconds": milliseconds as u64,
                "bytes": request.size });
            return self.event("request", fields);
        }
        let outcome = match request.outcome {
            Ok(status) => status.to_string(),
            Err(reason) => reason.to_owned(),
        };
        let bytes = request
            .size
            .map_or(String::new(), |bytes| format!(", {}", size(bytes)));
        self.detail(format_args!(
            "{method} {url}: {outcome}, {milliseconds} ms{bytes}"
        ));
    }

    fn retrying(&self, retry: &RetriedRequest<'_>) {
        let RetriedRequest {
            url,
            reason,
            attempt,
            attempts,
            ..
        } = retry;
        if self.is_json() {
            let fields = json!({ "url": url, "reason": reason, "attempt": attempt,
                "attempts": attempts, "waitSeconds": retry.wait.as_secs_f64() });
            return self.event("retry", fields);
        }
        let held = if self.0.verbose {
            0
        } else {
            match self.0.wire.may_tell(cause(url, reason), Instant::now()) {
                Some(held) => held,
                None => return,
            }
        };
        let more = match held {
            0 => String::new(),
            held => format!("; so did {held} more requests"),
        };
        let wait = if retry.wait < Duration::from_secs(1) {
            format!("{} ms", retry.wait.as_millis())
        } else {
            seconds(retry.wait)
        };
        let next = attempt + 1;
        self.warn(format_args!(
            "{url} failed: {reason}; trying again in {wait}, attempt {next} of {attempts}{more}"
        ));
    }

    fn received(&self, bytes: u64) {
        self.0.wire.received.fetch_add(bytes, Relaxed);
    }

    fn sent(&self, bytes: u64) {
        self.0.wire.sent.fetch_add(bytes, Relaxed);
    }

    fn warned(&self, text: &str) {
        self.warn(text);
    }

    fn remembered(&self, cache: &dyn Display, name: &str, there: bool) {
        if self.0.verbose {
            let there = if there { "there" } else { "absent" };
            self.detail(format_args!(
                "{cache}/{name}: remembered as {there}, not asked"
            ));
        }
    }
}

/// What tells troubles apart: the server, and what was wrong.
fn cause(url: &str, reason: &str) -> String {
    let end = url.find("://").map_or(0, |at| at + 3);
    let server = url[end..].split('/').next().unwrap_or_default();
    format!("{server} {reason}")
}

/// How often the same cause is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// After this long a cause is a new one.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Causes that are told apart.
const MOST_CAUSES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_cause_is_told_once_a_second() {
        let wire = Wire::default();
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let tell = |url, milliseconds| wire.may_tell(cause(url, "503"), after(milliseconds));
        assert_eq!(tell("http://a/1", 0), Some(0));
        assert_eq!(tell("http://a/2", 10), None);
        assert_eq!(tell("http://a/3", 20), None);
        assert_eq!(tell("http://b/1", 20), Some(0), "another server");
        assert_eq!(tell("http://a/4", 1_000), Some(2));
        assert_eq!(tell("http://a/4", 2_500), Some(0));
        for n in 0..1000 {
            wire.may_tell(format!("{n}"), after(3_000));
        }
        assert!(wire.troubles.lock().unwrap().len() <= MOST_CAUSES);
    }
}
