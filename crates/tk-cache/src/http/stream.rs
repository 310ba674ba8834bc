//! Large objects on their way here.
//!
//! A transfer that breaks is taken up where it stood, if it is sure that the object is still the
//! same: by its strong `ETag`, its `Last-Modified`, or where there is neither, its size. A server
//! that gives no parts of objects sends it again from the start, and what was handed on is skipped;
//! that it is the same is seen by the hash of the whole.

mod range;

use super::{
    HttpInner,
    body::{self, StallGuard},
    encoding::Encodings,
    failure::RequestFailure,
    login::shown,
    retry::RetryState,
    send::HttpRequest,
};
use bytes::{Buf, Bytes};
use futures::StreamExt;
use http::{
    Method, StatusCode,
    header::{CONTENT_RANGE, IF_RANGE, RANGE},
};
use range::{FirstAnswer, RangeAnswer};
use reqwest::Response;
use std::{io, sync::Arc};
use tk_store::{ByteStream, Error, Result};
use url::Url;

/// The object at `url`, which is relative to the cache or not.
pub(super) async fn open(cache: &Arc<HttpInner>, url: &str) -> Result<Option<ByteStream>> {
    let mut request = HttpRequest::new(Method::GET, resolve(cache, url)?);
    request.bulk = true;
    let attempt = || start(cache, &request);
    let result = cache.client.retry(&request.url, attempt).await;
    let failed = |failure| cache.failed("reading", &request.url, failure);
    let Some(response) = result.map_err(failed)? else {
        return Ok(None);
    };
    let transfer = Transfer {
        whole: FirstAnswer::of(response.headers()),
        encodings: Encodings::of(response.headers()).map_err(failed)?,
        response: Some(response),
        pace: cache.client.pace(),
        tries: cache.client.tries(&request.url),
        cache: cache.clone(),
        request,
        given: 0,
        skip: 0,
        counted: 0,
        gives_parts: true,
    };
    let what = format!("the answer for {}", shown(&transfer.request.url));
    let encodings = transfer.encodings.clone();
    let chunks = futures::stream::try_unfold(transfer, |mut transfer| async move {
        match transfer.next().await {
            Ok(chunk) => Ok(chunk.map(|chunk| (chunk, transfer))),
            Err(failure) => Err(transfer.failed(failure)),
        }
    });
    // Some pack what they were not asked to pack.
    Ok(Some(encodings.decoded(chunks.boxed(), what)))
}

/// One object on its way.
struct Transfer {
    cache: Arc<HttpInner>,
    request: HttpRequest,
    /// What is being received; `None`: it broke.
    response: Option<Response>,
    whole: FirstAnswer,
    /// How it is packed for the way; all that is counted here are bytes of that.
    encodings: Encodings,
    pace: StallGuard,
    tries: RetryState,
    /// Bytes of the object, as it is sent, that were handed on so far.
    given: u64,
    /// Bytes to come that were handed on before.
    skip: u64,
    /// Bytes handed on when it last broke.
    counted: u64,
    /// Whether the server may give the rest without the start.
    gives_parts: bool,
}

impl Transfer {
    async fn next(&mut self) -> Result<Option<Bytes>, RequestFailure> {
        loop {
            let Some(response) = &mut self.response else {
                if self.resume().await? {
                    continue;
                }
                return Ok(None);
            };
            let failure = match self.pace.chunk(response).await {
                Ok(Some(chunk)) => match self.pass(chunk)? {
                    Some(chunk) => return Ok(Some(chunk)),
                    None => continue,
                },
                Ok(None) if self.whole.size.is_none_or(|size| size == self.given) => {
                    return match self.skip {
                        0 => Ok(None),
                        _ => Err(range::changed()),
                    };
                }
                Ok(None) => self.too_short(),
                Err(failure) => failure,
            };
            self.broke(failure).await?;
        }
    }

