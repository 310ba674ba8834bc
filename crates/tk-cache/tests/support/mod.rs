//! Small stores and their checks.

#![allow(dead_code)] // each test uses a part

use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    collections::BTreeSet,
    fs,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};
use tk_cache::{BinaryCache, BinaryCacheConfig};
use tk_narinfo::{Compression, PathInfo};
use tk_path::{Algorithm, Hash, NarHash, StorePath};
pub use tk_store::conformance::file_nar as nar_of;
use tk_store::{AddItem, AddReport, Result, SigCheck, Store, nar};

/// A folder for a cache, and how that is to be opened.
#[derive(Debug, Clone)]
pub struct FolderConfig {
    pub path: PathBuf,
    pub config: BinaryCacheConfig,
}

impl FolderConfig {
    /// As nobody says otherwise.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FolderConfig {
            path: path.into(),
            config: BinaryCacheConfig::default(),
        }
    }

    pub async fn open(self) -> Result<BinaryCache> {
        BinaryCache::open_folder(self.path, self.config).await
    }
}

impl Deref for FolderConfig {
    type Target = BinaryCacheConfig;

    fn deref(&self) -> &BinaryCacheConfig {
        &self.config
    }
}

impl DerefMut for FolderConfig {
    fn deref_mut(&mut self) -> &mut BinaryCacheConfig {
        &mut self.config
    }
}

/// A cache that is made if need be, and quick.
pub fn config(path: &Path) -> FolderConfig {
    let mut config = FolderConfig::new(path);
    config.compression = Compression::Zstd;
    config.level = Some(1);
    config.create = true;
    config
}

pub async fn open(config: FolderConfig) -> BinaryCache {
    config.open().await.unwrap()
}

pub async fn add(cache: &BinaryCache, items: Vec<Result<AddItem>>) -> AddReport {
    cache
        .add(stream::iter(items).boxed(), &SigCheck::Skip.into())
        .await
        .unwrap()
}

pub fn item(info: &PathInfo, nar: &Bytes) -> Result<AddItem> {
    Ok((info.clone(), nar::from_bytes(nar.clone())))
}

pub fn sample(
    name: &str,
    content: &[u8],
    references: impl IntoIterator<Item = StorePath>,
) -> (PathInfo, Bytes) {
    let nar = nar_of(content);
    let digest = Hash::digest(Algorithm::Sha256, name.as_bytes());
    let digest: [u8; 20] = digest.compress(20).try_into().unwrap();
    let path = StorePath::from_digest(&digest, name).unwrap();
    let mut info = PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64);
    info.references = references.into_iter().collect();
    (info, nar)
}

/// Paths of which each refers to the one before it and to itself.
pub fn chain(n: usize) -> Vec<(PathInfo, Bytes)> {
    let mut chain: Vec<(PathInfo, Bytes)> = Vec::new();
    for i in 0..n {
        let before = chain.last().map(|(info, _)| info.path.clone());
        let (mut info, nar) = sample(&format!("link-{i}"), format!("{i}").as_bytes(), before);
        info.references.insert(info.path.clone());
        chain.push((info, nar));
    }
    chain
}

/// All files below a folder, relative to it.
pub fn tree(root: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.insert(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    files
}

/// Every narinfo has its NAR, whole, and the narinfos of its references.
pub async fn assert_invariant(root: &Path) {
    let cache = FolderConfig::new(root).open().await.unwrap();
    for path in cache.all_paths().await.unwrap() {
        let narinfo = cache.narinfo(&path).await.unwrap().unwrap();
        let found = cache.valid(&narinfo.info.references).await.unwrap();
        assert_eq!(found, narinfo.info.references, "references of {path}");
        let nar = fs::read(root.join(&narinfo.url)).unwrap();
        assert_eq!(Some(nar.len() as u64), narinfo.file_size, "NAR of {path}");
        let hash = Hash::digest(Algorithm::Sha256, &nar);
        assert_eq!(Some(hash), narinfo.file_hash, "NAR of {path}");
    }
}
