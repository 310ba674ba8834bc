//! Bodies of answers.

use super::{encoding::Encodings, failure::RequestFailure, retry::retry_after};
use crate::{observer::NetworkObserver, sentence::sentence_of};
use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt};
use http::{HeaderMap, header::CONTENT_LENGTH};
use reqwest::Response;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// What is offered to servers for metadata: what this was built with.
pub(super) const ACCEPT: Option<&str> = match (
    cfg!(feature = "zstd"),
    cfg!(feature = "brotli"),
    cfg!(feature = "gzip"),
) {
    (true, true, true) => Some("zstd, br, gzip"),
    (true, true, false) => Some("zstd, br"),
    (true, false, true) => Some("zstd, gzip"),
    (true, false, false) => Some("zstd"),
    (false, true, true) => Some("br, gzip"),
    (false, true, false) => Some("br"),
    (false, false, true) => Some("gzip"),
    (false, false, false) => None,
};

/// How slow a server may be: it may stop for the stall timeout, and all in all it may keep us
/// waiting for twice that and the time that the slowest of lines needs for what has come.
#[derive(Debug, Clone)]
pub(crate) struct StallGuard {
    stall: Duration,
    waited: Duration,
    received: u64,
    observer: Arc<dyn NetworkObserver>,
}

impl StallGuard {
    pub(crate) fn new(stall: Duration, observer: Arc<dyn NetworkObserver>) -> Self {
        StallGuard {
            stall,
            waited: Duration::ZERO,
            received: 0,
            observer,
        }
    }

    /// The next chunk of an answer.
    pub(super) async fn chunk(
        &mut self,
        response: &mut Response,
    ) -> Result<Option<Bytes>, RequestFailure> {
        let chunk = async { response.chunk().await.map_err(RequestFailure::from) };
        self.wait(chunk).await
    }

    /// The whole of `chunks`, if it is at most `limit` bytes.
    pub(crate) async fn collect(
        &mut self,
        chunks: impl Stream<Item = Result<Bytes, RequestFailure>>,
        limit: usize,
    ) -> Result<Bytes, RequestFailure> {
        let mut chunks = pin!(chunks);
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(chunk) = self.wait(chunks.try_next()).await? {
            if first.len() + all.len() + chunk.len() > limit {
                return Err(RequestFailure::larger(limit));
            }
            // Nearly always there is but one.
            if first.is_empty() && all.is_empty() {
                first = chunk;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&chunk);
            }
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }

    /// What comes next. Time that the caller takes between two does not count.
    pub(crate) async fn wait(
        &mut self,
        chunk: impl Future<Output = Result<Option<Bytes>, RequestFailure>>,
    ) -> Result<Option<Bytes>, RequestFailure> {
        let line = Duration::from_millis(self.received.saturating_mul(1000) / SLOWEST);
        let left = (self.stall.saturating_mul(2) + line).saturating_sub(self.waited);
        let start = Instant::now();
        let chunk = timeout(left.min(self.stall), chunk).await;
        self.waited += start.elapsed();
        match chunk {
            Ok(chunk) => {
                let chunk = chunk?;
                let size = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                self.received += size;
                self.observer.received(size);
                Ok(chunk)
            }
            Err(_) => Err(RequestFailure::timeout(format!(
                "too slow: {} bytes in {:.0?}",
                self.received, self.waited
            ))),
        }
    }
}

/// The whole body, without its encodings, if it is at most `limit` bytes.
pub(super) async fn read(
    response: Response,
    limit: usize,
    mut pace: StallGuard,
) -> Result<Bytes, RequestFailure> {
    let encodings = Encodings::of(response.headers())?;
    if length(response.headers()).is_some_and(|length| length > limit as u64) {
        return Err(RequestFailure::larger(limit));
    }
    let chunks = response.bytes_stream().map_err(RequestFailure::from);
    let body = pace.collect(chunks, limit).await?;
    encodings.decode(body, limit).await
}

/// Reads what is left of an answer that is of no interest, so that its connection can be used
/// again. If that is much, or takes long, a new connection is cheaper.
pub(super) async fn drain(mut response: Response, mut pace: StallGuard) {
    if length(response.headers()).is_some_and(|length| length > MAX_DRAINED) {
        return;
    }
    while pace.received <= MAX_DRAINED {
        let Ok(Some(_)) = pace.chunk(&mut response).await else {
            return;
        };
    }
}

/// Of an answer that is none of those expected: with what the server says to people in its body, as
/// a line of plain text.
pub(super) async fn refused(mut response: Response, mut pace: StallGuard) -> RequestFailure {
    let (status, wait) = (response.status(), retry_after(response.headers()));
    let mut text = Vec::new();
    while text.len() < MAX_DRAINED as usize {
        match pace.chunk(&mut response).await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            _ => break,
        }
    }
    RequestFailure::Status {
        status,
        wait,
        words: sentence_of(&String::from_utf8_lossy(&text)),
    }
}

/// `Content-Length`, if it is given.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Bytes each second that are always fast enough.
const SLOWEST: u64 = 1024;

/// Bytes that are read only to keep a connection.
const MAX_DRAINED: u64 = 16 << 10;
