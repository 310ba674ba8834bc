//! Reading large objects.

use super::{BREAKS, Inner, service::Bucket, stalled, words::Refusal};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange};
use std::{error::Error as StdError, sync::Arc, time::Duration};
use tk_store::{ByteStream, Error, Result};
use tokio::time::timeout;

/// The content of an object; after a break it goes on where it stood, if it is still the same
/// object.
pub(super) async fn open(inner: &Arc<Inner>, name: &str) -> Result<Option<ByteStream>> {
    if name.contains("://") {
        return Err(Error::Unsupported {
            store: inner.name.clone(),
            what: format!("reads nothing outside of its bucket: {name}"),
        });
    }
    let Some(object) = inner.get(name, GetOptions::default()).await? else {
        return Ok(None);
    };
    let reading = Reading {
        inner: inner.clone(),
        name: name.to_owned(),
        etag: object.meta.e_tag.clone(),
        size: object.meta.size,
        at: 0,
        breaks: 0,
        chunks: Some(object.into_stream()),
    };
    let stream = futures::stream::try_unfold(reading, async |mut reading| {
        Ok(reading.next().await?.map(|chunk| (chunk, reading)))
    });
    Ok(Some(stream.boxed()))
}

/// A transfer.
struct Reading {
    inner: Arc<Inner>,
    name: String,
    etag: Option<String>,
    size: u64,
    at: u64,
    /// Breaks since something came.
    breaks: usize,
    chunks: Option<BoxStream<'static, object_store::Result<Bytes>>>,
}

type Broken = Box<dyn StdError + Send + Sync>;

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.at < self.size {
            let mut chunks = match self.chunks.take() {
                Some(chunks) => chunks,
                None => self.resume().await?,
            };
            let stall = self.inner.transport.stall();
            let broken: Broken = match timeout(stall, chunks.next()).await {
                Ok(Some(Ok(chunk))) if chunk.is_empty() => {
                    self.chunks = Some(chunks);
                    continue;
                }
                Ok(Some(Ok(chunk))) => {
                    self.at += chunk.len() as u64;
                    self.breaks = 0;
                    self.chunks = Some(chunks);
                    if self.at > self.size {
                        return Err(self.malformed("it is longer than announced"));
                    }
                    return Ok(Some(chunk));
                }
                Ok(Some(Err(error))) => Box::new(error),
                Ok(None) => "the answer ended early".into(),
                Err(_) => stalled(),
            };
            self.breaks += 1;
            if self.breaks >= BREAKS {
                let bucket = self.inner.bucket().await?;
                return Err(bucket
                    .asked
                    .failed(&format!("reading {}", self.name), &*broken));
            }
            tokio::time::sleep(PAUSE * self.breaks as u32).await;
        }
        Ok(None)
    }

    async fn resume(&mut self) -> Result<BoxStream<'static, object_store::Result<Bytes>>> {
        let bucket: &Bucket = self.inner.bucket().await?;
        let key = self.inner.key(&self.name)?;
        let options = GetOptions {
            if_match: self.etag.clone(),
            range: Some(GetRange::Bounded(self.at..self.size)),
            ..GetOptions::default()
        };
        match bucket.store.get_opts(&key, options).await {
            Ok(object) if object.meta.size == self.size && object.meta.e_tag == self.etag => {
                Ok(object.into_stream())
            }
            Ok(_) => Err(self.changed()),
            Err(error) => match Refusal::of(&error) {
                Some(refusal) if refusal.status.as_u16() == 412 => Err(self.changed()),
                _ => Err(bucket
                    .asked
                    .failed(&format!("reading {}", self.name), &error)),
            },
        }
    }

    fn changed(&self) -> Error {
        self.malformed("it changed while it was read")
    }

    fn malformed(&self, words: &str) -> Error {
        Error::malformed(format!("{} in {}", self.name, self.inner.name), words)
    }
}

/// The wait after the first break.
const PAUSE: Duration = Duration::from_millis(100);
