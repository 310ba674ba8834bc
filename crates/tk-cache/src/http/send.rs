//! One request: whom it goes to, with which login, over what.

use super::{
    Retryable, body,
    client::Client,
    failure::{BodyFailed, RequestFailure},
    login::{UrlLogin, basic, shown, take_login},
    origin::{self, Origin},
};
use crate::observer::{AnsweredRequest, NetworkObserver};
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AGE, AUTHORIZATION, DATE, LOCATION, VIA},
};
use reqwest::Response;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

/// What to ask. It can be sent any number of times.
pub(super) struct HttpRequest {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Payload,
    /// Whether a body of any length comes or goes.
    pub(super) bulk: bool,
}

pub(super) enum Payload {
    None,
    /// What is made anew for each attempt, and says how far it is.
    Stream(MakeBody, Arc<BodyProgress>),
}

pub(super) type MakeBody =
    Box<dyn Fn() -> BoxStream<'static, Result<Bytes, BodyFailed>> + Send + Sync>;

impl Payload {
    /// Content that is at hand, in pieces, so that it is seen whether the server takes them.
    pub(super) fn bytes(content: Bytes) -> Self {
        let progress = Arc::new(BodyProgress::default());
        let seen = progress.clone();
        let make = move || stream::iter(pieces(content.clone(), seen.clone()).map(Ok)).boxed();
        Payload::Stream(Box::new(make), progress)
    }
}

/// `content` in pieces, whose sending is seen.
pub(crate) fn pieces(mut content: Bytes, seen: Arc<BodyProgress>) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        seen.moved();
        let piece = content.split_to(content.len().min(PIECE));
        (!piece.is_empty()).then_some(piece)
    })
}

/// When the server last took something of a body.
#[derive(Debug, Default)]
pub(crate) struct BodyProgress(Mutex<Option<Instant>>);

