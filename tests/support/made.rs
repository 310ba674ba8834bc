//! Paths made up for tests.
#![allow(dead_code, reason = "each test uses its part")]

use bytes::Bytes;
use futures::{StreamExt, stream};
use std::path::Path;
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hash, NarHash, StorePath};
pub use tk_store::conformance::file_nar as nar_of;
use tk_store::{SigCheck, Store, nar};

/// Makes a store in `root`: paths with files of `sizes` bytes, of which each refers to itself and
/// to three before it. References first; the last one leads to all others.
pub fn fill(root: &Path, sizes: &[usize]) -> Vec<StorePath> {
    let mut paths: Vec<StorePath> = Vec::new();
    let mut items = Vec::new();
    for (i, &size) in sizes.iter().enumerate() {
        let (mut info, nar) = sample(&format!("path-{i}"), &noise(i as u64 + 1, size));
        let path = info.path.clone();
        for back in [1, 2, 7] {
            info.references
                .extend(i.checked_sub(back).map(|j| paths[j].clone()));
        }
        info.references.insert(path.clone());
        paths.push(path);
        items.push(Ok((info, nar::from_bytes(nar))));
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = LocalStore::open(LocalConfig::chroot(root)).await.unwrap();
        let items = stream::iter(items).boxed();
        let report = store.add(items, &SigCheck::Skip.into()).await.unwrap();
        assert_eq!(report.added.len(), sizes.len(), "{:?}", report.failed);
    });
    paths
}

/// A path that is a file of `content`, with its NAR.
pub fn sample(name: &str, content: &[u8]) -> (PathInfo, Bytes) {
    let nar = nar_of(content);
    let digest = Hash::digest(Algorithm::Sha256, name.as_bytes()).compress(20);
    let path = StorePath::from_digest(&digest.try_into().unwrap(), name).unwrap();
    let info = PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64);
    (info, nar)
}

/// Bytes that no compression makes fewer.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut noise = Vec::with_capacity(size + 8);
    while noise.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(size);
    noise
}