    /// What is new in `chunk`.
    fn pass(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, RequestFailure> {
        let known = self.skip.min(chunk.len() as u64);
        self.skip -= known;
        chunk.advance(known as usize);
        self.given += chunk.len() as u64;
        match self.whole.size {
            Some(size) if size < self.given => Err(RequestFailure::Nonsense(format!(
                "more came than the {size} bytes that were announced"
            ))),
            _ => Ok((!chunk.is_empty()).then_some(chunk)),
        }
    }

    fn too_short(&self) -> RequestFailure {
        let size = self.whole.size.unwrap_or_default();
        RequestFailure::Broken {
            kind: io::ErrorKind::UnexpectedEof,
            words: format!("it ended after {} of {size} bytes", self.given),
        }
    }

    /// Waits before the next attempt, if it may be worth one.
    async fn broke(&mut self, failure: RequestFailure) -> Result<(), RequestFailure> {
        self.response = None;
        // What is packed anew for each answer need not be the same twice.
        if !self.encodings.is_empty() && !self.whole.has_strong_tag() {
            return Err(failure);
        }
        // A server that gives a byte each time makes no progress.
        if self.given - self.counted >= PROGRESS {
            self.counted = self.given;
            self.tries.progressed();
        }
        let permit = self.tries.start().await;
        self.tries.again(permit, failure).await
    }

    /// Asks for the rest; false if there is none.
    async fn resume(&mut self) -> Result<bool, RequestFailure> {
        let headers = &mut self.request.headers;
        headers.clear();
        if self.given > 0 && self.gives_parts && self.whole.can_be_told() {
            headers.insert(RANGE, range::header(self.given));
            headers.extend(self.whole.validator().map(|v| (IF_RANGE, v)));
        }
        let permit = self.tries.start().await;
        match self.part().await {
            Ok(part) => {
                permit.succeeded();
                match part {
                    RangeAnswer::End => return Ok(false),
                    RangeAnswer::Rest => self.skip = 0,
                    RangeAnswer::Again => self.skip = self.given,
                    RangeAnswer::Refused => self.gives_parts = false,
                }
                Ok(true)
            }
            Err(failure) => self.tries.again(permit, failure).await.map(|()| true),
        }
    }

    async fn part(&mut self) -> Result<RangeAnswer, RequestFailure> {
        let response = self.cache.client.send(&self.request).await?;
        let (status, headers) = (response.status(), response.headers());
        let asked = self.request.headers.contains_key(RANGE);
        let whole = !asked || !headers.contains_key(CONTENT_RANGE);
        let part = match status {
            StatusCode::OK if self.given == 0 => {
                self.whole = FirstAnswer::of(headers);
                RangeAnswer::Rest
            }
            StatusCode::OK if whole => self.whole.again(headers)?,
            // Some say 200 and send a part all the same.
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if asked => {
                self.whole.rest(headers, self.given)?
            }
            StatusCode::RANGE_NOT_SATISFIABLE if self.whole.ends(headers, self.given) => {
                return Ok(RangeAnswer::End);
            }
            StatusCode::RANGE_NOT_SATISFIABLE if asked => return Ok(RangeAnswer::Refused),
            _ => return Err(body::refused(response, self.cache.client.pace()).await),
        };
        if Encodings::of(headers)? != self.encodings {
            return Err(RequestFailure::Nonsense(
                "the rest of it has another Content-Encoding than the start".to_owned(),
            ));
        }
        self.response = Some(response);
        Ok(part)
    }

    fn failed(&self, failure: RequestFailure) -> Error {
        self.cache.failed("reading", &self.request.url, failure)
    }
}

async fn start(
    cache: &HttpInner,
    request: &HttpRequest,
) -> Result<Option<Response>, RequestFailure> {
    let response = cache.client.send(request).await?;
    match response.status() {
        StatusCode::OK => Ok(Some(response)),
        _ => cache.absent(response, &request.url).await.map(|()| None),
    }
}

/// As browsers do, relative to the folder that the cache is.
fn resolve(cache: &HttpInner, url: &str) -> Result<Url> {
    let what = || {
        format!(
            "the URL {:?} in {}",
            Url::parse(url).map_or(url.to_owned(), |u| shown(&u)),
            cache.name
        )
    };
    let joined = cache.base.join(url);
    let joined = joined.map_err(|e| Error::malformed(what(), e))?;
    match joined.scheme() {
        "http" | "https" => Ok(joined),
        _ => Err(Error::malformed(what(), "it is none of http or https")),
    }
}

/// Bytes that make another round of attempts worthwhile.
const PROGRESS: u64 = 64 << 10;
