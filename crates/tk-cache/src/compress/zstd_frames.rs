//! zstd frames.

use super::{frames::Codec, zstd_frame};
use std::io;
use zstd::bulk::Compressor;

/// Makes frames; its tables are used again.
pub(super) struct Frames(Compressor<'static>);

impl Codec for Frames {
    const NAME: &'static str = "zstd";
    const ON_THE_SPOT: bool = true;

    fn frame(level: i32) -> usize {
        zstd_frame(level)
    }

    fn new(level: i32) -> io::Result<Self> {
        Compressor::new(level).map(Frames)
    }

    fn compress(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        output.clear();
        output.reserve(zstd::zstd_safe::compress_bound(input.len()));
        self.0.compress_to_buffer(input, output).map(drop)
    }
}
