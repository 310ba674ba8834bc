//! Compression of NARs: blocking encoders ([`Compressor`]) and decoders ([`decoder`]).
//!
//! What is written and what is read, by Nix's names:
//!
//! | Name | Written as | Levels (default) | Read |
//! |---|---|---|---|
//! | `none` | itself | | itself |
//! | `zstd` | frames of [`zstd_frame`] bytes of NAR, compressed on several threads | −7…22 (3) | any number of frames, skippable ones too |
//! | `xz` | up to level 6 streams of 4 MiB of NAR, compressed on several threads; above one stream | 0…9 (6) | any number of streams |
//! | `gzip` | one member | 0…9 (6) | any number of members, and anything behind them |
//! | `bzip2` | one stream | 1…9 (9) | any number of streams, and anything behind them |
//! | `br` | one stream, 4 MiB window | 0…11 (11) | one stream, and anything behind it |
//! | `lzma`, `lzip` | not at all | | one stream; any number of members; and anything behind them |
//! | `lz4` | not at all | | any number of frames, skippable ones and those of old (`lz4 -l`) too |
//! | `compress` | not at all | | one stream (`.Z`) |
//!
//! The defaults are those that Nix ends up with (libarchive's, and the Brotli library's). The other
//! names that a narinfo may carry (`grzip`, `lrzip`, `lzop`) are neither written nor read: Nix
//! needs further programs for them. Nix reads all that is written here: its libarchive takes
//! concatenated frames.
//!
//! Every format but `none` and `compress` has an end mark. Input that stops before it is an error.
//! `compress` can be cut off unseen anywhere behind its header, and frames of old of `lz4` between
//! two blocks: the caller has to compare sizes and hashes, as it must with `none`. What is passed
//! over behind the end is what Nix passes over, and stays unread.
//!
//! # Security
//! A decoder is pulled and holds no more than its window: at most 128 MiB where the input
//! asks for that much, 8 MiB with Nix's default levels. How much comes out of a small input is not
//! limited here; the caller stops at the size that the metadata promises.

#[cfg(any(feature = "bzip2", feature = "gzip"))]
mod ahead;
#[cfg(any(feature = "xz", feature = "zstd"))]
mod frames;
#[cfg(feature = "lz4")]
mod lz4;
mod lzw;
mod read;
#[cfg(feature = "xz")]
mod xz;
#[cfg(feature = "zstd")]
mod zstd_frames;

#[cfg(feature = "http")]
pub(crate) use read::deflate_decoder;
pub(crate) use read::nar_decoder;
pub use read::{compression_of, decoder};

use std::{fmt, io, io::Write, num::NonZeroUsize, ops::RangeInclusive};
use tk_narinfo::Compression;

/// Makes encoders of one kind. What is encoded at the same time shares its threads and buffers,
/// so that a store keeps one of these.
pub struct Compressor {
    compression: Compression,
    level: Option<i32>,
    #[allow(dead_code)] // used by some of the features
    threads: NonZeroUsize,
    #[cfg(feature = "xz")]
    xz: frames::Workers<xz::Streams>,
    #[cfg(feature = "zstd")]
    zstd: frames::Workers<zstd_frames::Frames>,
}

impl Compressor {
    /// A compressor that uses up to `threads` threads. `level` `None` (Nix's −1) is the default
    /// of the format; a level is ignored where there are none, as Nix does.
    pub fn new(
        compression: Compression,
        level: Option<i32>,
        threads: NonZeroUsize,
    ) -> Result<Self, CompressError> {
        let levels = levels(compression)?;
        if let Some(level) = level
            && !levels.contains(&level)
        {
            return Err(CompressError::Level {
                compression,
                level,
                levels,
            });
        }
        Ok(Compressor {
            compression,
            level: level.filter(|_| compression != Compression::None),
            threads,
            #[cfg(feature = "xz")]
            xz: frames::Workers::new(level.unwrap_or(XZ_LEVEL), threads),
            #[cfg(feature = "zstd")]
            zstd: frames::Workers::new(level.unwrap_or(ZSTD_LEVEL), threads),
        })
    }

    /// What the encoders make.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// About how many bytes of memory an encoder for `size` bytes of input holds on its own;
    /// `None`: size unknown. For callers that bound what runs at the same time.
    #[allow(unused_variables)] // without some of the features
    pub fn memory(&self, size: Option<u64>) -> u64 {
        match self.compression {
            #[cfg(feature = "xz")]
            Compression::Xz if !self.xz_streams() => xz::XzNar::new(self.xz_level(), size).memory(),
            // The buffers behind the window and its hash tables, at the top level.
            Compression::Br => 64 << 20,
            Compression::Bzip2 => 8 << 20,
            // Frames are bounded by the workers, whatever the number of encoders.
            _ => 1 << 20,
        }
    }

    /// How many bytes encoders may reasonably hold together.
    pub fn memory_of_all(&self) -> u64 {
        (MEMORY_OF_THREAD * self.threads.get() as u64).max(2 * MEMORY_OF_THREAD)
    }

