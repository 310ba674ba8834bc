//! Folder caches below the command line: files large enough to be cut into frames and blocks, and
//! compressions that only old settings of Nix write.

use crate::support::{Rig, VERSIONS, each_version, rig};
use futures::{StreamExt, stream};
use std::{fs, num::NonZeroUsize, path::Path};
use tempfile::TempDir;
use tk_cache::{BinaryCache, BinaryCacheConfig, compress::zstd_frame};
use tk_nar::fs::DumpOptions;
use tk_narinfo::{Compression, PathInfo};
use tk_path::{
    Algorithm, ContentAddress, Hasher, Method, NarHash, References, StoreDir, StorePath,
};
use tk_store::{SigCheck, Store, StoreExt, nar, verify};

#[test]
fn frames_and_blocks_are_read_by_every_nix() {
    let place = TempDir::new().unwrap();
    let file = place.path().join("large");
    // More than four zstd frames, and two streams of xz.
    fs::write(&file, sample(17 << 20)).unwrap();
    let info = describe(&file, "large");
    for (compression, level) in [(Compression::Zstd, None), (Compression::Xz, None)] {
        let root = place.path().join(compression.as_str());
        let config = BinaryCacheConfig {
            create: true,
            compression,
            level,
            jobs: NonZeroUsize::new(2).unwrap(),
            ..BinaryCacheConfig::default()
        };
        let written = push(&root, config, &info, &file);
        assert!(
            written > 4 * zstd_frame(3) as u64,
            "{written} bytes do not make frames"
        );
        for version in VERSIONS {
            let Some(nix) = rig(version) else { continue };
            let store = place.path().join(format!("{version}-{compression}"));
            takes(&nix, &root, &store, &info.path);
        }
    }
}

each_version!(rare_compressions_of_nix);

fn rare_compressions_of_nix(version: &'static str) {
    let Some(nix) = rig(version) else { return };
    let place = TempDir::new().unwrap();
    let file = place.path().join("rare");
    // More than one block of lz4 (4 MiB), and more than the code table of compress takes: it is
    // cleared when what follows packs worse than what made it.
    let content = [vec![0; 4 << 20], sample(1 << 20), sample(100_000).repeat(4)];
    fs::write(&file, content.concat()).unwrap();
    let store = place.path().join("store").display().to_string();
    let path = nix.run(
        "nix-store",
        ["--store", &store, "--add", file.to_str().unwrap()],
    );
    let path = String::from_utf8(path).unwrap();
    let path = StoreDir::default().parse(path.trim()).unwrap();
    for compression in ["lzma", "lzip", "lz4", "compress"] {
        let root = place.path().join(compression);
        let to = format!("file://{}?compression={compression}", root.display());
        let full = StoreDir::default().path(&path);
        nix.run("nix", ["copy", "--store", &store, "--to", &to, &full]);
        if let Err(error) = read(&root, &path) {
            panic!("{compression} of {version}: {error}");
        }
    }
}

fn takes(nix: &Rig, cache: &Path, store: &Path, path: &StorePath) {
    let (from, to) = (
        format!("file://{}", cache.display()),
        store.display().to_string(),
    );
    let path = StoreDir::default().path(path);
    nix.run(
        "nix",
        [
            "copy",
            "--no-check-sigs",
            "--from",
            &from,
            "--to",
            &to,
            &path,
        ],
    );
    nix.run(
        "nix-store",
        ["--store", &to, "--verify", "--check-contents"],
    );
    nix.run("nix-store", ["--store", &to, "--query", "--hash", &path]);
}

fn push(root: &Path, config: BinaryCacheConfig, info: &PathInfo, file: &Path) -> u64 {
    runtime().block_on(async {
        let cache = BinaryCache::open_folder(root, config).await.unwrap();
        let nar = nar::dump(file.to_owned(), DumpOptions::default());
        let items = stream::iter([Ok((info.clone(), nar))]).boxed();
        let report = cache.add(items, &SigCheck::Skip.into()).await.unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        report.written
    })
}

fn read(root: &Path, path: &StorePath) -> Result<(), String> {
    runtime().block_on(async {
        let config = BinaryCacheConfig::default();
        let cache = BinaryCache::open_folder(root, config).await.unwrap();
        let info = cache.require_info(path).await.unwrap();
        verify(&cache, &info).await.map_err(|error| error.to_line())
    })
}

/// The metadata of a file as Nix would add it.
fn describe(file: &Path, name: &str) -> PathInfo {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    tk_nar::fs::dump(file, &DumpOptions::default(), &mut hasher).unwrap();
    let (size, hash) = (hasher.bytes(), hasher.finish());
    let ca = ContentAddress {
        method: Method::Nar,
        hash,
    };
    let path = StoreDir::default().path_of_content(name, &ca, &References::default());
    let mut info = PathInfo::new(path.unwrap(), NarHash::try_from(hash).unwrap(), size);
    info.ca = Some(ca);
    info
}

/// Bytes that compress a little.
fn sample(n: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 57) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}
