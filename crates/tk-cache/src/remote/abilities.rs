//! What a cache far away can do beyond [`Store`](tk_store::Store).

use super::{Inner, RemoteCache};
use crate::{
    layout,
    realisations::{self, MAX_REALISATION_BYTES},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tk_narinfo::{
    Signature,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{OutputName, StorePath};
use tk_store::{
    Abilities, AddSignatures, ByteStream, Error, Graph, Logs, Realisations, Result, SigCheck,
    derivation,
    realisations::{merge, merge_legacy},
};

impl RemoteCache {
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

#[async_trait]
impl AddSignatures for RemoteCache {
    /// Fields of the narinfo that are unknown here are kept. Of two processes that sign one path
    /// at the same moment, one may win.
    async fn add_signatures(
        &self,
        path: &StorePath,
        signatures: &BTreeSet<Signature>,
    ) -> Result<()> {
        let part = path.to_hash_part();
        let found = self.0.fetch(&part).await?;
        let found = found.filter(|narinfo| narinfo.info.path == *path);
        let mut narinfo = found.ok_or_else(|| Error::NotFound {
            path: path.clone(),
            store: self.to_string(),
        })?;
        let before = narinfo.info.signatures.len();
        narinfo.info.signatures.extend(signatures.iter().cloned());
        if narinfo.info.signatures.len() == before {
            return Ok(());
        }
        self.write_narinfo(&narinfo).await
    }
}

/// Nothing here leads from a path to what needs it or made it.
#[async_trait]
impl Graph for RemoteCache {
    async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        RemoteCache::all_paths(self).await
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
impl Logs for RemoteCache {
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>> {
        self.0.objects.stream(&layout::log(drv)).await
    }

    async fn add_build_log(&self, drv: &StorePath, log: ByteStream) -> Result<()> {
        if !drv.is_derivation() {
            let what = format!("{drv} is no derivation, so it has no build log");
            return Err(Error::invalid(what));
        }
        let name = layout::log(drv);
        if self.0.objects.look(&name).await?.is_some() {
            return Ok(());
        }
        self.0.init().await?;
        let log = log
            .try_fold(Vec::new(), |mut log, chunk| async move {
                if log.len() + chunk.len() > MAX_LOG_BYTES {
                    let what = format!("a build log of more than {MAX_LOG_BYTES} bytes");
                    return Err(Error::invalid(what));
                }
                log.extend_from_slice(&chunk);
                Ok(log)
            })
            .await?;
        self.0.put(&name, log.into()).await
    }
}

/// Both forms, each in objects of its own.
#[async_trait]
impl Realisations for RemoteCache {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        self.0.realisation(id).await
    }

    async fn register(&self, realisation: &Realisation, check: &SigCheck) -> Result<()> {
        check.check_realisation(realisation)?;
        self.0.init().await?;
        let id = realisation.id.clone();
        let known = self.0.realisation(&id).await?;
        let known = known.map(|value| Realisation { id, value });
        let merged = merge(&self.0, known.as_ref(), realisation)?;
        if known.as_ref() == Some(&merged) {
            return Ok(());
        }
        let name = layout::realisation(&merged.id);
        let text = merged.value.to_json().to_string();
        self.0.put(&name, text.into()).await
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::DrvOutput,
    ) -> Result<Option<legacy::Realisation>> {
        self.0.legacy_realisation(id).await
    }

    async fn register_legacy(
        &self,
        realisation: &legacy::Realisation,
        check: &SigCheck,
    ) -> Result<()> {
        check.check_legacy_realisation(realisation)?;
        self.0.init().await?;
        let known = self.0.legacy_realisation(&realisation.id).await?;
        let merged = merge_legacy(&self.0, known.as_ref(), realisation)?;
        if known.as_ref() == Some(&merged) {
            return Ok(());
        }
        let name = layout::legacy_realisation(&merged.id);
        let text = merged.to_json().to_string();
        self.0.put(&name, text.into()).await
    }
}

impl Inner {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let name = layout::realisation(id);
        let text = self.objects.read(&name, MAX_REALISATION_BYTES).await?;
        let parse = |text: Bytes| realisations::parse(id, &format!("{self}/{name}"), &text);
        text.map(parse).transpose()
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::DrvOutput,
    ) -> Result<Option<legacy::Realisation>> {
        let name = layout::legacy_realisation(id);
        let text = self.objects.read(&name, MAX_REALISATION_BYTES).await?;
        let parse = |text: Bytes| realisations::parse_legacy(id, &format!("{self}/{name}"), &text);
        text.map(parse).transpose()
    }

    /// Writes a small object.
    pub(super) async fn put(&self, name: &str, content: Bytes) -> Result<()> {
        let mime = layout::mime_type(name);
        let written = self.objects.write(name, content, mime, false).await;
        written.map(drop)
    }
}

/// Logs are held whole before they are sent.
const MAX_LOG_BYTES: usize = 64 << 20;
