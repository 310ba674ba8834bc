//! The NAR codec in memory: what it costs when the disk costs nothing.
#![allow(missing_docs)]

use std::hint::black_box;
use std::io::Cursor;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tk_instructions::inputs;
use tk_nar::{Event, NarReader, SliceReader, Validator};

fn nar(c: &mut Criterion) {
    let archive = inputs::nar(FOLDERS);
    let mut group = c.benchmark_group("nar of 10,000 files");
    group.throughput(Throughput::Bytes(archive.len() as u64));

    group.bench_function("encode", |b| {
        b.iter(|| inputs::nar(black_box(FOLDERS)).len())
    });
    group.bench_function("decode a slice", |b| {
        b.iter(|| {
            let (mut events, mut files) = (SliceReader::new(black_box(&archive)), 0);
            while let Some(event) = events.next_event().expect("valid") {
                files += u32::from(matches!(event, Event::Regular { .. }));
            }
            files
        });
    });
    group.bench_function("decode a Read", |b| {
        b.iter(|| {
            let (mut events, mut files) = (NarReader::new(Cursor::new(black_box(&archive))), 0);
            while let Some(event) = events.next_event().expect("valid") {
                files += u32::from(matches!(event, Event::Regular { .. }));
            }
            files
        });
    });
    group.bench_function("validate", |b| {
        b.iter(|| {
            let mut validator = Validator::new();
            validator.feed(black_box(&archive)).expect("valid");
            validator.finish().expect("whole")
        });
    });
    group.bench_function("decode a slice, nix-archive", |b| {
        b.iter(|| {
            let mut files = 0;
            nix_archive::nar::decode_events(black_box(&archive), |event| {
                files += u32::from(matches!(event, nix_archive::nar::Event::Regular { .. }));
                Ok(())
            })
            .expect("valid");
            files
        });
    });
    group.bench_function("decode a Read, nix-nar", |b| {
        b.iter(|| {
            let decoder = nix_nar::Decoder::new(Cursor::new(black_box(&archive))).expect("valid");
            let entries = decoder.entries().expect("the first time");
            entries
                .filter(|entry| entry.as_ref().expect("valid").content.is_file())
                .count()
        });
    });
    group.finish();
}

/// Of 50 files each: the headers weigh as in a tree of sources.
const FOLDERS: usize = 200;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = nar
}
criterion_main!(benches);
