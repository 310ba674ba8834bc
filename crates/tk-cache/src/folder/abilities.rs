//! What a folder can do beyond [`Store`](tk_store::Store).

use super::{FolderCache, Inner, files, logs, reading, writing};
use crate::{
    blocking, layout,
    realisations::{self, MAX_REALISATION_BYTES},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
    sync::Arc,
};
use tk_narinfo::realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy};
use tk_path::{OutputName, StorePath};
use tk_store::{
    Abilities, ByteStream, Error, Graph, Logs, Realisations, Result, SigCheck, derivation,
    nar::BlockingNar,
    realisations::{merge, merge_legacy},
};

impl FolderCache {
    /// The cache with all that it can do.
    pub fn abilities(&self) -> Abilities {
        let store = Arc::new(self.clone());
        let mut abilities = Abilities::of(store.clone());
        abilities.signatures = Some(store.clone());
        abilities.graph = Some(store.clone());
        abilities.logs = Some(store.clone());
        abilities.realisations = Some(store);
        abilities
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            store: self.to_string(),
            what: what.to_owned(),
        }
    }
}

/// Nothing here leads from a path to what needs it or made it.
#[async_trait]
impl Graph for FolderCache {
    async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        FolderCache::all_paths(self).await
    }

    async fn referrers(&self, _: &StorePath) -> Result<BTreeSet<StorePath>> {
        Err(self.unsupported("does not know what refers to a path"))
    }

    async fn valid_derivers(&self, _: &StorePath) -> Result<BTreeSet<StorePath>> {
        Err(self.unsupported("does not know which derivations make a path"))
    }

    async fn output_map(&self, drv: &StorePath) -> Result<BTreeMap<OutputName, Option<StorePath>>> {
        derivation::output_map(self, drv, Some(self)).await
    }
}

#[async_trait]
impl Logs for FolderCache {
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>> {
        let (inner, drv) = (self.0.clone(), drv.clone());
        let log = blocking(move || logs::Log::open(&inner, &drv)).await?;
        Ok(log.map(logs::Log::stream))
    }

    async fn add_build_log(&self, drv: &StorePath, log: ByteStream) -> Result<()> {
        let (inner, drv, log) = (self.0.clone(), drv.clone(), BlockingNar::new(log));
        blocking(move || logs::add(&inner, &drv, log)).await
    }
}

/// Both forms, each in files of its own.
#[async_trait]
impl Realisations for FolderCache {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let (inner, id) = (self.0.clone(), id.clone());
        blocking(move || inner.realisation(&id)).await
    }

    async fn register(&self, realisation: &Realisation, check: &SigCheck) -> Result<()> {
        check.check_realisation(realisation)?;
        let (inner, realisation) = (self.0.clone(), realisation.clone());
        blocking(move || inner.register(&realisation)).await
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::DrvOutput,
    ) -> Result<Option<legacy::Realisation>> {
        let (inner, id) = (self.0.clone(), id.clone());
        blocking(move || inner.legacy_realisation(&id)).await
    }

    async fn register_legacy(
        &self,
        realisation: &legacy::Realisation,
        check: &SigCheck,
    ) -> Result<()> {
        check.check_legacy_realisation(realisation)?;
        let (inner, realisation) = (self.0.clone(), realisation.clone());
        blocking(move || inner.register_legacy(&realisation)).await
    }
}

impl Inner {
    fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let file = self.root.join(layout::realisation(id));
        let text = text(&file)?;
        let parse = |text: Vec<u8>| realisations::parse(id, &file.to_string_lossy(), &text);
        text.map(parse).transpose()
    }

    fn register(&self, new: &Realisation) -> Result<()> {
        let file = self.root.join(layout::realisation(&new.id));
        let _lock = self.begin(&file)?;
        let id = new.id.clone();
        let known = self.realisation(&new.id)?;
        let known = known.map(|value| Realisation { id, value });
        let merged = merge(self, known.as_ref(), new)?;
        if known.as_ref() == Some(&merged) {
            return Ok(());
        }
        write(&file, &merged.value.to_json())
    }

    fn legacy_realisation(&self, id: &legacy::DrvOutput) -> Result<Option<legacy::Realisation>> {
        let file = self.root.join(layout::legacy_realisation(id));
        let text = text(&file)?;
        let parse = |text: Vec<u8>| realisations::parse_legacy(id, &file.to_string_lossy(), &text);
        text.map(parse).transpose()
    }

    fn register_legacy(&self, new: &legacy::Realisation) -> Result<()> {
        let file = self.root.join(layout::legacy_realisation(&new.id));
        let _lock = self.begin(&file)?;
        let known = self.legacy_realisation(&new.id)?;
        let merged = merge_legacy(self, known.as_ref(), new)?;
        if known.as_ref() == Some(&merged) {
            return Ok(());
        }
        write(&file, &merged.to_json())
    }

    /// Makes the folder of `file`; if `file` is there, nobody else changes it until the lock is dropped.
    fn begin(&self, file: &Path) -> Result<Option<File>> {
        self.prepare()?;
        let folder = parent(file);
        std::fs::create_dir_all(folder).map_err(|e| writing(folder, e))?;
        files::lock(file).map_err(|e| reading(file, e))
    }
}

fn text(file: &Path) -> Result<Option<Vec<u8>>> {
    files::read(file, MAX_REALISATION_BYTES).map_err(|e| reading(file, e))
}

fn write(file: &Path, value: &serde_json::Value) -> Result<()> {
    let text = value.to_string();
    files::write(file, text.as_bytes()).map_err(|e| writing(file, e))?;
    files::sweep(parent(file));
    Ok(())
}

fn parent(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}
