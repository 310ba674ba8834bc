//! Bodies of answers.

use super::failure::Failure;
use crate::{compress::decoder, observer::NetworkObserver, sentence::sentence_of};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
};
use reqwest::Response;
use std::{io::Read, sync::Arc, time::Duration};
use tk_narinfo::Compression;
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
pub(super) struct Pace {
    stall: Duration,
    waited: Duration,
    received: u64,
    observer: Arc<dyn NetworkObserver>,
}

impl Pace {
    pub(super) fn new(stall: Duration, observer: Arc<dyn NetworkObserver>) -> Self {
        Pace {
            stall,
            waited: Duration::ZERO,
            received: 0,
            observer,
        }
    }

    /// The next chunk. Time that the caller takes does not count.
    pub(super) async fn chunk(
        &mut self,
        response: &mut Response,
    ) -> Result<Option<Bytes>, Failure> {
        let line = Duration::from_millis(self.received.saturating_mul(1000) / SLOWEST);
        let left = (self.stall.saturating_mul(2) + line).saturating_sub(self.waited);
        let start = Instant::now();
        let chunk = timeout(left.min(self.stall), response.chunk()).await;
        self.waited += start.elapsed();
        match chunk {
            Ok(chunk) => {
                let chunk = chunk?;
                let size = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                self.received += size;
                self.observer.received(size);
                Ok(chunk)
            }
            Err(_) => Err(Failure::timeout(format!(
                "too slow: {} bytes in {:.0?}",
                self.received, self.waited
            ))),
        }
    }
}

/// The whole body, without its encodings, if it is at most `limit` bytes.
pub(super) async fn read(
    mut response: Response,
    limit: usize,
    mut pace: Pace,
) -> Result<Bytes, Failure> {
    let encodings = encodings(response.headers())?;
    if length(response.headers()).is_some_and(|length| length > limit as u64) {
        return Err(larger(limit));
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = pace.chunk(&mut response).await? {
        if first.len() + all.len() + chunk.len() > limit {
            return Err(larger(limit));
        }
        // Nearly always there is but one.
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
    }
    let body = match all.is_empty() {
        true => first,
        false => all.freeze(),
    };
    match encodings.is_empty() {
        true => Ok(body),
        false => tokio::task::spawn_blocking(move || decode(body, encodings, limit))
            .await
            .map_err(|e| Failure::Local(e.to_string()))?,
    }
}

/// Reads what is left of an answer that is of no interest, so that its connection can be used
/// again. If that is much, or takes long, a new connection is cheaper.
pub(super) async fn drain(mut response: Response, mut pace: Pace) {
    if length(response.headers()).is_some_and(|length| length > MAX_DRAINED) {
        return;
    }
    while pace.received <= MAX_DRAINED {
        let Ok(Some(_)) = pace.chunk(&mut response).await else {
            return;
        };
    }
}

/// What the server says to people in the body of an error: a line of plain text.
pub(super) async fn words(mut response: Response, mut pace: Pace) -> String {
    let mut text = Vec::new();
    while text.len() < MAX_DRAINED as usize {
        match pace.chunk(&mut response).await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            _ => break,
        }
    }
    sentence_of(&String::from_utf8_lossy(&text))
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

/// The encodings to undo, the outermost last.
pub(super) fn encodings(headers: &HeaderMap) -> Result<Vec<Compression>, Failure> {
    let mut encodings = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        let value = value.to_str().unwrap_or("?").to_ascii_lowercase();
        for name in value.split(',').map(str::trim) {
            encodings.push(match name {
                "" | "identity" => continue,
                "x-gzip" => Compression::Gzip,
                // Nix sets its own names for what it packs itself.
                name => name
                    .parse()
                    .map_err(|_| Failure::Nonsense("its Content-Encoding is unknown".to_owned()))?,
            });
        }
    }
    match encodings.len() {
        0..=MAX_ENCODINGS => Ok(encodings),
        _ => Err(Failure::Nonsense(
            "too many layers of Content-Encoding".to_owned(),
        )),
    }
}

fn decode(mut body: Bytes, encodings: Vec<Compression>, limit: usize) -> Result<Bytes, Failure> {
    for encoding in encodings.into_iter().rev() {
        let broken = |e: &dyn std::fmt::Display| {
            Failure::Nonsense(format!("its Content-Encoding {encoding}: {e}"))
        };
        let input = decoder(encoding, &body[..]).map_err(|e| broken(&e))?;
        let mut plain = Vec::new();
        let read = input.take(limit as u64 + 1).read_to_end(&mut plain);
        read.map_err(|e| broken(&e))?;
        if plain.len() > limit {
            return Err(larger(limit));
        }
        body = plain.into();
    }
    Ok(body)
}

fn larger(limit: usize) -> Failure {
    Failure::Nonsense(format!("it is larger than {limit} bytes"))
}

/// Bytes each second that are always fast enough.
const SLOWEST: u64 = 1024;

/// Bytes that are read only to keep a connection.
const MAX_DRAINED: u64 = 16 << 10;

const MAX_ENCODINGS: usize = 3;
