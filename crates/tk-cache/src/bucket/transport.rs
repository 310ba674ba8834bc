//! Requests of the object store library over our own connections: tries, waits and limits.

use super::{
    listing::without_foreign,
    words::{Refusal, sources},
};
use crate::{
    http::{Client, Retry, shown},
    limit::{Limit, Permit},
    observer::{AnsweredRequest, RetriedRequest},
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
        HttpResponse, HttpResponseBody, HttpService,
    },
};
use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    time::{Duration, Instant},
};
use tk_nar::fs::descriptors;
use tokio::time::timeout;

/// Sends requests, and sends them again if that may help.
///
/// Every answer that is not a success comes out as an error with a [`Refusal`] in it. Only the
/// bodies of objects are passed on as they arrive; all others are read here, within bounds.
///
/// A clone shares the connections and the limit.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    client: Client,
    limit: Limit,
    stall: Duration,
}

impl Transport {
    pub(super) fn new(client: Client, stall: Duration) -> Self {
        let limit = Limit::new(START, most());
        Transport {
            client,
            limit,
            stall,
        }
    }

    /// How many requests are worth having under way at once.
    pub(super) fn parallel(&self) -> usize {
        most()
    }

    /// How long a server may send nothing.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    async fn attempt(&self, request: &HttpRequest) -> Result<HttpResponse, Failure> {
        let length = request.body().content_length() as u64;
        let time = self.stall + Duration::from_millis(length.saturating_mul(1000) / SLOWEST);
        let start = Instant::now();
        let answer = match timeout(time, self.client.raw().execute(ours(request)?)).await {
            Ok(answer) => answer.map_err(Failure::from),
            Err(_) => Err(Failure::Stalled("no answer in time")),
        };
        self.tell(request, &answer, start.elapsed());
        let response = answer?;
        let (status, headers) = (response.status(), response.headers().clone());
        if !status.is_success() {
            let body = self.collect(response, MAX_WORDS).await.unwrap_or_default();
            return Err(Failure::Refused(Refusal::new(status, &headers, &body)));
        }
        if is_object(request) {
            let response: http::Response<reqwest::Body> = response.into();
            let observer = self.client.observer().clone();
            return Ok(response.map(|body| {
                let body = body.map_frame(move |frame| {
                    observer.received(frame.data_ref().map_or(0, |data| data.len() as u64));
                    frame
                });
                HttpResponseBody::new(body.map_err(broken))
            }));
        }
        let (parts, ()) = http::Response::new(()).into_parts();
        let body = self.collect(response, MAX_ANSWER).await?;
        // S3 begins to answer before it knows how completing an upload ends.
        if request.method() == Method::POST && contains(&body, b"<Error>") {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let mut refusal = Refusal::new(status, &headers, &body);
            if !matches!(
                refusal.code.as_str(),
                "InternalError" | "SlowDown" | "ServiceUnavailable"
            ) {
                refusal.status = StatusCode::BAD_REQUEST;
            }
            return Err(Failure::Refused(refusal));
        }
        let body = match is_listing(request) {
            true => without_foreign(body),
            false => body,
        };
        let mut answer = HttpResponse::from_parts(parts, HttpResponseBody::from(body));
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    /// Tells who watches how a request was answered.
    fn tell(
        &self,
        request: &HttpRequest,
        answer: &Result<reqwest::Response, Failure>,
        time: Duration,
    ) {
        let observer = self.client.observer();
        let failed = answer.as_ref().err().map(Failure::to_string);
        observer.answered(&AnsweredRequest {
            method: request.method().as_str(),
            url: &url_of(request),
            outcome: match answer {
                Ok(response) => Ok(response.status().as_u16()),
                Err(_) => Err(failed.as_deref().unwrap_or_default()),
            },
            time,
            size: answer
                .as_ref()
                .ok()
                .and_then(reqwest::Response::content_length),
        });
        if answer.is_ok() {
            observer.sent(request.body().content_length() as u64);
        }
    }

