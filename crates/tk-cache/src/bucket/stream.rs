//! Reading large objects.

use super::{BucketInner, broke_off, encodings, refusal, service::Bucket};
use crate::http::{RequestFailure, RetryState, StallGuard};
use bytes::{Buf, Bytes};
use futures::{StreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange};
use std::{io, sync::Arc};
use tk_store::{ByteStream, Error, Result};

/// The content of an object; after a break it goes on where it stood, if it is still the same
/// object.
pub(super) async fn open(inner: &Arc<BucketInner>, name: &str) -> Result<Option<ByteStream>> {
    if name.contains("://") {
        return Err(Error::Unsupported {
            store: inner.name.clone(),
            what: format!("reads nothing outside of its bucket: {name}"),
        });
    }
    let Some(object) = inner.get(name, GetOptions::default()).await? else {
        return Ok(None);
    };
    let what = format!("{name} in {}", inner.name);
    let encodings = encodings(&object).map_err(|e| Error::malformed(&what, io::Error::from(e)))?;
    let reading = Reading {
        inner: inner.clone(),
        name: name.to_owned(),
        etag: object.meta.e_tag.clone(),
        size: object.meta.size,
        at: 0,
        skip: 0,
        counted: 0,
        gives_parts: true,
        pace: inner.transport.pace(),
        tries: inner.transport.tries(format!("{}/{name}", inner.name)),
        chunks: Some(object.into_stream()),
    };
    let stream = futures::stream::try_unfold(reading, async |mut reading| {
        Ok(reading.next().await?.map(|chunk| (chunk, reading)))
    });
    Ok(Some(encodings.decoded(stream.boxed(), what)))
}

/// The transfer of one object, which goes on after a break.
struct Reading {
    inner: Arc<BucketInner>,
    name: String,
    etag: Option<String>,
    size: u64,
    /// Bytes of the object that were handed on to the reader so far.
    at: u64,
    /// Bytes to come that were handed on before.
    skip: u64,
    /// Bytes handed on when it last broke.
    counted: u64,
    /// Whether the service may give the rest without the start.
    gives_parts: bool,
    pace: StallGuard,
    tries: RetryState,
    /// What is being received; `None`: it broke.
    chunks: Option<BoxStream<'static, object_store::Result<Bytes>>>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.at < self.size {
            let Some(chunks) = &mut self.chunks else {
                self.resume().await?;
                continue;
            };
            let chunk = async { chunks.next().await.transpose().map_err(broke_off) };
            let failure = match self.pace.wait(chunk).await {
                Ok(Some(chunk)) => match self.pass(chunk)? {
                    Some(chunk) => return Ok(Some(chunk)),
                    None => continue,
                },
                Ok(None) => RequestFailure::Broken {
                    kind: io::ErrorKind::UnexpectedEof,
                    words: format!("it ended after {} of {} bytes", self.at, self.size),
                },
                Err(failure) => failure,
            };
            self.broke(failure).await?;
        }
        Ok(None)
    }

    /// What is new in `chunk`.
    fn pass(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>> {
        let known = self.skip.min(chunk.len() as u64);
        self.skip -= known;
        chunk.advance(known as usize);
        self.at += chunk.len() as u64;
        if self.at > self.size {
            Err(self.malformed("it is longer than announced"))
        } else {
            Ok((!chunk.is_empty()).then_some(chunk))
        }
    }

    /// Waits before the next attempt, if it may be worth one.
    async fn broke(&mut self, failure: RequestFailure) -> Result<()> {
        self.chunks = None;
        // A service that gives a byte each time makes no progress.
        if self.at - self.counted >= PROGRESS {
            self.counted = self.at;
            self.tries.progressed();
        }
        let permit = self.tries.start().await;
        match self.tries.again(permit, failure).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.inner.not_read(&self.name, failure).await),
        }
    }

    /// Asks for the rest, or for all of it where the service gives no rest.
    async fn resume(&mut self) -> Result<()> {
        let bucket: &Bucket = self.inner.bucket().await?;
        let key = self.inner.key(&self.name)?;
        let parts = self.gives_parts && self.at > 0;
        let options = GetOptions {
            if_match: self.etag.clone(),
            range: parts.then_some(GetRange::Bounded(self.at..self.size)),
            ..GetOptions::default()
        };
        let error = match bucket.store.get_opts(&key, options).await {
            Ok(object) => {
                let (old, new) = (&self.etag, &object.meta.e_tag);
                let other = old.is_some() && new.is_some() && old != new;
                if other || object.meta.size != self.size {
                    return Err(self.changed());
                }
                self.skip = if parts { 0 } else { self.at };
                self.chunks = Some(object.into_stream());
                return Ok(());
            }
            Err(error) => error,
        };
        match refusal::Refusal::of(&error).map(|refusal| refusal.status.as_u16()) {
            Some(412) => return Err(self.changed()),
            Some(416) if parts => self.gives_parts = false,
            // It was answered, but not with a part: the library tells that in words only.
            None if parts && !refusal::is_io(&error) => self.gives_parts = false,
            _ => {
                let doing = format!("reading {}", self.name);
                return Err(bucket.asked.failed(&doing, &error));
            }
        }
        Ok(())
    }

    fn changed(&self) -> Error {
        self.malformed("it changed while it was read")
    }

    fn malformed(&self, words: &str) -> Error {
        Error::malformed(format!("{} in {}", self.name, self.inner.name), words)
    }
}

/// Bytes that make another round of attempts worthwhile.
const PROGRESS: u64 = 64 << 10;
