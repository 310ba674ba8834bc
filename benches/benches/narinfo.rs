//! Narinfo files: parse, print, and what looking for line ends alone costs.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memchr::memchr_iter;
use tk_narinfo::NarInfo;
use tk_path::{HashPart, StoreDir};

/// About 2 kB, as the narinfo of a program with thirty references.
fn sample() -> String {
    let base = |n: u8| format!("{}-some-library-1.{n}.0", HashPart::from_digest(&[n; 20]));
    let references: Vec<_> = (0..30).map(base).collect();
    format!(
        "StorePath: /nix/store/{}\n\
         URL: nar/{HASH}.nar.xz\n\
         Compression: xz\n\
         FileHash: sha256:{HASH}\n\
         FileSize: 50364\n\
         NarHash: sha256:{HASH}\n\
         NarSize: 226560\n\
         References: {}\n\
         Deriver: {}.drv\n\
         Sig: cache.example.org-1:{}==\n",
        base(0),
        references.join(" "),
        base(77),
        "A".repeat(86),
    )
}

fn narinfo(c: &mut Criterion) {
    let (dir, text) = (StoreDir::default(), sample());
    let parsed = NarInfo::parse(&dir, &text).expect("the sample is valid");
    let mut group = c.benchmark_group("narinfo");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("parse", |b| {
        b.iter(|| NarInfo::parse(&dir, black_box(&text)))
    });
    group.bench_function("lines alone", |b| {
        b.iter(|| memchr_iter(b'\n', black_box(text.as_bytes())).sum::<usize>());
    });
    group.bench_function("print", |b| b.iter(|| black_box(&parsed).print(&dir).len()));
    group.finish();
}

const HASH: &str = "1l0q4d3yqd2nn8gh5z3iyx4rlz0yngzsf7zcvhqj8ixl2q8wwnmk";

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700));
    targets = narinfo
}
criterion_main!(benches);
