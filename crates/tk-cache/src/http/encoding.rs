//! `Content-Encoding`: how a server, or whoever put an object there, packed it for the way.
//!
//! What is undone is what Nix undoes, in any case of letters: `gzip`, `x-gzip`, `deflate` (zlib's
//! format, and the bare one that some servers mean), `br`, `zstd`, `identity`, `none`, and Nix's
//! own names for what it packs itself. `aws-chunked`, which S3 takes off and yet repeats, is none.

use super::failure::RequestFailure;
use crate::compress::{decoder, deflate_decoder};
use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_ENCODING};
use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
    sync::{Arc, Mutex},
};
use tk_narinfo::Compression;
use tk_store::{ByteStream, Error, nar};

/// The encodings to undo, the outermost last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Encodings(Vec<ContentEncoding>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentEncoding {
    Named(Compression),
    Deflate,
}

impl Encodings {
    /// Those that an answer names.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, RequestFailure> {
        let values = headers.get_all(CONTENT_ENCODING).iter();
        Encodings::parse(values.map(|value| value.to_str().unwrap_or("?")))
    }

    /// Those of the header's values.
    pub(crate) fn parse<'a>(
        values: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RequestFailure> {
        let mut encodings = Vec::new();
        for name in values.into_iter().flat_map(|value| value.split(',')) {
            encodings.push(match name.trim().to_ascii_lowercase().as_str() {
                "" | "identity" | "none" | "aws-chunked" => continue,
                "x-gzip" => ContentEncoding::Named(Compression::Gzip),
                "deflate" => ContentEncoding::Deflate,
                name => ContentEncoding::Named(name.parse().map_err(|_| {
                    RequestFailure::Nonsense("its Content-Encoding is unknown".to_owned())
                })?),
            });
        }
        match encodings.len() {
            0..=MAX_ENCODINGS => Ok(Encodings(encodings)),
            _ => Err(RequestFailure::Nonsense(
                "too many layers of Content-Encoding".to_owned(),
            )),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A body that is at hand, of at most `limit` bytes.
    pub(crate) async fn decode(self, body: Bytes, limit: usize) -> Result<Bytes, RequestFailure> {
        if self.is_empty() {
            return Ok(body);
        }
        let work = move || {
            let broken = |e| RequestFailure::Nonsense(format!("its Content-Encoding {self}: {e}"));
            let mut plain = Vec::new();
            let decoder = self.decoder(io::Cursor::new(body)).map_err(broken)?;
            let read = decoder.take(limit as u64 + 1).read_to_end(&mut plain);
            read.map_err(broken)?;
            if plain.len() > limit {
                Err(RequestFailure::larger(limit))
            } else {
                Ok(plain.into())
            }
        };
        let decoded = tokio::task::spawn_blocking(work).await;
        decoded.map_err(|e| RequestFailure::Local(e.to_string()))?
    }

    /// A body of any length; `what` it is, for errors.
    pub(crate) fn decoded(self, body: ByteStream, what: String) -> ByteStream {
        if self.is_empty() {
            return body;
        }
        let source = nar::BlockingNar::new(body);
        nar::produce(move |send| {
            let source = Arc::new(Mutex::new(source));
            self.pump(SharedReason(source.clone()), send)
                .map_err(|error| {
                    let failed = source
                        .lock()
                        .ok()
                        .and_then(|mut source| source.take_error());
                    failed.unwrap_or_else(|| Error::malformed(what, error))
                })
        })
    }

    fn pump(
        &self,
        source: impl Read + Send + 'static,
        send: &mut dyn FnMut(Bytes) -> bool,
    ) -> io::Result<()> {
        let mut plain = self.decoder(BufReader::with_capacity(CHUNK, source))?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            plain.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
            if chunk.is_empty() || !send(chunk.into()) {
                return Ok(());
            }
        }
    }

    fn decoder(&self, input: impl BufRead + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        let mut input: Box<dyn BufRead + Send> = Box::new(input);
        for encoding in self.0.iter().rev() {
            let plain = match encoding {
                ContentEncoding::Named(compression) => {
                    decoder(*compression, input).map_err(io::Error::other)?
                }
                ContentEncoding::Deflate => deflate_decoder(input),
            };
            input = Box::new(BufReader::with_capacity(CHUNK, plain));
        }
        Ok(Box::new(input))
    }
}

impl fmt::Display for Encodings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, encoding) in self.0.iter().enumerate() {
            let separator = if nth == 0 { "" } else { ", " };
            match encoding {
                ContentEncoding::Named(compression) => write!(f, "{separator}{compression}")?,
                ContentEncoding::Deflate => write!(f, "{separator}deflate")?,
            }
        }
        Ok(())
    }
}

/// Kept by two, so that the reason is at hand when the decoder has only words for it.
struct SharedReason(Arc<Mutex<nar::BlockingNar>>);

impl Read for SharedReason {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut source = self.0.lock().map_err(|e| io::Error::other(e.to_string()))?;
        source.read(out)
    }
}

const MAX_ENCODINGS: usize = 3;

/// Bytes that are unpacked at once.
const CHUNK: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        use Compression::{Br, Gzip, Xz, Zstd};
        use ContentEncoding::{Deflate, Named};
        for (text, expected) in [
            ("", &[][..]),
            ("identity", &[]),
            ("None, AWS-chunked", &[]),
            ("GZip", &[Named(Gzip)]),
            ("X-GZIP", &[Named(Gzip)]),
            ("deflate , br,zstd", &[Deflate, Named(Br), Named(Zstd)]),
            ("xz", &[Named(Xz)]),
        ] {
            assert_eq!(Encodings::parse([text]).unwrap().0, expected, "{text}");
        }
        assert_eq!(
            Encodings::parse(["gzip", "br"]).unwrap().to_string(),
            "gzip, br"
        );
        for text in ["pack200", "?", "gzip,gzip,gzip,gzip"] {
            assert!(Encodings::parse([text]).is_err(), "{text}");
        }
    }
}
