//! nix32, store paths, SHA-256 and the scan for references.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix_archive::nar::ReferencePattern;
use tk_path::scan::RefScanner;
use tk_path::{Algorithm, HashPart, Hasher, StoreDir, StorePath, nix32};

fn small(c: &mut Criterion) {
    let digest: [u8; 32] = std::array::from_fn(|i| (i * 37) as u8);
    let text = nix32::encode(&digest);
    let (mut digits, mut bytes) = ([0; 52], [0; 32]);
    let mut group = c.benchmark_group("small");
    group.bench_function("nix32 encode 32 bytes", |b| {
        b.iter(|| nix32::encode_into(black_box(&digest), &mut digits));
    });
    group.bench_function("nix32 decode 32 bytes", |b| {
        b.iter(|| nix32::decode_into(black_box(text.as_bytes()), &mut bytes).expect("valid"));
    });
    group.bench_function("store path: base name", |b| {
        b.iter(|| StorePath::parse(black_box(BASE)).expect("valid"));
    });
    let (dir, whole) = (StoreDir::default(), format!("/nix/store/{BASE}"));
    group.bench_function("store path: with the store's folder", |b| {
        b.iter(|| dir.parse(black_box(&whole)).expect("valid"));
    });
    group.finish();
}

fn sha256(c: &mut Criterion) {
    let data = noise(SIZE);
    let mut group = c.benchmark_group("sha256");
    group.throughput(Throughput::Bytes(SIZE as u64));
    group.bench_function("tk-path", |b| {
        b.iter(|| {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(black_box(&data));
            hasher.finish()
        });
    });
    group.finish();
}

/// `noise` is like compressed files; `text` is nothing but nix32 digits, the worst that a scanner can meet.
fn scan(c: &mut Criterion) {
    let noise = noise(SIZE);
    let text: Vec<u8> = noise
        .iter()
        .map(|byte| nix32::ALPHABET[usize::from(byte % 32)])
        .collect();
    for (name, data) in [("noise", &noise), ("text", &text)] {
        let mut group = c.benchmark_group(format!("scan {name}"));
        group.throughput(Throughput::Bytes(SIZE as u64));
        for count in [1, 100, 2000] {
            let candidates: Vec<_> = (0..count).map(candidate).collect();
            group.bench_with_input(BenchmarkId::new("tk-path", count), data, |b, data| {
                b.iter(|| {
                    let mut scanner = RefScanner::new(candidates.iter().copied());
                    scanner.feed(black_box(data));
                    scanner.found().count()
                });
            });
            let texts = candidates.iter().map(HashPart::as_str);
            let pattern = ReferencePattern::new(texts).expect("valid candidates");
            group.bench_with_input(BenchmarkId::new("nix-archive", count), data, |b, data| {
                b.iter(|| {
                    let mut scanner = pattern.scanner();
                    scanner.scan(black_box(data));
                    scanner.matched_count()
                });
            });
        }
        group.finish();
    }
}

fn candidate(n: u32) -> HashPart {
    let mut digest = [0x5a; 20];
    digest[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_le_bytes());
    HashPart::from_digest(&digest)
}

fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..size).map(|_| next()).collect()
}

const BASE: &str = "zzv8vr0rr2zdxnf0lrf6w2z5ikkhl1bc-hello-2.12.1";
/// Bytes; fits in no cache of the processor but the last.
const SIZE: usize = 4 << 20;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700));
    targets = small, sha256, scan
}
criterion_main!(benches);
