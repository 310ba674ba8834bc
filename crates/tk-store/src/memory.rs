use crate::{
    AddContent, AddItems, AddReport, AddSignatures, ContentHasher, Error, NarCheck, NarStream,
    Result, SigCheck, Store, nar,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard},
};
use tk_narinfo::{PathInfo, Signature};
use tk_path::{Algorithm, HashPart, Method, References, StoreDir, StorePath};

/// A store that lives in memory, as Nix's `dummy://`: for tests, and for embedders who want to
/// assemble a closure before it goes anywhere.
#[derive(Default)]
pub struct MemoryStore {
    dir: StoreDir,
    paths: Mutex<BTreeMap<StorePath, (PathInfo, Bytes)>>,
}

impl MemoryStore {
    /// An empty store for paths of `dir`.
    pub fn new(dir: StoreDir) -> Self {
        MemoryStore {
            dir,
            paths: Mutex::default(),
        }
    }

    fn paths(&self) -> MutexGuard<'_, BTreeMap<StorePath, (PathInfo, Bytes)>> {
        // A panic while the lock was held cannot leave a map half changed.
        self.paths.lock().unwrap_or_else(|e| e.into_inner())
    }

    async fn add_item(&self, info: PathInfo, mut nar: NarStream, check: &SigCheck) -> Result<u64> {
        if self.paths().contains_key(&info.path) {
            return Ok(0);
        }
        check.check(&self.dir, &info)?;
        self.require_references(&info)?;
        let mut verify = NarCheck::new(&info, self.to_string());
        let mut content = BytesMut::new();
        while let Some(chunk) = nar.next().await {
            let chunk = chunk?;
            verify.update(&chunk)?;
            content.extend_from_slice(&chunk);
        }
        verify.finish()?;
        let written = content.len() as u64;
        self.paths()
            .entry(info.path.clone())
            .or_insert((info, content.freeze()));
        Ok(written)
    }

    fn require_references(&self, info: &PathInfo) -> Result<()> {
        let paths = self.paths();
        let absent = |r: &&StorePath| **r != info.path && !paths.contains_key(*r);
        match info.references.iter().find(absent) {
            None => Ok(()),
            Some(reference) => Err(Error::MissingReference {
                path: info.path.clone(),
                reference: reference.clone(),
                store: self.to_string(),
            }),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn dir(&self) -> &StoreDir {
        &self.dir
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        let have = self.paths();
        let there = paths.iter().filter(|p| have.contains_key(*p));
        Ok(there.cloned().collect())
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let look = |path: StorePath| {
            let info = self.paths().get(&path).map(|(info, _)| info.clone());
            Ok((path, info))
        };
        paths.map(look).boxed()
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        match self.paths().get(path) {
            Some((_, content)) => Ok(nar::from_bytes(content.clone())),
            None => Err(Error::NotFound {
                path: path.clone(),
                store: self.to_string(),
            }),
        }
    }

    async fn add(&self, mut items: AddItems<'_>, check: &SigCheck) -> Result<AddReport> {
        let mut report = AddReport::default();
        while let Some(item) = items.next().await {
            let (info, nar) = item?;
            let path = info.path.clone();
            match self.add_item(info, nar, check).await {
                Ok(written) => {
                    report.added.push(path);
                    report.written += written;
                }
                Err(error) => report.failed.push((path, error)),
            }
        }
        Ok(report)
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let paths = self.paths();
        let mut found = paths.keys().filter(|p| p.hash_part() == part.as_str());
        Ok(found.next().cloned())
    }
}

#[async_trait]
impl AddContent for MemoryStore {
    async fn add_content(
        &self,
        name: &str,
        method: Method,
        algorithm: Algorithm,
        references: &References,
        mut nar: NarStream,
    ) -> Result<PathInfo> {
        let mut content = BytesMut::new();
        let mut hasher = ContentHasher::new(method, algorithm)?;
        while let Some(chunk) = nar.next().await {
            let chunk = chunk?;
            hasher.update(&chunk)?;
            content.extend_from_slice(&chunk);
        }
        let info = hasher.finish(&self.dir, name, references)?;
        self.require_references(&info)?;
        self.paths()
            .entry(info.path.clone())
            .or_insert((info.clone(), content.freeze()));
        Ok(info)
    }
}

#[async_trait]
impl AddSignatures for MemoryStore {
    async fn add_signatures(
        &self,
        path: &StorePath,
        signatures: &BTreeSet<Signature>,
    ) -> Result<()> {
        match self.paths().get_mut(path) {
            None => Err(Error::NotFound {
                path: path.clone(),
                store: self.to_string(),
            }),
            Some((info, _)) => {
                info.signatures.extend(signatures.iter().cloned());
                Ok(())
            }
        }
    }
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dummy://")
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} paths)", self.paths().len())
    }
}
