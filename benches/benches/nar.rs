//! The NAR codec in memory: what it costs when the disk costs nothing.

use std::hint::black_box;
use std::io::Cursor;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tk_nar::{Encoder, Event, Reader, SliceReader, Validator};

/// 200 folders with 50 files of 0 to 3 kB: the headers weigh as in a tree of sources.
fn encode(contents: &[u8]) -> Vec<u8> {
    let mut out = Encoder::new(Vec::new());
    let mut tree = || {
        out.directory()?;
        for folder in 0..200 {
            out.entry(format!("folder-{folder:03}").as_bytes())?;
            out.directory()?;
            for file in 0..50 {
                out.entry(format!("file-{file:02}").as_bytes())?;
                out.file(
                    file % 7 == 0,
                    &contents[..(folder * 50 + file) * 31 % contents.len()],
                )?;
            }
            out.leave()?;
        }
        out.leave()
    };
    tree().expect("the tree is valid");
    out.finish().expect("the tree is whole")
}

fn nar(c: &mut Criterion) {
    let contents = vec![b'x'; 3000];
    let archive = encode(&contents);
    let mut group = c.benchmark_group("nar of 10,000 files");
    group.throughput(Throughput::Bytes(archive.len() as u64));

    group.bench_function("encode", |b| b.iter(|| encode(black_box(&contents)).len()));
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
            let (mut events, mut files) = (Reader::new(Cursor::new(black_box(&archive))), 0);
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
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = nar
}
criterion_main!(benches);
