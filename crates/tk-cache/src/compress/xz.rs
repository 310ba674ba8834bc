//! xz: short streams that several threads make, or one for the whole NAR.
//!
//! liblzma's own threads would hold three buffers each, and be new ones for each NAR, for all of
//! which the system's allocator keeps the tens of MiB that an encoder frees.

use super::frames::Codec;
use liblzma::{
    stream::{Check, Filters, LzmaOptions, MtStreamBuilder, Stream},
    write::XzEncoder,
};
use std::io::{self, Write};

/// Levels above have dictionaries of 16 MiB and more; who asks for them asks for small files.
pub(super) const MOST_CUT_LEVEL: i32 = 6;

/// Makes streams of up to [`STREAM`] bytes.
pub(super) struct Streams {
    level: i32,
}

impl Codec for Streams {
    const NAME: &'static str = "xz";
    const ON_THE_SPOT: bool = false;

    fn frame(_level: i32) -> usize {
        STREAM
    }

    fn new(level: i32) -> io::Result<Self> {
        Ok(Streams { level })
    }

    fn compress(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        let dictionary = cut_dictionary(self.level);
        let dictionary = dictionary.min(fitting(input.len() as u64));
        output.clear();
        let stream = stream(self.level, dictionary)?;
        let mut encoder = XzEncoder::new_stream(std::mem::take(output), stream);
        encoder.write_all(input)?;
        *output = encoder.finish()?;
        Ok(())
    }
}

/// Says how streams are made.
pub(super) fn encoding(level: i32) -> String {
    let dictionary = cut_dictionary(level);
    format!("xz 1 level {level} dictionary {dictionary} stream {STREAM}")
}

/// A NAR as one stream.
pub(super) struct XzNar {
    level: i32,
    dictionary: u32, // bytes
}

impl XzNar {
    pub(super) fn new(level: i32, size: Option<u64>) -> Self {
        let dictionary = fitting(size.unwrap_or(u64::MAX));
        XzNar {
            level,
            dictionary: dictionary.min(DICTIONARIES[level as usize]),
        }
    }

    pub(super) fn encoding(&self) -> String {
        let XzNar { level, dictionary } = self;
        format!("xz 1 level {level} dictionary {dictionary}")
    }

    pub(super) fn stream(&self) -> io::Result<Stream> {
        stream(self.level, self.dictionary)
    }

    /// Bytes that the encoder will hold.
    pub(super) fn memory(&self) -> u64 {
        // liblzma tells only of parallel encoders, which have three buffers of one block.
        let block = u64::from(self.dictionary);
        let usage = filters(self.level, self.dictionary).map_or(0, |filters| {
            let mut builder = MtStreamBuilder::new();
            builder.threads(1).block_size(block).filters(filters);
            builder.memusage()
        });
        usage.saturating_sub(3 * block)
    }
}

fn stream(level: i32, dictionary: u32) -> io::Result<Stream> {
    let filters = filters(level, dictionary)?;
    Stream::new_stream_encoder(&filters, Check::Crc64).map_err(io::Error::other)
}

fn filters(level: i32, dictionary: u32) -> io::Result<Filters> {
    let mut options = LzmaOptions::new_preset(level as u32).map_err(io::Error::other)?;
    options.dict_size(dictionary);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    Ok(filters)
}

/// A dictionary larger than the input gains nothing, costs twelve times its size, and is slow: its
/// tables fill the processor's caches. Of few sizes, so that what one encoder frees fits the next.
fn fitting(size: u64) -> u32 {
    let size = size.clamp(u64::from(SMALLEST), 1 << 30) as u32;
    let power = size.next_power_of_two();
    if power / 4 * 3 >= size {
        power / 4 * 3
    } else {
        power
    }
}

fn cut_dictionary(level: i32) -> u32 {
    DICTIONARIES[level as usize].min(CUT_DICTIONARY)
}

/// Bytes of NAR in a stream.
const STREAM: usize = 4 << 20;

/// With it a thread holds 24 MiB; with the 8 MiB of level 6 it would be 94.
const CUT_DICTIONARY: u32 = 2 << 20;

/// Four thirds of the least that liblzma takes.
const SMALLEST: u32 = 16 << 10;

/// Of the presets 0 to 9, in bytes.
const DICTIONARIES: [u32; 10] = [
    1 << 18,
    1 << 20,
    2 << 20,
    4 << 20,
    4 << 20,
    8 << 20,
    8 << 20,
    16 << 20,
    32 << 20,
    64 << 20,
];