    async fn collect(
        &self,
        mut response: reqwest::Response,
        limit: usize,
    ) -> Result<Bytes, Failure> {
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > limit {
                    return Err(Failure::TooLong);
                }
                self.client.observer().received(chunk.len() as u64);
                body.extend_from_slice(&chunk);
            }
            Ok(body.freeze())
        };
        match timeout(self.stall, read).await {
            Ok(body) => body,
            Err(_) => Err(Failure::Stalled("the answer stopped in the middle")),
        }
    }

    /// Waits before the next attempt, the `made`-th having failed; false if there is none.
    async fn again(
        &self,
        request: &HttpRequest,
        made: u32,
        failure: &Failure,
        permit: Permit,
    ) -> bool {
        let Retry {
            attempts,
            delay,
            delay_rate_limited,
            max_delay,
        } = self.client.retry_config();
        let mut wait = backoff(*delay, made, *max_delay);
        match failure {
            Failure::Refused(refusal) if refusal.is_slow_down() => {
                // S3 does not say how long, and means less than HTTP servers usually do.
                let unsaid = backoff((*delay_rate_limited).min(SLOW_DOWN), made, *max_delay);
                let asked = refusal.wait.map_or(unsaid, |wait| wait.min(*max_delay));
                permit.slow_down(asked);
                wait += asked;
            }
            _ => drop(permit),
        }
        if made >= *attempts {
            return false;
        }
        self.client.observer().retrying(&RetriedRequest {
            url: &url_of(request),
            reason: &failure.to_string(),
            wait,
            attempt: made,
            attempts: *attempts,
        });
        tokio::time::sleep(wait).await;
        true
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut made = 0;
        loop {
            made += 1;
            let permit = self.limit.acquire().await;
            let failure = match self.attempt(&request).await {
                Ok(response) => {
                    permit.succeeded();
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            if !failure.may_pass() {
                // It was answered as it should be.
                permit.succeeded();
                return Err(failure.into());
            }
            if !self.again(&request, made, &failure, permit).await {
                return Err(failure.into());
            }
        }
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// What became of one attempt.
#[derive(Debug)]
enum Failure {
    Refused(Refusal),
    Connection(reqwest::Error),
    Stalled(&'static str),
    TooLong,
    Url(url::ParseError),
}

impl Failure {
    fn may_pass(&self) -> bool {
        match self {
            Failure::Refused(refusal) => refusal.may_pass(),
            Failure::Connection(error) => !error.is_builder() && !is_tls(error),
            Failure::Stalled(_) => true,
            Failure::TooLong | Failure::Url(_) => false,
        }
    }
}

/// In a few words.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::Connection(error) => match sources(error).last() {
                Some(cause) => write!(f, "{cause}"),
                None => write!(f, "{error}"),
            },
            Failure::Stalled(words) => f.write_str(words),
            Failure::TooLong => f.write_str("the answer is too long"),
            Failure::Url(error) => error.fmt(f),
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Failure::Connection(error.without_url())
    }
}

impl From<Failure> for HttpError {
    fn from(failure: Failure) -> Self {
        let unknown = HttpErrorKind::Unknown;
        match failure {
            Failure::Refused(refusal) => HttpError::new(unknown, refusal),
            Failure::Connection(error) => broken(error),
            Failure::Stalled(what) => {
                HttpError::new(unknown, io::Error::new(io::ErrorKind::TimedOut, what))
            }
            Failure::TooLong => {
                HttpError::new(unknown, io::Error::other(Failure::TooLong.to_string()))
            }
            Failure::Url(error) => HttpError::new(unknown, error),
        }
    }
}

/// What was asked for, for people: without what may be a signature.
fn url_of(request: &HttpRequest) -> String {
    let url = request.uri().to_string();
    url.parse()
        .map_or_else(|_| String::new(), |url| shown(&url))
}

fn broken(error: reqwest::Error) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, error.without_url())
}

fn ours(request: &HttpRequest) -> Result<reqwest::Request, Failure> {
    let url = request.uri().to_string().parse().map_err(Failure::Url)?;
    let mut ours = reqwest::Request::new(request.method().clone(), url);
    *ours.headers_mut() = request.headers().clone();
    let body: HttpRequestBody = request.body().clone();
    if body.content_length() > 0 {
        *ours.body_mut() = Some(reqwest::Body::wrap(body));
    }
    Ok(ours)
}

/// Whether the answer is an object, of any size.
fn is_object(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    match *request.method() {
        Method::HEAD => true,
        Method::GET => query.is_empty() || query.starts_with("versionId="),
        _ => false,
    }
}

fn is_listing(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let mut settings = query.split('&');
    request.method() == Method::GET && settings.any(|s| s == "list-type=2" || s == "comp=list")
}

fn contains(body: &[u8], what: &[u8]) -> bool {
    body.windows(what.len()).any(|window| window == what)
}

/// Doubles with each attempt, and is between half of that and all of it, so that those who failed
/// together do not come back together.
fn backoff(first: Duration, made: u32, most: Duration) -> Duration {
    let chance = RandomState::new().build_hasher().finish() as u32;
    let part = 0.5 + f64::from(chance) / f64::from(u32::MAX) / 2.0;
    let doubled = first.saturating_mul(1 << (made - 1).min(16));
    doubled.min(most).mul_f64(part)
}

/// A certificate that is not trusted will not be in a second, either.
fn is_tls(error: &reqwest::Error) -> bool {
    let mut inner = sources(error).filter_map(|e| e.downcast_ref::<io::Error>()?.get_ref());
    inner.any(|error| error.is::<rustls::Error>())
}

/// Requests at once, to begin with and at most. Each takes a connection.
const START: usize = 32;
const MOST: usize = 64;

/// Fewer where few files may be open.
fn most() -> usize {
    (descriptors() / 8).clamp(1, MOST)
}

/// The first wait after a "slow down" that does not say how long.
const SLOW_DOWN: Duration = Duration::from_secs(1);

/// Bytes per second of the slowest line that an upload is expected to get through.
const SLOWEST: u64 = 32 << 10;

/// Bytes of an answer that is no object: a listing of 1,000 names.
const MAX_ANSWER: usize = 8 << 20;

/// Bytes of what a service says to an error.
const MAX_WORDS: usize = 64 << 10;
