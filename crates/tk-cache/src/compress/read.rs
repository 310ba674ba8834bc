#[cfg(any(feature = "bzip2", feature = "gzip"))]
use super::ahead::Members;
use crate::compress::{self, CompressError};
use std::io::{self, BufRead, BufReader, Read};
use tk_narinfo::Compression;

/// A decoder of `input`, whose end is the end of `input`.
///
/// # Errors
/// While reading: [`io::ErrorKind::UnexpectedEof`] when the input stops before its end mark
/// (`none` and `compress` have none); other kinds when it is broken, or when something follows xz,
/// zstd or lz4 that is no further frame. After an error nothing that is read has a meaning.
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
            Box::new(xz_decoder(compression, input)?)
        }
        #[cfg(feature = "gzip")]
        Compression::Gzip => Box::new(Members::<flate2::bufread::GzDecoder<_>>::new(GZIP, input)),
        #[cfg(feature = "bzip2")]
        Compression::Bzip2 => Box::new(Members::<bzip2::bufread::BzDecoder<_>>::new(BZIP2, input)),
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
            return Err(compress::levels(other)
                .err()
                .unwrap_or(CompressError::LeftOut(other)));
        }
    })
}

/// A decoder of a packed NAR. As libarchive, it unpacks one that was packed several times in the same
/// way as often as that.
///
/// # Errors
/// As [`decoder`]; the first bytes are read here.
pub(crate) fn nar_decoder<'a>(
    compression: Compression,
    input: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let open = |input: Box<dyn BufRead + Send + 'a>| {
        decoder(compression, input).map_err(|e| io::Error::new(io::ErrorKind::Unsupported, e))
    };
    let mut plain = open(Box::new(input))?;
    let magics = magics(compression);
    let longest = magics.iter().map(|magic| magic.len()).max().unwrap_or(0);
    for _ in 1..MAX_LAYERS {
        let mut head = Vec::new();
        plain.by_ref().take(longest as u64).read_to_end(&mut head)?;
        // No NAR begins so.
        let packed = magics.iter().any(|magic| head.starts_with(magic));
        let whole = io::Cursor::new(head).chain(plain);
        if !packed {
            return Ok(Box::new(whole));
        }
        plain = open(Box::new(BufReader::with_capacity(LAYER_BUFFER, whole)))?;
    }
    Ok(plain)
}

/// What something is packed with that begins with `head`, as its first bytes tell; `None` is "not at all". Of what
/// has no mark, `br`, that is not told.
pub fn compression_of(head: &[u8]) -> Compression {
    let begins = |of: &Compression| magics(*of).iter().any(|magic| head.starts_with(magic));
    let known = Compression::ALL.into_iter().find(begins);
    known.unwrap_or(Compression::None)
}

/// What something begins with that is packed in this way.
fn magics(compression: Compression) -> &'static [&'static [u8]] {
    match compression {
        Compression::Gzip => &[GZIP],
        Compression::Bzip2 => &[BZIP2],
        Compression::Xz => &[b"\xfd7zXZ\0"],
        Compression::Zstd => &[b"\x28\xb5\x2f\xfd"],
        Compression::Lz4 => &[b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"],
        Compression::Lzip => &[b"LZIP"],
        Compression::Lzma => &[b"\x5d\0\0"],
        Compression::Compress => &[b"\x1f\x9d"],
        _ => &[],
    }
}

/// A decoder of what HTTP calls "deflate": zlib's format, or what some servers take the word for,
/// the same without its header and sum.
#[cfg(feature = "http")]
pub(crate) fn deflate_decoder<'a>(input: impl BufRead + Send + 'a) -> Box<dyn Read + Send + 'a> {
    Box::new(DeflateReader {
        input: super::ahead::Ahead::new(input),
        inflater: None,
        ended: false,
    })
}

/// The readers of flate2 take input that stops early for complete.
#[cfg(feature = "http")]
struct DeflateReader<R> {
    input: super::ahead::Ahead<R>,
    inflater: Option<flate2::Decompress>,
    ended: bool,
}

#[cfg(feature = "http")]
impl<R: BufRead> Read for DeflateReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        use flate2::{Decompress, FlushDecompress, Status};
        if self.inflater.is_none() {
            let zlib = self.input.has_zlib_header()?;
            self.inflater = Some(Decompress::new(zlib));
        }
        while let Some(inflater) = &mut self.inflater
            && !self.ended
            && !out.is_empty()
        {
            let input = self.input.fill_buf()?;
            let starved = input.is_empty();
            let (before_in, before_out) = (inflater.total_in(), inflater.total_out());
            let status = inflater
                .decompress(input, out, FlushDecompress::None)
                .map_err(|_| compress::invalid("corrupt deflate stream"))?;
            let consumed = (inflater.total_in() - before_in) as usize;
            let produced = (inflater.total_out() - before_out) as usize;
            self.input.consume(consumed);
            self.ended = status == Status::StreamEnd;
            if produced > 0 {
                return Ok(produced);
            }
            if starved && !self.ended {
                return Err(compress::truncated());
            }
        }
        Ok(0)
    }
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
                return Err(compress::truncated());
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
fn xz_decoder<'a>(
    compression: Compression,
    input: impl BufRead + Send + 'a,
) -> Result<impl Read + Send + 'a, CompressError> {
    use liblzma::stream::{CONCATENATED, Stream};
    /// The window and a little around it, in bytes.
    const MEMORY: u64 = (1 << WINDOW_LOG) + (2 << 20);
    let stream = match compression {
        Compression::Lzma => Stream::new_lzma_decoder(MEMORY),
        Compression::Lzip => Stream::new_lzip_decoder(MEMORY, CONCATENATED),
        _ => Stream::new_stream_decoder(MEMORY, CONCATENATED),
    };
    let stream = stream.map_err(no_decoder)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(input, stream))
}

#[cfg(feature = "brotli")]
mod brotli {
    use super::*;
    use ::brotli::{BrotliDecompressStream, BrotliResult, BrotliState, enc::StandardAlloc};

    /// Stops at the end mark; the brotli crate's own reader does so with larger windows, too.
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
                    BrotliResult::ResultFailure => {
                        return Err(compress::invalid("corrupt brotli stream"));
                    }
                    BrotliResult::NeedsMoreInput if starved => return Err(compress::truncated()),
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
                }
                if produced > 0 {
                    return Ok(produced);
                }
            }
            Ok(0)
        }
    }
}

#[cfg(any(feature = "xz", feature = "zstd"))]
fn no_decoder(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CompressError {
    CompressError::Decoder(io::Error::other(error))
}

const GZIP: &[u8] = b"\x1f\x8b\x08";
const BZIP2: &[u8] = b"BZh";

/// How often a NAR may be packed.
const MAX_LAYERS: usize = 4;

const LAYER_BUFFER: usize = 64 << 10;

/// The largest window, as a power of two: what zstd takes by default, and twice what `xz -9` uses.
#[cfg(any(feature = "xz", feature = "zstd"))]
const WINDOW_LOG: u32 = 27;
