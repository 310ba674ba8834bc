use crate::{
    AddContent, AddItems, AddOptions, AddReport, AddSignatures, ContentHasher, Error, Existing,
    Graph, NarCheck, NarStream, Realisations, Result, SigCheck, Store, derivation, nar,
    progress::arriving, realisations,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard},
};
use tk_narinfo::{
    PathInfo, Signature,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{Algorithm, HashPart, Method, OutputName, References, StoreDir, StorePath};

/// A store that lives in memory, as Nix's `dummy://`: for tests, and for embedders who want to
/// assemble a closure before it goes anywhere.
#[derive(Default)]
pub struct MemoryStore {
    dir: StoreDir,
    name: Option<String>,
    paths: Mutex<BTreeMap<StorePath, (PathInfo, Bytes)>>,
    realisations: Mutex<BTreeMap<DrvOutput, Realisation>>,
    legacy_realisations: Mutex<BTreeMap<legacy::LegacyDrvOutput, legacy::LegacyRealisation>>,
}

impl MemoryStore {
    /// An empty store for paths of `dir`.
    pub fn new(dir: StoreDir) -> Self {
        MemoryStore {
            dir,
            ..MemoryStore::default()
        }
    }

    /// The same, in the place of the store whose URI is `name`.
    pub fn named(dir: StoreDir, name: impl Into<String>) -> Self {
        MemoryStore {
            name: Some(name.into()),
            ..MemoryStore::new(dir)
        }
    }

    fn paths(&self) -> MutexGuard<'_, BTreeMap<StorePath, (PathInfo, Bytes)>> {
        lock(&self.paths)
    }

    async fn add_item(&self, info: PathInfo, nar: NarStream, options: &AddOptions) -> Result<u64> {
        let keep = options.existing == Existing::Keep;
        if keep && self.paths().contains_key(&info.path) {
            return Ok(0);
        }
        options.check_metadata(&self.dir, &info)?;
        self.require_references(&info, &options.elsewhere)?;
        let mut verify = NarCheck::new(&info, self.to_string());
        let mut nar = arriving(nar, &options.progress);
        let mut content = BytesMut::new();
        while let Some(chunk) = nar.next().await {
            let chunk = chunk?;
            verify.update(&chunk)?;
            content.extend_from_slice(&chunk);
        }
        verify.finish()?;
        let written = content.len() as u64;
        let mut paths = self.paths();
        if !keep || !paths.contains_key(&info.path) {
            paths.insert(info.path.clone(), (info, content.freeze()));
        }
        Ok(written)
    }

    fn require_references(&self, info: &PathInfo, elsewhere: &BTreeSet<StorePath>) -> Result<()> {
        let paths = self.paths();
        let there = |r: &StorePath| paths.contains_key(r) || elsewhere.contains(r);
        let absent = |r: &&StorePath| **r != info.path && !there(r);
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

    async fn add(&self, mut items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        let mut report = AddReport::default();
        while let Some(item) = items.next().await {
            let (info, nar) = item?;
            let path = info.path.clone();
            match self.add_item(info, nar, options).await {
                Ok(written) => {
                    options.note_added(&mut report, path);
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
        self.require_references(&info, &BTreeSet::new())?;
        self.paths()
            .entry(info.path.clone())
            .or_insert((info.clone(), content.freeze()));
        Ok(info)
    }
}

#[async_trait]
impl AddSignatures for MemoryStore {
    async fn add_all_signatures(
        &self,
        signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    ) -> Vec<(StorePath, Result<()>)> {
        let mut paths = self.paths();
        let add = |(path, new): (StorePath, BTreeSet<Signature>)| {
            let not_found = || Error::NotFound {
                path: path.clone(),
                store: self.to_string(),
            };
            let entry = paths.get_mut(&path).ok_or_else(not_found);
            let added = entry.map(|(info, _)| info.signatures.extend(new));
            (path, added)
        };
        signatures.into_iter().map(add).collect()
    }
}

#[async_trait]
impl Graph for MemoryStore {
    async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        Ok(self.paths().keys().cloned().collect())
    }

    async fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let paths = self.paths();
        let infos = paths.values().map(|(info, _)| info);
        let referrers = infos.filter(|info| info.references.contains(path));
        Ok(referrers.map(|info| info.path.clone()).collect())
    }

    /// Reads every derivation; those that cannot be read are no derivers.
    async fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let mut derivers = BTreeSet::new();
        for drv in self.all_paths().await? {
            if drv.is_derivation()
                && let Ok(outputs) = self.output_map(&drv).await
                && outputs.values().flatten().any(|output| output == path)
            {
                derivers.insert(drv);
            }
        }
        Ok(derivers)
    }

    async fn output_map(&self, drv: &StorePath) -> Result<BTreeMap<OutputName, Option<StorePath>>> {
        derivation::output_map(self, drv, Some(self)).await
    }
}

#[async_trait]
impl Realisations for MemoryStore {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let known = lock(&self.realisations).get(id).cloned();
        Ok(known.map(|realisation| realisation.value))
    }

    async fn register(&self, realisation: &Realisation, check: &SigCheck) -> Result<()> {
        check.check_realisation(realisation)?;
        let mut known = lock(&self.realisations);
        let merged = realisations::merge(self, known.get(&realisation.id), realisation)?;
        known.insert(realisation.id.clone(), merged);
        Ok(())
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>> {
        Ok(lock(&self.legacy_realisations).get(id).cloned())
    }

    async fn register_legacy(
        &self,
        realisation: &legacy::LegacyRealisation,
        check: &SigCheck,
    ) -> Result<()> {
        check.check_legacy_realisation(realisation)?;
        let mut known = lock(&self.legacy_realisations);
        let merged = realisations::merge_legacy(self, known.get(&realisation.id), realisation)?;
        known.insert(realisation.id.clone(), merged);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held cannot leave a map half changed.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or("dummy://"))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({} paths)", self.paths().len())
    }
}
