//! What a binary cache can do beyond [`Store`](tk_store::Store).

use super::{BinaryCache, CacheInner, logs};
use crate::{
    layout,
    realisations::{self, MAX_REALISATION_BYTES},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};
use tk_narinfo::{
    Signature,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{OutputName, StorePath};
use tk_store::{
    Abilities, AddSignatures, ByteStream, Describe, Error, Graph, Logs, Realisations, Result,
    SigCheck, StoreDescription, derivation,
    realisations::{merge, merge_legacy},
};

impl BinaryCache {
    /// The cache with all that it can do.
    pub fn abilities(&self) -> Abilities {
        let store = Arc::new(self.clone());
        let mut abilities = Abilities::of(store.clone());
        abilities.signatures = Some(store.clone());
        abilities.graph = Some(store.clone());
        abilities.logs = Some(store.clone());
        abilities.realisations = Some(store.clone());
        abilities.description = Some(store);
        abilities
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            store: self.to_string(),
            what: what.to_owned(),
        }
    }
}

#[async_trait]
impl Describe for BinaryCache {
    async fn describe(&self) -> Result<StoreDescription> {
        let said = self.cache_info().await?;
        let mut description = StoreDescription {
            priority: said.priority,
            want_mass_query: said.want_mass_query,
            ..StoreDescription::of("binary cache")
        };
        if self.folder().is_none() {
            let asked = Instant::now();
            self.read_cache_info().await?;
            description.latency = Some(asked.elapsed());
        }
        Ok(description)
    }
}

#[async_trait]
impl AddSignatures for BinaryCache {
    /// Fields of the narinfo that are unknown here are kept. Of two processes that sign one path
    /// at the same moment, one may win, unless the cache is in a folder.
    async fn add_all_signatures(
        &self,
        signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    ) -> Vec<(StorePath, Result<()>)> {
        let add = |(path, new): (StorePath, BTreeSet<Signature>)| async move {
            let added = self.sign(&path, new).await;
            (path, added)
        };
        let at_once = self.0.objects.parallel();
        let added = stream::iter(signatures).map(add).buffered(at_once);
        added.collect().await
    }
}

impl BinaryCache {
    async fn sign(&self, path: &StorePath, new: BTreeSet<Signature>) -> Result<()> {
        let part = path.to_hash_part();
        let _lock = self.0.objects.lock(&layout::narinfo(&part)).await?;
        let found = self.0.fetch(&part).await?;
        let found = found.filter(|narinfo| narinfo.info.path == *path);
        let mut narinfo = found.ok_or_else(|| Error::NotFound {
            path: path.clone(),
            store: self.to_string(),
        })?;
        let before = narinfo.info.signatures.len();
        narinfo.info.signatures.extend(new);
        if narinfo.info.signatures.len() == before {
            return Ok(());
        }
        let mut written = self.write_narinfos(vec![narinfo]).await;
        written.pop().map_or(Ok(()), |(_, result)| result)
    }
}

/// Nothing here leads from a path to what needs it or made it.
#[async_trait]
impl Graph for BinaryCache {
    async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        BinaryCache::all_paths(self).await
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
impl Logs for BinaryCache {
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>> {
        logs::read(&self.0, drv).await
    }

    async fn add_build_log(&self, drv: &StorePath, log: ByteStream) -> Result<()> {
        logs::add(&self.0, drv, log).await
    }
}

/// Both forms, each in objects of its own.
#[async_trait]
impl Realisations for BinaryCache {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        self.0.realisation(id).await
    }

    async fn register(&self, realisation: &Realisation, check: &SigCheck) -> Result<()> {
        check.check_realisation(realisation)?;
        self.0.init().await?;
        let name = layout::realisation(&realisation.id);
        let _lock = self.0.objects.lock(&name).await?;
        let id = realisation.id.clone();
        let known = self.0.realisation(&id).await?;
        let known = known.map(|value| Realisation { id, value });
        let merged = merge(&self.0, known.as_ref(), realisation)?;
        if known.as_ref() == Some(&merged) {
            return Ok(());
        }
        let text = merged.value.to_json().to_string();
        self.0.put(&name, text.into()).await
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>> {
        self.0.legacy_realisation(id).await
    }

    async fn register_legacy(
        &self,
        realisation: &legacy::LegacyRealisation,
        check: &SigCheck,
    ) -> Result<()> {
        check.check_legacy_realisation(realisation)?;
        self.0.init().await?;
        let name = layout::legacy_realisation(&realisation.id);
        let _lock = self.0.objects.lock(&name).await?;
        let known = self.0.legacy_realisation(&realisation.id).await?;
        let merged = merge_legacy(&self.0, known.as_ref(), realisation)?;
        if known.as_ref() == Some(&merged) {
            return Ok(());
        }
        let text = merged.to_json().to_string();
        self.0.put(&name, text.into()).await
    }
}

impl CacheInner {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let name = layout::realisation(id);
        let text = self.objects.read(&name, MAX_REALISATION_BYTES).await?;
        let parse = |text: Bytes| realisations::parse(id, &self.objects.place(&name), &text);
        text.map(parse).transpose()
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>> {
        let name = layout::legacy_realisation(id);
        let text = self.objects.read(&name, MAX_REALISATION_BYTES).await?;
        let parse = |text: Bytes| realisations::parse_legacy(id, &self.objects.place(&name), &text);
        text.map(parse).transpose()
    }

    /// Writes a small object.
    pub(super) async fn put(&self, name: &str, content: Bytes) -> Result<()> {
        let mime = layout::mime_type(name);
        let written = self.objects.write(name, content, mime, false).await;
        written.map(drop)
    }
}
