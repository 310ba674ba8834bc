//! Large objects on their way here.
//!
//! A transfer that breaks is taken up where it stood, if it is sure that the object is still the
//! same: by its strong `ETag`, its `Last-Modified`, or where there is neither, its size.

mod range;

use super::{
    Inner,
    body::{self, Pace},
    failure::Failure,
    send::Request,
    tries::Tries,
};
use crate::compress::decoder;
use bytes::{Buf, Bytes};
use futures::StreamExt;
use http::{
    Method, StatusCode,
    header::{IF_RANGE, RANGE},
};
use range::{Part, Whole};
use reqwest::Response;
use std::{
    io::{self, BufReader, Read},
    sync::Arc,
};
use tk_narinfo::Compression;
use tk_store::{ByteStream, Error, Result, nar};
use url::Url;

/// The object at `url`, which is relative to the cache or not.
pub(super) async fn open(cache: &Arc<Inner>, url: &str) -> Result<Option<ByteStream>> {
    let mut request = Request::new(Method::GET, resolve(cache, url)?);
    request.bulk = true;
    let attempt = || start(cache, &request);
    let result = cache.client.retry(&request.url, attempt).await;
    let failed = |failure| cache.failed("reading", &request.url, failure);
    let Some(response) = result.map_err(failed)? else {
        return Ok(None);
    };
    let encodings = body::encodings(response.headers()).map_err(failed)?;
    let transfer = Transfer {
        whole: Whole::of(response.headers()),
        resumable: encodings.is_empty(),
        response: Some(response),
        pace: cache.client.pace(),
        tries: cache.client.tries(&request.url),
        cache: cache.clone(),
        request,
        given: 0,
        skip: 0,
        counted: 0,
        broke: None,
    };
    let what = transfer.request.url.clone();
    let chunks = futures::stream::try_unfold(transfer, |mut transfer| async move {
        match transfer.next().await {
            Ok(chunk) => Ok(chunk.map(|chunk| (chunk, transfer))),
            Err(failure) => Err(transfer.failed(failure)),
        }
    });
    Ok(Some(match encodings.is_empty() {
        true => chunks.boxed(),
        false => decoded(chunks.boxed(), encodings, what),
    }))
}

/// One object on its way.
struct Transfer {
    cache: Arc<Inner>,
    request: Request,
    /// What is being received; `None`: it broke.
    response: Option<Response>,
    whole: Whole,
    resumable: bool,
    pace: Pace,
    tries: Tries,
    /// Bytes handed on.
    given: u64,
    /// Bytes to come that were handed on before.
    skip: u64,
    /// Bytes handed on when it last broke.
    counted: u64,
    /// Why it last broke.
    broke: Option<Failure>,
}