    /// Says which bytes come out for an input of `size` bytes: encoders that say the same, of
    /// whatever process, make the same of the same input. Nothing where that is the input itself.
    #[allow(unused_variables)] // without some of the features
    pub fn encoding(&self, size: Option<u64>) -> String {
        let level = self.level;
        match self.compression {
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                let level = level.unwrap_or(ZSTD_LEVEL);
                let library = zstd::zstd_safe::version_number();
                format!("zstd {library} level {level} frame {}", zstd_frame(level))
            }
            #[cfg(feature = "xz")]
            Compression::Xz if self.xz_streams() => xz::encoding(self.xz_level()),
            #[cfg(feature = "xz")]
            Compression::Xz => xz::XzNar::new(self.xz_level(), size).encoding(),
            #[cfg(feature = "gzip")]
            Compression::Gzip => format!("gzip 1 level {}", level.unwrap_or(GZIP_LEVEL)),
            #[cfg(feature = "bzip2")]
            Compression::Bzip2 => format!("bzip2 1 level {}", level.unwrap_or(BZIP2_LEVEL)),
            #[cfg(feature = "brotli")]
            Compression::Br => format!("br 1 level {}", level.unwrap_or(BROTLI_LEVEL)),
            _ => String::new(),
        }
    }

    /// An encoder that writes to `out`. `size`, the number of bytes that will come if it is known,
    /// saves memory and is not otherwise relied on.
    #[allow(unused_variables)]
    pub fn encoder<W: Write>(&self, out: W, size: Option<u64>) -> io::Result<PackEncoder<'_, W>> {
        Ok(PackEncoder(match self.compression {
            #[cfg(feature = "zstd")]
            Compression::Zstd => EncoderInner::Zstd(self.zstd.encoder(out, size)),
            #[cfg(feature = "xz")]
            Compression::Xz if self.xz_streams() => {
                EncoderInner::XzStreams(self.xz.encoder(out, size))
            }
            #[cfg(feature = "xz")]
            Compression::Xz => {
                let stream = xz::XzNar::new(self.xz_level(), size).stream()?;
                EncoderInner::Xz(liblzma::write::XzEncoder::new_stream(out, stream))
            }
            #[cfg(feature = "gzip")]
            Compression::Gzip => {
                let level = self.level.unwrap_or(GZIP_LEVEL) as u32;
                let level = flate2::Compression::new(level);
                EncoderInner::Gzip(Box::new(flate2::write::GzEncoder::new(out, level)))
            }
            #[cfg(feature = "bzip2")]
            Compression::Bzip2 => {
                let level = self.level.unwrap_or(BZIP2_LEVEL) as u32;
                let level = bzip2::Compression::new(level);
                EncoderInner::Bzip2(bzip2::write::BzEncoder::new(out, level))
            }
            #[cfg(feature = "brotli")]
            Compression::Br => {
                let level = self.level.unwrap_or(BROTLI_LEVEL) as u32;
                let out = Remembering { out, failed: None };
                let encoder = brotli::CompressorWriter::new(out, BUFFER, level, BROTLI_WINDOW_LOG);
                EncoderInner::Brotli(Box::new(encoder))
            }
            // `new` let nothing else pass.
            _ => EncoderInner::None(out, std::marker::PhantomData),
        }))
    }

    #[cfg(feature = "xz")]
    fn xz_level(&self) -> i32 {
        self.level.unwrap_or(XZ_LEVEL)
    }

    /// Whether streams are cut, rather than one written.
    #[cfg(feature = "xz")]
    fn xz_streams(&self) -> bool {
        self.xz_level() <= xz::MOST_CUT_LEVEL
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor")
            .field("compression", &self.compression)
            .field("level", &self.level)
            .field("threads", &self.threads)
            .finish()
    }
}

/// A blocking encoder; made by [`Compressor::encoder`]. Without [`PackEncoder::finish`] what was
/// written is not complete.
pub struct PackEncoder<'a, W: Write>(EncoderInner<'a, W>);

impl<W: Write> PackEncoder<'_, W> {
    /// Writes what is still held back and the end mark, and gives the output back.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            EncoderInner::None(out, _) => Ok(out),
            #[cfg(feature = "zstd")]
            EncoderInner::Zstd(encoder) => encoder.finish(),
            #[cfg(feature = "xz")]
            EncoderInner::XzStreams(encoder) => encoder.finish(),
            #[cfg(feature = "xz")]
            EncoderInner::Xz(encoder) => encoder.finish(),
            #[cfg(feature = "gzip")]
            EncoderInner::Gzip(encoder) => encoder.finish(),
            #[cfg(feature = "bzip2")]
            EncoderInner::Bzip2(encoder) => encoder.finish(),
            #[cfg(feature = "brotli")]
            EncoderInner::Brotli(encoder) => encoder.into_inner().into_inner(),
        }
    }
}

