//! Decompression of anything ends, whole or in pieces with the same result. The first byte chooses the compression.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{BufRead, ErrorKind, Read};
use tk_cache::compress::decoder;
use tk_fuzz::Pieces;
use tk_narinfo::Compression;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let compression = Compression::ALL[usize::from(choice) % Compression::ALL.len()];
    let whole = decompress(compression, data);
    let pieces = decompress(compression, Pieces::of(data));
    if whole != Outcome::More && pieces != Outcome::More {
        assert_eq!(whole, pieces, "{compression}");
    }
    if compression == Compression::None && data.len() <= MOST {
        assert_eq!(whole, Outcome::All(data.to_vec()));
    }
});

#[derive(Debug, PartialEq)]
enum Outcome {
    All(Vec<u8>),
    /// Stopped by us, as every caller has to.
    More,
    CutOff,
    Refused,
}

fn decompress<'a>(compression: Compression, input: impl BufRead + Send + 'a) -> Outcome {
    let Ok(decoder) = decoder(compression, input) else {
        return Outcome::Refused;
    };
    let mut out = Vec::new();
    match decoder.take(MOST as u64 + 1).read_to_end(&mut out) {
        Ok(_) if out.len() > MOST => Outcome::More,
        Ok(_) => Outcome::All(out),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Outcome::CutOff,
        Err(_) => Outcome::Refused,
    }
}

const MOST: usize = 1 << 20; // bytes
