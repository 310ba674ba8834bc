//! What a store on disk can do beyond [`Store`](tk_store::Store).

use crate::{LocalStore, inner::LocalInner, lock::Cancel, logs};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};
use tk_narinfo::realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy};
use tk_path::{Derivation, OutputName, StorePath};
use tk_store::{
    Abilities, ByteStream, ClientSettings, Describe, Error, Graph, Logs, Maintain, OptimiseReport,
    Realisations, Result, Root, Roots, Sessions, SigCheck, StoreDescription, StoreVerifyOptions,
    StoreVerifyReport, derivation, log::LogSink,
};

impl LocalStore {
    /// The store with all that it can do.
    pub fn abilities(&self) -> Abilities {
        let store = Arc::new(self.clone());
        let mut abilities = Abilities::of(store.clone());
        abilities.content = Some(store.clone());
        abilities.signatures = Some(store.clone());
        abilities.roots = Some(store.clone());
        abilities.gc = Some(store.clone());
        abilities.graph = Some(store.clone());
        abilities.logs = Some(store.clone());
        abilities.realisations = Some(store.clone());
        abilities.maintenance = Some(store.clone());
        abilities.sessions = Some(store.clone());
        abilities.description = Some(store);
        abilities.real_dir = Some(self.real_dir().to_owned());
        abilities
    }
}

#[async_trait]
impl Describe for LocalStore {
    async fn describe(&self) -> Result<StoreDescription> {
        Ok(StoreDescription {
            writable: Some(!self.config().read_only),
            trusted: Some(true),
            ..StoreDescription::of("local")
        })
    }
}

#[async_trait]
impl Maintain for LocalStore {
    async fn optimise(&self, log: &dyn LogSink) -> Result<OptimiseReport> {
        LocalStore::optimise(self, log).await
    }

    /// [`RepairSource::Substituters`](tk_store::RepairSource::Substituters) are none.
    async fn verify_store(
        &self,
        options: &StoreVerifyOptions,
        log: &dyn LogSink,
    ) -> Result<StoreVerifyReport> {
        self.verify_all(options, log).await
    }
}

#[async_trait]
impl Graph for LocalStore {
    async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        self.all().await
    }

    async fn all_readable(&self) -> Result<(BTreeSet<StorePath>, Vec<(String, Error)>)> {
        LocalStore::all_readable(self).await
    }

    async fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        LocalStore::referrers(self, path).await
    }

    async fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        LocalStore::valid_derivers(self, path).await
    }

    async fn output_map(&self, drv: &StorePath) -> Result<BTreeMap<OutputName, Option<StorePath>>> {
        let path = drv.clone();
        let found = self.run(move |store| store.output_map(&path));
        let (read, mut outputs) = found.await?;
        derivation::fill_in(self, drv, &read, self, &mut outputs).await?;
        Ok(outputs)
    }
}

impl Sessions for LocalStore {
    fn session(&self, _: Arc<dyn LogSink>) -> Abilities {
        self.of_client().abilities()
    }

    /// There is nothing to set: nothing is built nor fetched.
    fn with_settings(&self, _: &ClientSettings) -> Option<Abilities> {
        None
    }
}

#[async_trait]
impl Roots for LocalStore {
    async fn add_temp_roots(&self, paths: &BTreeSet<StorePath>) -> Result<()> {
        self.inner().require_writable()?;
        let (paths, roots) = (paths.clone(), self.temp_roots().clone());
        let cancel = Cancel::default();
        let _cancel_on_drop = cancel.on_drop();
        let add = move |store: &LocalInner| roots.add_all(&store.config.dir, &paths, &cancel);
        self.run(add).await
    }

    async fn add_indirect_root(&self, link: &Path) -> Result<()> {
        let link = link.to_owned();
        let add = move |store: &LocalInner| store.add_indirect_root(&link);
        self.run(add).await
    }

    /// The link names the path below the store directory, as Nix's do, which leads nowhere where
    /// the store is in a folder of its own.
    async fn add_perm_root(&self, path: &StorePath, link: &Path) -> Result<()> {
        let (path, link) = (path.clone(), link.to_owned());
        let roots = self.temp_roots().clone();
        let add = move |store: &LocalInner| store.add_perm_root(&roots, &path, &link);
        self.run(add).await
    }

    async fn roots(&self) -> Result<Vec<Root>> {
        Ok(self.roots_and_unknown().await?.0)
    }

    async fn roots_and_unknown(&self) -> Result<(Vec<Root>, Vec<Error>)> {
        self.run(LocalInner::all_roots).await
    }

    async fn forget_indirect_root(&self, link: &Path) -> Result<bool> {
        let link = link.to_owned();
        let forget = move |store: &LocalInner| store.forget_indirect_root(&link);
        self.run(forget).await
    }
}

#[async_trait]
impl Logs for LocalStore {
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>> {
        logs::read(self.inner(), drv).await
    }

    /// Compressed with bzip2, as Nix does.
    async fn add_build_log(&self, drv: &StorePath, log: ByteStream) -> Result<()> {
        logs::add(self.inner(), drv, log).await
    }
}

/// A form is known if the database has its table: Nix makes it when `ca-derivations` is on.
#[async_trait]
impl Realisations for LocalStore {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let id = id.clone();
        self.run(move |store| store.db.realisation(&id)).await
    }

    async fn register(&self, realisation: &Realisation, check: &SigCheck) -> Result<()> {
        check.check_realisation(realisation)?;
        let realisation = realisation.clone();
        self.run(move |store| store.db.register_realisation(&realisation))
            .await
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>> {
        let id = id.clone();
        self.run(move |store| store.db.legacy_realisation(&id))
            .await
    }

    async fn register_legacy(
        &self,
        realisation: &legacy::LegacyRealisation,
        check: &SigCheck,
    ) -> Result<()> {
        check.check_legacy_realisation(realisation)?;
        let realisation = realisation.clone();
        self.run(move |store| store.db.register_legacy_realisation(&realisation))
            .await
    }
}

impl LocalInner {
    /// The derivation, what it says of its outputs, and what the database knows of the others.
    fn output_map(&self, path: &StorePath) -> Result<(Derivation, OutputMap)> {
        if !self.is_valid(path)? {
            return Err(Error::NotFound {
                path: path.clone(),
                store: self.uri.clone(),
            });
        }
        let mut known = self.db.outputs(path)?;
        let drv = self.derivation(path)?;
        let mut outputs = BTreeMap::new();
        for (name, how) in &drv.outputs {
            let output = how
                .path(&self.config.dir, &drv.name, name)
                .map_err(|e| Error::malformed(self.config.dir.path(path), e))?;
            outputs.insert(name.clone(), output.or_else(|| known.remove(name)));
        }
        Ok((drv, outputs))
    }
}

type OutputMap = BTreeMap<OutputName, Option<StorePath>>;
