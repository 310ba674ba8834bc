//! What is asked about paths, and small changes.

use super::context::{OperationContext, OperationResult, refused};
use crate::worker::ops::{CollectGarbage, FoundRealisation, QueryRealisation, RegisterDrvOutput};
use bstr::BStr;
use futures::{StreamExt, TryStreamExt};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
};
use tk_narinfo::PathInfo;
use tk_path::{ContentAddress, HashPart, OutputName, StorePath};
use tk_store::{
    Error, GcOptions, GcReport, NarCheck, RepairSource, Root, Store, StoreExt, StoreVerifyOptions,
    SubstitutablePathInfo, VerifyDepth,
    log::{Level, LogEvent, LogSink},
};

impl OperationContext {
    /// Those that are there; with `substitute` after those that were not were fetched, by a store that can.
    pub async fn valid(
        &self,
        paths: BTreeSet<StorePath>,
        substitute: bool,
    ) -> OperationResult<BTreeSet<StorePath>> {
        match &self.abilities.substitutes {
            Some(store) if substitute => Ok(store.valid_or_fetched(&paths, &*self.events).await?),
            _ => Ok(self.abilities.store.valid(&paths).await?),
        }
    }

    pub async fn substitutable(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> OperationResult<BTreeSet<StorePath>> {
        match &self.abilities.substitutes {
            Some(store) => Ok(store.substitutable_paths(paths).await?),
            None => Ok(BTreeSet::new()),
        }
    }

    pub async fn substitutable_infos(
        &self,
        paths: &BTreeMap<StorePath, Option<ContentAddress>>,
    ) -> OperationResult<BTreeMap<StorePath, SubstitutablePathInfo>> {
        match &self.abilities.substitutes {
            Some(store) => Ok(store.substitutable_infos(paths).await?),
            None => Ok(BTreeMap::new()),
        }
    }

    pub async fn info(&self, path: &StorePath) -> OperationResult<Option<PathInfo>> {
        Ok(self.abilities.store.info(path).await?)
    }

    /// Those that are valid.
    pub async fn infos(&self, paths: BTreeSet<StorePath>) -> OperationResult<Vec<PathInfo>> {
        let infos = self.abilities.store.infos_of(paths);
        Ok(infos
            .try_filter_map(|(_, info)| async { Ok(info) })
            .try_collect()
            .await?)
    }

    pub async fn deriver(&self, path: &StorePath) -> OperationResult<Option<StorePath>> {
        Ok(self.abilities.store.require_info(path).await?.deriver)
    }

    pub async fn all(&self) -> OperationResult<BTreeSet<StorePath>> {
        let graph = self.able(&self.abilities.graph, "cannot list its paths")?;
        Ok(graph.all_paths().await?)
    }

    pub async fn referrers(&self, path: &StorePath) -> OperationResult<BTreeSet<StorePath>> {
        let graph = self.able(&self.abilities.graph, "does not know who refers to a path")?;
        Ok(graph.referrers(path).await?)
    }

    /// Nix's answer of stores that do not know is the empty set, too.
    pub async fn derivers(&self, path: &StorePath) -> OperationResult<BTreeSet<StorePath>> {
        match &self.abilities.graph {
            Some(graph) => Ok(graph.valid_derivers(path).await?),
            None => Ok(BTreeSet::new()),
        }
    }

    /// What the store knows about outputs, and what their derivation says.
    pub async fn output_map(
        &self,
        drv: &StorePath,
    ) -> OperationResult<BTreeMap<OutputName, Option<StorePath>>> {
        Ok(self.abilities.output_map(drv).await?)
    }

    pub async fn find(&self, part: &HashPart) -> OperationResult<Option<StorePath>> {
        Ok(self.abilities.store.find(part).await?)
    }

    /// Stores without roots never collect, so that every root holds by itself.
    pub async fn add_temp_roots(&self, paths: &BTreeSet<StorePath>) -> OperationResult<()> {
        match &self.abilities.roots {
            Some(roots) => Ok(roots.add_temp_roots(paths).await?),
            None => Ok(()),
        }
    }

    pub async fn add_indirect_root(&self, link: &BStr) -> OperationResult<()> {
        match &self.abilities.roots {
            Some(roots) => Ok(roots.add_indirect_root(file(link)).await?),
            None => Ok(()),
        }
    }

    pub async fn add_perm_root(&self, path: &StorePath, link: &BStr) -> OperationResult<()> {
        self.require_trust("making a root through the server")?;
        let roots = self.able(&self.abilities.roots, "has no roots")?;
        Ok(roots.add_perm_root(path, file(link)).await?)
    }

    /// Where the links of others are is not for everybody to know.
    pub async fn roots(&self) -> OperationResult<Vec<Root>> {
        let Some(roots) = &self.abilities.roots else {
            return Ok(Vec::new());
        };
        let mut roots = roots.roots().await?;
        if !self.trusted {
            for root in &mut roots {
                root.link = "{censored}".to_owned();
            }
        }
        Ok(roots)
    }

    pub async fn collect_garbage(&self, wanted: CollectGarbage) -> OperationResult<GcReport> {
        let gc = self.able(&self.abilities.gc, "cannot collect garbage")?;
        if wanted.ignore_liveness {
            return Err(refused("what is alive is never deleted"));
        }
        if wanted.only.is_some() || wanted.with_referrers {
            let what = "cannot limit a garbage collection to some paths";
            return Err(self.abilities.unsupported(what).into());
        }
        let mut options = GcOptions::new(wanted.action);
        options.max_freed = wanted.max_freed;
        let collected = gc.collect_garbage(&options, &*self.events).await;
        let report = collected.map_err(|error| self.without_roots(error))?;
        match report.failed.first() {
            Some(first) => Err(refused(first)),
            None => Ok(report),
        }
    }

    /// Whoever is not trusted does not get to know what others keep, see [`OperationContext::roots`].
    fn without_roots(&self, error: Error) -> Error {
        match error {
            Error::Refused { who, words } if self.require_trust("").is_err() => {
                let end = words.find(ALIVE).map_or(words.len(), |at| at + ALIVE.len());
                let words = words[..end].to_owned();
                Error::Refused { who, words }
            }
            error => error,
        }
    }

    pub async fn optimise(&self) -> OperationResult<()> {
        let what = "cannot share equal files";
        let store = self.able(&self.abilities.maintenance, what)?;
        store.optimise(&*self.events).await?;
        Ok(())
    }

    /// Whether errors are left. Each is told as it is found.
    pub async fn verify(&self, contents: bool, repair: bool) -> OperationResult<bool> {
        if repair {
            self.require_trust("repairing paths")?;
        }
        if let Some(store) = &self.abilities.maintenance {
            let mut options = StoreVerifyOptions::default();
            if contents {
                options.depth = VerifyDepth::Contents;
            }
            if repair {
                options.repair = RepairSource::Substituters;
            }
            let report = store.verify_store(&options, &*self.events).await?;
            return Ok(report.errors_left);
        }
        if repair {
            return Err(self.abilities.unsupported("cannot repair paths").into());
        }
        let paths = self.all().await?;
        let mut errors = false;
        let store = &self.abilities.store;
        let mut infos = store.infos_of(paths);
        while let Some(found) = infos.next().await {
            let wrong = match found {
                Ok((_, Some(info))) if contents => verify_path(&**store, &info).await.err(),
                Ok(_) => None,
                Err(error) => Some(error),
            };
            if let Some(error) = wrong {
                errors = true;
                let event = LogEvent::message(Level::Error, error.to_line());
                self.events.event(event);
            }
        }
        Ok(errors)
    }

    /// In the form in which it is asked for; `old`: before 1.31.
    pub async fn realisation(
        &self,
        wanted: QueryRealisation,
        old: bool,
    ) -> OperationResult<FoundRealisation> {
        let store = self.abilities.realisations.as_ref();
        Ok(match wanted {
            QueryRealisation::New(id) => FoundRealisation::New(match store {
                Some(store) => store.realisation(&id).await?,
                None => None,
            }),
            QueryRealisation::Legacy(id) => {
                let found = match store {
                    Some(store) => store.legacy_realisation(&id).await?,
                    None => None,
                };
                if old {
                    FoundRealisation::Paths(found.map(|r| r.out_path).into_iter().collect())
                } else {
                    FoundRealisation::Legacy(found.into_iter().collect())
                }
            }
        })
    }

    pub async fn register(&self, realisation: RegisterDrvOutput) -> OperationResult<()> {
        let store = self.able(&self.abilities.realisations, "keeps no realisations")?;
        // There is no way to ask for a check: Nix does none for those whom it trusts.
        let check = self.check(true);
        match realisation {
            RegisterDrvOutput::New(realisation) => store.register(&realisation, &check).await?,
            RegisterDrvOutput::Legacy(realisation) => {
                store.register_legacy(&realisation, &check).await?
            }
        }
        Ok(())
    }
}

async fn verify_path(store: &dyn Store, info: &PathInfo) -> Result<(), Error> {
    let mut check = NarCheck::new(info, store.to_string());
    let mut nar = store.nar(&info.path).await?;
    while let Some(chunk) = nar.try_next().await? {
        check.update(&chunk)?;
    }
    check.finish()
}

fn file(link: &BStr) -> &Path {
    Path::new(OsStr::from_bytes(link))
}
/// What is said of a path that is not deleted, before the reason.
const ALIVE: &str = "since it is still alive";
