//! Requests of the object store library over our own connections: tries, waits and limits.

use super::{listing::without_foreign, refusal::Refusal};
use crate::{
    http::{
        BodyProgress, Client, RequestFailure as HttpFailure, RetryClass, RetryState, StallGuard,
        pieces, shown,
    },
    limit::Limit,
    observer::AnsweredRequest,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, StatusCode, header::CONTENT_LENGTH};
use http_body_util::{BodyDataStream, BodyExt};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
pub(super) struct BucketTransport {
    client: Client,
    limit: Limit,
    stall: Duration,
    lost_creations: Arc<AtomicU64>,
}

impl BucketTransport {
    pub(super) fn new(client: Client, stall: Duration) -> Self {
        BucketTransport {
            client,
            limit: Limit::new(START, most()),
            stall,
            lost_creations: Arc::default(),
        }
    }

    /// How many requests are worth having under way at once.
    pub(super) fn parallel(&self) -> usize {
        most()
    }

    /// How fast the body of an object has to come. Who watches is told of it elsewhere.
    pub(super) fn pace(&self) -> StallGuard {
        StallGuard::new(self.stall, Arc::new(()))
    }

    /// The attempts of one request, or of one transfer, of `url`.
    pub(super) fn tries(&self, url: String) -> RetryState {
        let observed = (url, self.client.observer().clone());
        RetryState::new(
            self.client.retry_config().clone(),
            self.limit.clone(),
            observed,
        )
    }

    /// How many uploads in parts the service was asked to begin without an answer that could be
    /// read: it may have begun them, under ids that nobody knows.
    pub(super) fn lost_creations(&self) -> u64 {
        self.lost_creations.load(Ordering::Relaxed)
    }

    async fn attempt(&self, request: &HttpRequest) -> Result<HttpResponse, TransportFailure> {
        let progress = Arc::new(BodyProgress::default());
        let ours = ours(request, &progress)?;
        let start = Instant::now();
        let answer = async { Ok::<_, HttpFailure>(self.client.raw().execute(ours).await?) };
        let answer = progress.watch(answer, self.stall).await;
        self.tell(request, &answer, start.elapsed());
        let response = answer?;
        let (status, headers) = (response.status(), response.headers().clone());
        if !status.is_success() {
            let body = self.collect(response, MAX_WORDS).await.unwrap_or_default();
            return Err(TransportFailure::Refused(Refusal::new(
                status, &headers, &body,
            )));
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
                // The made-up status 500 would have it tried again, which does not help here.
                refusal.status = StatusCode::BAD_REQUEST;
            }
            return Err(TransportFailure::Refused(refusal));
        }
        let body = if is_listing(request) {
            without_foreign(body)
        } else {
            body
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
        answer: &Result<reqwest::Response, HttpFailure>,
        time: Duration,
    ) {
        let observer = self.client.observer();
        let failed = answer.as_ref().err().map(HttpFailure::reason);
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
    ) -> Result<Bytes, TransportFailure> {
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(HttpFailure::from)? {
                if body.len() + chunk.len() > limit {
                    return Err(HttpFailure::larger(limit).into());
                }
                self.client.observer().received(chunk.len() as u64);
                body.extend_from_slice(&chunk);
            }
            Ok(body.freeze())
        };
        match timeout(self.stall, read).await {
            Ok(body) => body,
            Err(_) => Err(HttpFailure::timeout("the answer stopped in the middle").into()),
        }
    }
}

#[async_trait]
impl HttpService for BucketTransport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut tries = self.tries(url_of(&request));
        loop {
            let permit = tries.start().await;
            let failure = match self.attempt(&request).await {
                Ok(response) => {
                    permit.succeeded();
                    return Ok(response);
                }
                Err(failure) => failure,
            };
            let lost = matches!(failure, TransportFailure::Http(HttpFailure::Broken { .. }));
            if lost && begins_upload(&request) {
                self.lost_creations.fetch_add(1, Ordering::Relaxed);
            }
            let again = failure.again();
            if again == RetryClass::Never {
                // It was answered as it should be.
                permit.succeeded();
                return Err(failure.into());
            }
            if !tries.another(permit, again, &failure.reason()).await {
                return Err(failure.into());
            }
        }
    }
}

impl HttpConnector for BucketTransport {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// What became of one attempt.
#[derive(Debug)]
enum TransportFailure {
    Refused(Refusal),
    Http(HttpFailure),
}

impl TransportFailure {
    /// What went wrong, in a few words.
    fn reason(&self) -> String {
        match self {
            TransportFailure::Refused(refusal) => refusal.to_string(),
            TransportFailure::Http(failure) => failure.reason(),
        }
    }

    fn again(&self) -> RetryClass {
        match self {
            TransportFailure::Refused(refusal) if refusal.is_slow_down() => {
                RetryClass::SlowDown(refusal.wait)
            }
            TransportFailure::Refused(refusal) if refusal.may_pass() => RetryClass::Later,
            TransportFailure::Refused(_) => RetryClass::Never,
            TransportFailure::Http(failure) => failure.again(),
        }
    }
}

impl From<HttpFailure> for TransportFailure {
    fn from(failure: HttpFailure) -> Self {
        TransportFailure::Http(failure)
    }
}

impl From<TransportFailure> for HttpError {
    fn from(failure: TransportFailure) -> Self {
        let unknown = HttpErrorKind::Unknown;
        match failure {
            TransportFailure::Refused(refusal) => HttpError::new(unknown, refusal),
            TransportFailure::Http(failure) => HttpError::new(unknown, io::Error::from(failure)),
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
    TransportFailure::Http(HttpFailure::from(error)).into()
}

/// The request as our client takes it. Its body goes in pieces, so that `progress` shows whether the
/// service takes them.
fn ours(
    request: &HttpRequest,
    progress: &Arc<BodyProgress>,
) -> Result<reqwest::Request, TransportFailure> {
    let url = request.uri().to_string().parse();
    let url = url.map_err(|e: url::ParseError| HttpFailure::Local(e.to_string()))?;
    let mut ours = reqwest::Request::new(request.method().clone(), url);
    *ours.headers_mut() = request.headers().clone();
    let length = request.body().content_length();
    if length > 0 {
        ours.headers_mut().insert(CONTENT_LENGTH, length.into());
        let seen = progress.clone();
        let body = BodyDataStream::new(request.body().clone());
        let of_chunk =
            move |bytes| stream::iter(pieces(bytes, seen.clone()).map(Ok::<_, HttpError>));
        let body = body.map_ok(of_chunk);
        *ours.body_mut() = Some(reqwest::Body::wrap_stream(body.try_flatten().boxed()));
    }
    Ok(ours)
}

/// Whether it asks to begin an upload in parts.
fn begins_upload(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let mut settings = query.split('&');
    request.method() == Method::POST && settings.any(|s| s == "uploads" || s == "uploads=")
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

/// Requests at once, to begin with and at most. Each takes a connection.
const START: usize = 32;
const MOST: usize = 64;

/// Fewer where few files may be open.
fn most() -> usize {
    (descriptors() / 8).clamp(1, MOST)
}

/// Bytes of an answer that is no object: a listing of 1,000 names.
const MAX_ANSWER: usize = 8 << 20;

/// Bytes of what a service says to an error.
const MAX_WORDS: usize = 64 << 10;
