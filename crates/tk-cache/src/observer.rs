//! What happens on the wire, for those who want to see it.

use std::{
    fmt::{Debug, Display},
    time::{Duration, SystemTime},
};

/// Somebody who watches requests to servers. Called from any thread, often: it must not block.
///
/// # Security
/// URLs come without logins and without queries, either of which may hold a secret. What a server
/// said comes shortened and without control characters.
pub trait NetworkObserver: Debug + Send + Sync {
    /// A server answered a request, or it failed.
    fn answered(&self, request: &AnsweredRequest<'_>) {
        let _ = request;
    }

    /// A request is sent again after a wait, which begins now.
    fn retrying(&self, retry: &RetriedRequest<'_>) {
        let _ = retry;
    }

    /// So many bytes of some body came from a server, as they were sent.
    fn received(&self, bytes: u64) {
        let _ = bytes;
    }

    /// So many bytes of some body went to a server.
    fn sent(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Something that people should know, though the work goes on, such as that an answer is taken
    /// for another than it says. Each is told once.
    fn warned(&self, text: &str) {
        let _ = text;
    }

    /// `cache` was not asked for `name`, because it is remembered what it said: whether it is
    /// `there`.
    fn remembered(&self, cache: &dyn Display, name: &str, there: bool) {
        let _ = (cache, name, there);
    }
}

/// The observer that does nothing, for those who do not want to watch.
impl NetworkObserver for () {}

/// One request, when the head of its answer has come.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AnsweredRequest<'a> {
    /// The HTTP method of the request, such as `GET`.
    pub method: &'a str,
    /// What was asked for.
    pub url: &'a str,
    /// The HTTP status, or why there is none.
    pub outcome: Result<u16, &'a str>,
    /// From the beginning of the request to the head of the answer.
    pub time: Duration,
    /// Bytes of the answer's body, as far as its head tells.
    pub size: Option<u64>,
    /// What time it is for the server, in whole seconds, if it tells; when the answer was made, if it has an
    /// [`age`](Self::age). `None` also where a shared cache is on the way that does not tell how old the answer is.
    pub date: Option<SystemTime>,
    /// How long a shared cache held the answer, if one tells (`Age`).
    pub age: Option<Duration>,
}

/// One request that is sent again.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RetriedRequest<'a> {
    /// What was asked for.
    pub url: &'a str,
    /// What went wrong: the status and the server's own words, or why there was no answer.
    pub reason: &'a str,
    /// How long it waits before it is sent again.
    pub wait: Duration,
    /// The attempt that failed; the first is 1.
    pub attempt: u32,
    /// Attempts in all, if none succeeds.
    pub attempts: u32,
}
