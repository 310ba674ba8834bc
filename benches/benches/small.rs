//! The small things: narinfos, derivations, nix32, store paths, path infos, SHA-256, the scan for references.
#![allow(missing_docs)]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[path = "../src/small.rs"]
mod small;

fn all(c: &mut Criterion) {
    for contest in small::contests() {
        let mut group = c.benchmark_group(contest.job);
        // One pass does it several times.
        let times = u64::from(contest.times);
        group.throughput(match contest.bytes {
            Some(bytes) => Throughput::Bytes(bytes * times),
            None => Throughput::Elements(times),
        });
        for mut entrant in contest.entrants {
            let id = if contest.on.is_empty() {
                BenchmarkId::from_parameter(entrant.name)
            } else {
                BenchmarkId::new(entrant.name, &contest.on)
            };
            group.bench_function(id, |b| b.iter(|| (entrant.pass)()));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700));
    targets = all
}
criterion_main!(benches);