impl<W: Write> Write for PackEncoder<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            EncoderInner::None(out, _) => out.write(bytes),
            #[cfg(feature = "zstd")]
            EncoderInner::Zstd(encoder) => encoder.write(bytes),
            #[cfg(feature = "xz")]
            EncoderInner::XzStreams(encoder) => encoder.write(bytes),
            #[cfg(feature = "xz")]
            EncoderInner::Xz(encoder) => encoder.write(bytes),
            #[cfg(feature = "gzip")]
            EncoderInner::Gzip(encoder) => encoder.write(bytes),
            #[cfg(feature = "bzip2")]
            EncoderInner::Bzip2(encoder) => encoder.write(bytes),
            #[cfg(feature = "brotli")]
            EncoderInner::Brotli(encoder) => encoder.write(bytes),
        }
    }

    /// Does nothing: to cut a format's blocks short would only make the output larger.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> fmt::Debug for PackEncoder<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encoder")
    }
}

/// Why something cannot be compressed or decompressed at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// A compression that is only read, or neither read nor written.
    #[error("compression {0} is not supported; use none, zstd, xz, bzip2, gzip or br")]
    Unsupported(Compression),
    /// The feature of the crate that would do it was left out.
    #[error("compression {0} was left out when this program was built")]
    LeftOut(Compression),
    /// The library behind a format could not be set up.
    #[error("setting up decompression")]
    Decoder(#[source] io::Error),
    /// There is no such level.
    #[error(
        "{compression} has no compression level {level}; choose {} to {}",
        levels.start(),
        levels.end()
    )]
    Level {
        /// The compression that was asked for.
        compression: Compression,
        /// The level asked for.
        level: i32,
        /// The lowest and the highest level that the compression has.
        levels: RangeInclusive<i32>,
    },
}

/// How many bytes of NAR go into one zstd frame.
///
/// Frames cost 2 % of size beside one that is never cut (at level 3 on the Rust toolchain);
/// the levels with larger windows get larger frames.
pub const fn zstd_frame(level: i32) -> usize {
    if level <= 9 { 2 << 20 } else { 8 << 20 }
}

enum EncoderInner<'a, W: Write> {
    None(W, std::marker::PhantomData<&'a ()>),
    #[cfg(feature = "zstd")]
    Zstd(frames::FrameEncoder<'a, zstd_frames::Frames, W>),
    #[cfg(feature = "xz")]
    XzStreams(frames::FrameEncoder<'a, xz::Streams, W>),
    #[cfg(feature = "xz")]
    Xz(liblzma::write::XzEncoder<W>),
    #[cfg(feature = "gzip")]
    Gzip(Box<flate2::write::GzEncoder<W>>),
    #[cfg(feature = "bzip2")]
    Bzip2(bzip2::write::BzEncoder<W>),
    #[cfg(feature = "brotli")]
    Brotli(Box<brotli::CompressorWriter<Remembering<W>>>),
}

/// The levels of a compression that can be written.
fn levels(compression: Compression) -> Result<RangeInclusive<i32>, CompressError> {
    let (built, levels) = match compression {
        Compression::None => (true, i32::MIN..=i32::MAX),
        Compression::Zstd => (cfg!(feature = "zstd"), -7..=22),
        Compression::Xz => (cfg!(feature = "xz"), 0..=9),
        Compression::Gzip => (cfg!(feature = "gzip"), 0..=9),
        Compression::Bzip2 => (cfg!(feature = "bzip2"), 1..=9),
        Compression::Br => (cfg!(feature = "brotli"), 0..=11),
        other => return Err(CompressError::Unsupported(other)),
    };
    if built {
        Ok(levels)
    } else {
        Err(CompressError::LeftOut(compression))
    }
}

/// Keeps the first error of the output, because the brotli crate drops what its last write gives.
#[cfg(feature = "brotli")]
struct Remembering<W> {
    out: W,
    failed: Option<io::Error>,
}

#[cfg(feature = "brotli")]
impl<W> Remembering<W> {
    fn into_inner(self) -> io::Result<W> {
        match self.failed {
            None => Ok(self.out),
            Some(error) => Err(error),
        }
    }
}

#[cfg(feature = "brotli")]
impl<W: Write> Write for Remembering<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.out.write(bytes);
        result.map_err(|error| {
            let told = io::Error::new(error.kind(), error.to_string());
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed.get_or_insert(error);
            }
            told
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the data stops before its end mark",
    )
}

#[cfg(feature = "lz4")]
fn trailing() -> io::Error {
    invalid("there are bytes behind the end mark")
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// With two threads, the least that is reckoned with, there is room within 128 MiB for the rest of
/// the process.
const MEMORY_OF_THREAD: u64 = 56 << 20;

#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 3;
#[cfg(feature = "xz")]
const XZ_LEVEL: i32 = 6;
#[cfg(feature = "gzip")]
const GZIP_LEVEL: i32 = 6;
#[cfg(feature = "bzip2")]
const BZIP2_LEVEL: i32 = 9;
#[cfg(feature = "brotli")]
const BROTLI_LEVEL: i32 = 11;
#[cfg(feature = "brotli")]
const BROTLI_WINDOW_LOG: u32 = 22;
#[cfg(feature = "brotli")]
const BUFFER: usize = 64 << 10;

#[cfg(all(
    test,
    feature = "brotli",
    feature = "bzip2",
    feature = "gzip",
    feature = "xz",
    feature = "zstd",
))]
mod tests;
