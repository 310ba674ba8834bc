//! Caches far away, as the program and real Nix see them: nginx over HTTP/1.1, over TLS with
//! HTTP/2, and a real S3 service.

mod errors;
mod kills;
mod round_trip;
mod tampering;

use crate::{cli::Machine, support::servers::Nginx};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hash, NarHash, StorePath};
use tk_store::{SigCheck, Store, nar};

/// A machine with a store of its own, that holds a closure, and a key.
struct Source {
    machine: Machine,
    /// References first; the last one leads to all others.
    paths: Vec<StorePath>,
    /// The public key of `s`.
    key: String,
}

impl Source {
    /// A closure of `count` paths that nothing but signatures vouches for; those in `large` are so
    /// large that they are sent while they are packed.
    fn new(count: usize, large: &[usize]) -> Source {
        let machine = Machine::new();
        let paths = fill(&machine.home().join("store"), count, large);
        machine.ok("key generate test-1 --secret s --public p");
        let key = machine.ok("key public s");
        Source {
            machine,
            paths,
            key,
        }
    }

    /// The path that leads to all others.
    fn top(&self) -> String {
        full(self.paths.last().unwrap())
    }
}

fn full(path: &StorePath) -> String {
    format!("/nix/store/{path}")
}

/// Makes a store in `root`: a tree of paths of which each refers to three before it.
fn fill(root: &Path, count: usize, large: &[usize]) -> Vec<StorePath> {
    let mut paths: Vec<StorePath> = Vec::new();
    let mut items = Vec::new();
    for i in 0..count {
        let size = if large.contains(&i) {
            9 << 20
        } else {
            2000 + 37 * i
        };
        let nar = nar_of(&noise(i as u64 + 1, size));
        let name = format!("path-{i}");
        let digest = Hash::digest(Algorithm::Sha256, name.as_bytes()).compress(20);
        let path = StorePath::from_digest(&digest.try_into().unwrap(), &name).unwrap();
        let mut info = PathInfo::new(path.clone(), NarHash::digest(&nar), nar.len() as u64);
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
        assert_eq!(report.added.len(), count, "{:?}", report.failed);
    });
    paths
}

/// Bytes that no compression makes fewer.
fn noise(seed: u64, size: usize) -> Vec<u8> {
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

/// The NAR of a plain file.
fn nar_of(content: &[u8]) -> Bytes {
    let mut nar = Vec::new();
    let words: [&[u8]; 7] = [
        b"nix-archive-1",
        b"(",
        b"type",
        b"regular",
        b"contents",
        content,
        b")",
    ];
    for word in words {
        nar.extend((word.len() as u64).to_le_bytes());
        nar.extend(word);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar.into()
}

/// A folder that nginx serves.
struct Served {
    root: TempDir,
    nginx: Nginx,
}

impl Served {
    fn start(tls: bool) -> Option<Served> {
        let root = TempDir::new().unwrap();
        let nginx = Nginx::start(root.path(), tls, 0)?;
        Some(Served { root, nginx })
    }

    fn path(&self) -> PathBuf {
        self.root.path().to_owned()
    }
}