impl Transfer {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
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
                    return Ok(None);
                }
                Ok(None) => self.too_short(),
                Err(failure) => failure,
            };
            self.broke(failure).await?;
        }
    }

    /// What is new in `chunk`.
    fn pass(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, Failure> {
        let known = self.skip.min(chunk.len() as u64);
        self.skip -= known;
        chunk.advance(known as usize);
        self.given += chunk.len() as u64;
        match self.whole.size {
            Some(size) if size < self.given => Err(Failure::Nonsense(format!(
                "more came than the {size} bytes that were announced"
            ))),
            _ => Ok((!chunk.is_empty()).then_some(chunk)),
        }
    }

    fn too_short(&self) -> Failure {
        let size = self.whole.size.unwrap_or_default();
        Failure::Broken {
            kind: io::ErrorKind::UnexpectedEof,
            words: format!("it ended after {} of {size} bytes", self.given),
        }
    }

    /// Waits before the next attempt, if it may be worth one.
    async fn broke(&mut self, failure: Failure) -> Result<(), Failure> {
        self.response = None;
        if !self.resumable || !self.whole.can_be_told() {
            return Err(failure);
        }
        // A server that gives a byte each time makes no progress.
        if self.given - self.counted >= PROGRESS {
            self.counted = self.given;
            self.tries.progressed();
        }
        self.broke = Some(failure.clone());
        let permit = self.tries.start().await;
        self.tries.again(permit, failure).await
    }

    /// Asks for the rest; false if there is none.
    async fn resume(&mut self) -> Result<bool, Failure> {
        let headers = &mut self.request.headers;
        headers.clear();
        if self.given > 0 {
            headers.insert(RANGE, range::header(self.given));
            headers.extend(self.whole.validator().map(|v| (IF_RANGE, v)));
        }
        let permit = self.tries.start().await;
        match self.part().await {
            Ok(Part::Unsure) => Err(self.broke.take().unwrap_or_else(|| self.too_short())),
            Ok(part) => {
                permit.succeeded();
                self.skip = match part {
                    Part::End => return Ok(false),
                    Part::Rest | Part::Unsure => 0,
                    Part::Again => self.given,
                };
                Ok(true)
            }
            Err(failure) => self.tries.again(permit, failure).await.map(|()| true),
        }
    }

    async fn part(&mut self) -> Result<Part, Failure> {
        let response = self.cache.client.send(&self.request).await?;
        let (status, headers) = (response.status(), response.headers());
        let part = match status {
            StatusCode::OK if self.given == 0 => {
                self.whole = Whole::of(headers);
                Part::Rest
            }
            StatusCode::OK => self.whole.again(headers)?,
            StatusCode::PARTIAL_CONTENT => self.whole.rest(headers, self.given)?,
            StatusCode::RANGE_NOT_SATISFIABLE if self.whole.ends(headers, self.given) => Part::End,
            _ => return Err(Failure::of(response, self.cache.client.pace()).await),
        };
        if !body::encodings(headers)?.is_empty() {
            return Err(Failure::Nonsense(
                "the rest of it has a Content-Encoding that the start had not".to_owned(),
            ));
        }
        self.response = Some(response);
        Ok(part)
    }

    fn failed(&self, failure: Failure) -> Error {
        self.cache.failed("reading", &self.request.url, failure)
    }
}

async fn start(cache: &Inner, request: &Request) -> Result<Option<Response>, Failure> {
    let response = cache.client.send(request).await?;
    match response.status() {
        StatusCode::OK => Ok(Some(response)),
        status if cache.absent(status) => {
            body::drain(response, cache.client.pace()).await;
            Ok(None)
        }
        _ => Err(Failure::of(response, cache.client.pace()).await),
    }
}

/// As browsers do, relative to the folder that the cache is.
fn resolve(cache: &Inner, url: &str) -> Result<Url> {
    let what = || {
        format!(
            "the URL {:?} in {}",
            Url::parse(url).map_or(url.to_owned(), |u| super::send::shown(&u)),
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

/// Undoes the encodings that a server put on what it was not asked to pack.
fn decoded(body: ByteStream, encodings: Vec<Compression>, url: Url) -> ByteStream {
    let source = nar::BlockingNar::new(body);
    nar::produce(move |send| {
        let what = format!("the answer for {}", super::send::shown(&url));
        let source = Arc::new(std::sync::Mutex::new(source));
        unpack(Shared(source.clone()), encodings, send).map_err(|error| {
            let failed = source
                .lock()
                .ok()
                .and_then(|mut source| source.take_error());
            failed.unwrap_or_else(|| Error::malformed(what, error))
        })
    })
}

fn unpack(
    source: impl Read + Send + 'static,
    encodings: Vec<Compression>,
    send: &mut dyn FnMut(Bytes) -> bool,
) -> io::Result<()> {
    let mut plain: Box<dyn Read + Send> = Box::new(source);
    for encoding in encodings.into_iter().rev() {
        plain =
            decoder(encoding, BufReader::with_capacity(CHUNK, plain)).map_err(io::Error::other)?;
    }
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        plain.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() || !send(chunk.into()) {
            return Ok(());
        }
    }
}

/// Kept by two, so that the reason is at hand when the decoder has only words for it.
struct Shared(Arc<std::sync::Mutex<nar::BlockingNar>>);

impl Read for Shared {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut source = self.0.lock().map_err(|e| io::Error::other(e.to_string()))?;
        source.read(out)
    }
}

/// Bytes that make another round of attempts worthwhile.
const PROGRESS: u64 = 64 << 10;

/// Bytes that are unpacked at once.
const CHUNK: usize = 64 << 10;