impl BodyProgress {
    /// It took something, or the answer is awaited from now on.
    pub(super) fn moved(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// There is nothing to take at the moment: its time does not pass.
    pub(super) fn waits(&self) {
        *self.lock() = None;
    }

    /// When its time will have passed, if nothing happens.
    fn ends(&self, stall: Duration) -> Instant {
        self.lock().unwrap_or_else(Instant::now) + stall
    }

    /// Waits for `answer`, as long as the body moves.
    async fn watch<T>(
        &self,
        answer: impl Future<Output = Result<T, RequestFailure>>,
        stall: Duration,
    ) -> Result<T, RequestFailure> {
        self.moved();
        let mut answer = std::pin::pin!(answer);
        loop {
            match timeout_at(self.ends(stall), &mut answer).await {
                Ok(answer) => return answer,
                Err(_) if self.ends(stall) > Instant::now() => {}
                Err(_) => return Err(no_answer(stall)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpRequest {
    pub(super) fn new(method: Method, url: Url) -> Self {
        HttpRequest {
            method,
            url,
            headers: HeaderMap::new(),
            body: Payload::None,
            bulk: false,
        }
    }

    fn make(
        &self,
        url: &Url,
        login: Option<&HeaderValue>,
        observer: &Arc<dyn NetworkObserver>,
    ) -> reqwest::Request {
        let mut request = reqwest::Request::new(self.method.clone(), url.clone());
        *request.headers_mut() = self.headers.clone();
        if let Some(login) = login {
            request.headers_mut().insert(AUTHORIZATION, login.clone());
        }
        *request.body_mut() = match &self.body {
            Payload::None => None,
            Payload::Stream(make, _) => {
                let observer = observer.clone();
                let tell = move |chunk: &Result<Bytes, _>| {
                    observer.sent(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
                };
                Some(reqwest::Body::wrap_stream(make().inspect(tell)))
            }
        };
        request
    }
}

impl Client {
    /// The head of the answer, of whatever status but a redirect. It has come in a bounded time,
    /// except where the body is a stream.
    pub(super) async fn send(&self, request: &HttpRequest) -> Result<Response, RequestFailure> {
        let mut url = request.url.clone();
        let mut encrypted = false;
        for hop in 0..=MAX_REDIRECTS {
            let in_url = take_login(&mut url);
            // After an encrypted hop a netrc login must not go out in the clear.
            encrypted |= url.scheme() == "https";
            let exposed = encrypted && url.scheme() != "https";
            let login = self.login_for(&url, in_url, exposed);
            let response = self.send_to(request, &url, login.as_ref()).await;
            let response = match hop {
                0 => response?,
                // That another server cannot be reached must not count against this one.
                _ => response.map_err(|failure| failure.elsewhere(&url))?,
            };
            match target(&response, &request.method, &url)? {
                None => return Ok(response),
                Some(next) => url = next,
            }
            body::drain(response, self.pace()).await;
        }
        Err(RequestFailure::Nonsense(format!(
            "more than {MAX_REDIRECTS} redirects, the last to {}",
            shown(&url)
        )))
    }

    fn login_for(&self, url: &Url, in_url: Option<UrlLogin>, exposed: bool) -> Option<HeaderValue> {
        let inner = self.inner();
        let own = inner.login.as_ref().filter(|l| l.origin == url.origin());
        match (own, in_url) {
            (Some(own), _) => Some(own.header.clone()),
            (None, Some(in_url)) => Some(in_url.header(url, &inner.netrc)),
            (None, None) if exposed => None,
            (None, None) => {
                let found = inner.netrc.find(url.host_str()?, None);
                found.map(|(user, password)| basic(user, password))
            }
        }
    }

    async fn send_to(
        &self,
        request: &HttpRequest,
        url: &Url,
        login: Option<&HeaderValue>,
    ) -> Result<Response, RequestFailure> {
        let make = || request.make(url, login, &self.inner().observer);
        let answer = self.send_over(url, request.bulk, &make);
        let no_body = BodyProgress::default();
        let progress = match &request.body {
            Payload::Stream(_, progress) => progress,
            Payload::None => &no_body,
        };
        self.observe(&request.method, &shown(url), progress, answer)
            .await
    }

    /// Waits for `answer` as long as the body moves, and tells who watches what became of it. `url`
    /// is for people.
    pub(crate) async fn observe(
        &self,
        method: &Method,
        url: &str,
        progress: &BodyProgress,
        answer: impl Future<Output = Result<Response, RequestFailure>>,
    ) -> Result<Response, RequestFailure> {
        let inner = self.inner();
        let start = Instant::now();
        let answer = progress.watch(answer, inner.stall_timeout).await;
        let reason = answer.as_ref().err().map(RequestFailure::reason);
        inner.observer.answered(&AnsweredRequest {
            method: method.as_str(),
            url,
            outcome: match (&answer, &reason) {
                (Ok(response), _) => Ok(response.status().as_u16()),
                (Err(_), reason) => Err(reason.as_deref().unwrap_or_default()),
            },
            time: start.elapsed(),
            size: answer.as_ref().ok().and_then(|r| body::length(r.headers())),
            date: answer.as_ref().ok().and_then(|r| date(r.headers())),
            age: answer.as_ref().ok().and_then(|r| age(r.headers())),
        });
        answer
    }

    /// Over HTTP/2 if the server speaks it.
    async fn send_over(
        &self,
        url: &Url,
        bulk: bool,
        make: &(dyn Fn() -> reqwest::Request + Send + Sync),
    ) -> Result<Response, RequestFailure> {
        let inner = self.inner();
        loop {
            let gate = match inner.origins.of(url) {
                Origin::Http1 => return Ok(inner.http1.execute(make()).await?),
                Origin::Http2 => None,
                Origin::Unknown(gate) => Some(gate),
            };
            let mut held = match &gate {
                None => None,
                Some(gate) => match gate.try_lock() {
                    Ok(held) => Some(held),
                    // Somebody is finding out. One slow answer does not hold up all others.
                    Err(_) => match timeout(inner.connect_timeout, gate.lock()).await {
                        Ok(held) => match &*held {
                            Some(failure) => return Err(failure.clone()),
                            None => continue,
                        },
                        Err(_) => None,
                    },
                },
            };
            let client = if bulk && held.is_none() {
                &inner.http2_bulk
            } else {
                &inner.http2
            };
            match client.execute(make()).await {
                Ok(response) => {
                    if gate.is_some() {
                        inner.origins.set(url, Origin::Http2);
                    }
                    return Ok(response);
                }
                Err(error) if origin::is_not_http2(&error) => {
                    // Only the connection was refused, nothing was sent: the next round sends it
                    // over HTTP/1.1.
                    inner.origins.set(url, Origin::Http1);
                }
                Err(error) => {
                    let failure = RequestFailure::from(error);
                    if let Some(held) = &mut held {
                        **held = Some(failure.clone());
                    }
                    if matches!(failure, RequestFailure::Connect { .. }) || held.is_some() {
                        inner.origins.forget(url);
                    }
                    return Err(failure);
                }
            }
        }
    }
}

/// What time it is for the server, unless the answer may be one of any age.
fn date(headers: &HeaderMap) -> Option<SystemTime> {
    let passed = headers.contains_key(VIA) || headers.contains_key("x-cache");
    if age(headers).is_none() && (passed || headers.contains_key(AGE)) {
        return None;
    }
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// How long a shared cache held the answer.
fn age(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(AGE)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Where a redirect leads.
fn target(response: &Response, method: &Method, url: &Url) -> Result<Option<Url>, RequestFailure> {
    let follow = match response.status() {
        StatusCode::SEE_OTHER => matches!(*method, Method::GET | Method::HEAD),
        status => matches!(status.as_u16(), 301 | 302 | 307 | 308),
    };
    let Some(location) = response.headers().get(LOCATION).filter(|_| follow) else {
        return Ok(None);
    };
    let next = location
        .to_str()
        .ok()
        .and_then(|location| url.join(location).ok());
    match next {
        Some(next) if matches!(next.scheme(), "http" | "https") => Ok(Some(next)),
        _ => Err(RequestFailure::Nonsense(
            "it redirects to no http or https URL".to_owned(),
        )),
    }
}

fn no_answer(waited: Duration) -> RequestFailure {
    RequestFailure::timeout(format!("no answer for {waited:?}"))
}

/// Bytes of a body at once.
const PIECE: usize = 64 << 10;

/// As curl in Nix and most browsers allow, or fewer.
const MAX_REDIRECTS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_unknown_age_tells_no_time() {
        let now = "Mon, 30 Nov 2026 17:00:00 GMT";
        let told = |more: &[(&'static str, &'static str)]| {
            let pairs = [("date", now)].into_iter().chain(more.iter().copied());
            let headers = pairs.map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            });
            let headers: HeaderMap = headers.collect();
            (date(&headers).is_some(), age(&headers))
        };
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(told(&[]), (true, None));
        assert_eq!(told(&[("age", "3600"), ("via", "1.1 v")]), (true, hour));
        assert_eq!(told(&[("via", "1.1 v")]), (false, None));
        assert_eq!(told(&[("x-cache", "HIT")]), (false, None));
        assert_eq!(told(&[("age", "-1")]), (false, None));
    }
}
