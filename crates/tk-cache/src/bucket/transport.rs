//! Requests of the object store library over our own connections: tries, waits and limits.

use super::{listing::without_foreign, refusal::Refusal};
use crate::{
    http::{
        BodyProgress, Client, RequestFailure, RetryClass, RetryState, Retryable, StallGuard,
        pieces, shown,
    },
    limit::Limit,
    sentence::element,
};
use async_trait::async_trait;
use bytes::Bytes;
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
};
use tk_nar::fs::descriptors;

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
    lost_creations: Arc<AtomicU64>,
}

impl BucketTransport {
    pub(super) fn new(client: Client) -> Self {
        BucketTransport {
            client,
            limit: Limit::new(START, most()),
            lost_creations: Arc::default(),
        }
    }

    /// How many requests are worth having under way at once.
    pub(super) fn parallel(&self) -> usize {
        most()
    }

    /// How fast the body of an object has to come.
    pub(super) fn pace(&self) -> StallGuard {
        self.client.pace()
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
        let answer = async { Ok(self.client.raw().execute(ours).await?) };
        let (method, url) = (request.method(), url_of(request));
        let response = self.client.observe(method, &url, &progress, answer).await?;
        let sent = request.body().content_length() as u64;
        self.client.observer().sent(sent);
        let (parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
        if !parts.status.is_success() {
            let body = self.collect(body, MAX_WORDS).await.unwrap_or_default();
            let refusal = Refusal::new(parts.status, &parts.headers, &body);
            return Err(TransportFailure::Refused(refusal));
        }
        if is_object(request) {
            let broken = |error| TransportFailure::Http(RequestFailure::from(error)).into();
            let body = HttpResponseBody::new(body.map_err(broken));
            return Ok(HttpResponse::from_parts(parts, body));
        }
        let body = self.collect(body, MAX_ANSWER).await?;
        // S3 begins to answer before it knows how completing an upload ends.
        let has_error = || element(&String::from_utf8_lossy(&body), "Error").is_some();
        if method == Method::POST && has_error() {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let mut refusal = Refusal::new(status, &parts.headers, &body);
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
        Ok(HttpResponse::from_parts(parts, body.into()))
    }

    async fn collect(&self, body: reqwest::Body, limit: usize) -> Result<Bytes, RequestFailure> {
        let chunks = BodyDataStream::new(body).map_err(RequestFailure::from);
        self.pace().collect(chunks, limit).await
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
            let lost = matches!(
                failure,
                TransportFailure::Http(RequestFailure::Broken { .. })
            );
            if lost && begins_upload(&request) {
                self.lost_creations.fetch_add(1, Ordering::Relaxed);
            }
            if failure.retry_class() == RetryClass::Never {
                // It was answered as it should be.
                permit.succeeded();
                return Err(failure.into());
            }
            tries.again(permit, failure).await?;
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
    Http(RequestFailure),
}

impl Retryable for TransportFailure {
    fn retry_class(&self) -> RetryClass {
        match self {
            TransportFailure::Refused(refusal) => refusal.retry_class(),
            TransportFailure::Http(failure) => failure.retry_class(),
        }
    }

    fn reason(&self) -> String {
        match self {
            TransportFailure::Refused(refusal) => refusal.to_string(),
            TransportFailure::Http(failure) => failure.reason(),
        }
    }
}

impl From<RequestFailure> for TransportFailure {
    fn from(failure: RequestFailure) -> Self {
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

/// The request as our client takes it. Its body goes in pieces, so that `progress` shows whether the
/// service takes them.
fn ours(
    request: &HttpRequest,
    progress: &Arc<BodyProgress>,
) -> Result<reqwest::Request, TransportFailure> {
    let url = request.uri().to_string().parse();
    let url = url.map_err(|e: url::ParseError| RequestFailure::Local(e.to_string()))?;
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
