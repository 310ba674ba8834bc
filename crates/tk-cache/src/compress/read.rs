use super::CompressError;
use std::io::{self, BufRead, Read};
use tk_narinfo::Compression;

/// A decoder of `input`, whose end is the end of `input`.
///
/// # Errors
/// While reading: [`io::ErrorKind::UnexpectedEof`] when the input stops before its end mark
/// (`none` and `compress` have none); other kinds when it is broken, or more follows than there
/// should. After an error nothing that is
/// read has a meaning.
pub fn decoder<'a>(
    compression: Compression,
    input: impl BufRead + Send + 'a,
) -> Result<Box<dyn Read + Send + 'a>, CompressError> {
    Ok(match compression {
        Compression::None => Box::new(input),
        #[cfg(feature = "zstd")]
        Compression::Zstd => Box::new(zstd_decoder(input)?),
        #[cfg(feature = "xz")]
        Compression::Xz | Compression::Lzma | Compression::Lzip => {
            Box::new(xz::XzReader::new(compression, input)?)
        }
        #[cfg(feature = "gzip")]
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        #[cfg(feature = "bzip2")]
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        #[cfg(feature = "brotli")]
        Compression::Br => Box::new(brotli::BrotliReader::new(input)),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => Box::new(super::lz4::Lz4Reader::new(input)),
        Compression::Compress => Box::new(super::lzw::LzwReader::new(input)),
        #[cfg(not(feature = "lz4"))]
        Compression::Lz4 => return Err(CompressError::LeftOut(compression)),
        #[cfg(not(feature = "xz"))]
        Compression::Lzma | Compression::Lzip => return Err(CompressError::LeftOut(compression)),
        other => {
            return Err(super::levels(other)
                .err()
                .unwrap_or(CompressError::LeftOut(other)));
        }
    })
}

#[cfg(feature = "zstd")]
fn zstd_decoder<'a>(
    input: impl BufRead + Send + 'a,
) -> Result<impl Read + Send + 'a, CompressError> {
    /// To the zstd crate no frame at all is as good as any number of them.
    struct NotEmpty<R> {
        input: R,
        seen: bool,
    }

    impl<R: BufRead> Read for NotEmpty<R> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.fill_buf()?.read(out)?;
            self.consume(n);
            Ok(n)
        }
    }

    impl<R: BufRead> BufRead for NotEmpty<R> {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() && !self.seen {
                return Err(truncated());
            }
            self.seen = true;
            Ok(bytes)
        }

        fn consume(&mut self, n: usize) {
            self.input.consume(n);
        }
    }

    let input = NotEmpty { input, seen: false };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(no_decoder)?;
    decoder.window_log_max(WINDOW_LOG).map_err(no_decoder)?;
    Ok(decoder)
}

#[cfg(feature = "xz")]
mod xz {
    use super::*;
    use liblzma::{
        bufread::XzDecoder,
        stream::{CONCATENATED, Stream},
    };

    /// liblzma's formats. [`XzDecoder`] alone would leave bytes behind the end mark of the older
    /// ones unread.
    pub(super) struct XzReader<R>(XzDecoder<R>);

    impl<R: BufRead> XzReader<R> {
        pub(super) fn new(compression: Compression, input: R) -> Result<Self, CompressError> {
            let stream = match compression {
                Compression::Lzma => Stream::new_lzma_decoder(MEMORY),
                Compression::Lzip => Stream::new_lzip_decoder(MEMORY, CONCATENATED),
                _ => Stream::new_stream_decoder(MEMORY, CONCATENATED),
            };
            let stream = stream.map_err(no_decoder)?;
            Ok(XzReader(XzDecoder::new_stream(input, stream)))
        }
    }

    impl<R: BufRead> Read for XzReader<R> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(out)?;
            if n == 0 && !out.is_empty() && !self.0.get_mut().fill_buf()?.is_empty() {
                return Err(trailing());
            }
            Ok(n)
        }
    }

    /// The window and a little around it, in bytes.
    const MEMORY: u64 = (1 << WINDOW_LOG) + (2 << 20);
}

#[cfg(feature = "brotli")]
mod brotli {
    use super::*;
    use ::brotli::{BrotliDecompressStream, BrotliResult, BrotliState, enc::StandardAlloc};

    /// The brotli crate's own reader takes no notice of bytes behind the end mark.
    pub(super) struct BrotliReader<R> {
        input: R,
        state: Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>,
        ended: bool,
    }

    impl<R: BufRead> BrotliReader<R> {
        pub(super) fn new(input: R) -> Self {
            let alloc = StandardAlloc::default;
            // Strict: windows of at most 16 MiB, as RFC 7932 has them.
            let state = Box::new(BrotliState::new_strict(alloc(), alloc(), alloc()));
            let ended = false;
            BrotliReader {
                input,
                state,
                ended,
            }
        }
    }

    impl<R: BufRead> Read for BrotliReader<R> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            while !out.is_empty() && !self.ended {
                let input = self.input.fill_buf()?;
                let (mut available_in, mut consumed) = (input.len(), 0);
                let (mut available_out, mut produced) = (out.len(), 0);
                let result = BrotliDecompressStream(
                    &mut available_in,
                    &mut consumed,
                    input,
                    &mut available_out,
                    &mut produced,
                    out,
                    &mut 0,
                    &mut self.state,
                );
                let starved = input.is_empty() && produced == 0;
                self.input.consume(consumed);
                match result {
                    BrotliResult::ResultSuccess => self.ended = true,
                    BrotliResult::ResultFailure => return Err(invalid("corrupt brotli stream")),
                    BrotliResult::NeedsMoreInput if starved => return Err(truncated()),
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
                }
                if produced > 0 {
                    return Ok(produced);
                }
            }
            if self.ended && !self.input.fill_buf()?.is_empty() {
                return Err(trailing());
            }
            Ok(0)
        }
    }
}

#[cfg(any(feature = "xz", feature = "zstd"))]
fn no_decoder(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CompressError {
    CompressError::Decoder(io::Error::other(error))
}

pub(super) fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the data stops before its end mark",
    )
}

#[allow(dead_code)] // used by some of the features
pub(super) fn trailing() -> io::Error {
    invalid("there are bytes behind the end mark")
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The largest window, as a power of two: what zstd takes by default, and twice what `xz -9` uses.
#[cfg(any(feature = "xz", feature = "zstd"))]
const WINDOW_LOG: u32 = 27;
