//! Every compression that is written, at its usual level, there and back, beside the bare libraries.
#![allow(missing_docs)]

use std::hint::black_box;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tk_cache::compress::{Compressor, decoder};
use tk_instructions::inputs;
use tk_narinfo::Compression;
use tk_path::StoreDir;

/// Bytes that compress about as well as programs.
fn data() -> Vec<u8> {
    let dir = StoreDir::default();
    let texts = (0..).map(|n| inputs::narinfo(n).print(&dir).into_bytes());
    let mut data: Vec<_> = texts.take(SIZE / 2000).flatten().collect();
    data.resize(SIZE, 0);
    data
}

fn there(c: &mut Criterion) {
    let data = data();
    let mut group = c.benchmark_group("compress 4 MB");
    group.throughput(Throughput::Bytes(SIZE as u64));
    for (name, compression) in ALL {
        let compressor = compressor(compression);
        group.bench_function(name, |b| b.iter(|| pack(&compressor, &data).len()));
    }
    group.bench_function("zstd, library alone, one thread", |b| {
        b.iter(|| zstd::bulk::compress(black_box(&data), ZSTD_LEVEL).expect("memory takes all"));
    });
    group.finish();
}

fn back(c: &mut Criterion) {
    let data = data();
    let mut group = c.benchmark_group("decompress 4 MB");
    group.throughput(Throughput::Bytes(SIZE as u64));
    for (name, compression) in ALL {
        let packed = pack(&compressor(compression), &data);
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut out = decoder(compression, black_box(&packed[..])).expect("it is known");
                let mut unpacked = Vec::with_capacity(SIZE);
                out.read_to_end(&mut unpacked).expect("valid");
                assert_eq!(unpacked.len(), SIZE);
            });
        });
    }
    let packed = zstd::bulk::compress(&data, ZSTD_LEVEL).expect("memory takes all");
    group.bench_function("zstd, library alone", |b| {
        b.iter(|| zstd::bulk::decompress(black_box(&packed), SIZE).expect("valid"));
    });
    group.finish();
}

fn compressor(compression: Compression) -> Compressor {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Compressor::new(compression, None, threads).expect("it can be written")
}

fn pack(compressor: &Compressor, data: &[u8]) -> Vec<u8> {
    let encoder = compressor.encoder(Vec::new(), Some(data.len() as u64));
    let mut encoder = encoder.expect("it is known");
    encoder
        .write_all(black_box(data))
        .expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

const ALL: [(&str, Compression); 5] = [
    ("zstd", Compression::Zstd),
    ("xz", Compression::Xz),
    ("gzip", Compression::Gzip),
    ("bzip2", Compression::Bzip2),
    ("br", Compression::Br),
];
/// Bytes.
const SIZE: usize = 4_000_000;
const ZSTD_LEVEL: i32 = 3;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = there, back
}
criterion_main!(benches);
