//! Fetching for stores that have nobody who does.

use crate::{
    Abilities, ClientSettings, Error, Maintain, OptimiseReport, RepairSource, Result, Sessions,
    SigCheck, Store, StoreVerifyOptions, StoreVerifyReport, SubstitutablePathInfo, Substitute,
    copy::{CopyOptions, Reach, plan},
    log::{Level, LogEvent, LogSink},
};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
};
use tk_narinfo::PathInfo;
use tk_path::{ContentAddress, StorePath};

/// The stores that paths are fetched from.
#[async_trait]
pub trait Sources: Debug + Send + Sync {
    /// Opens them as one: those that `uris` name, or those that are configured. `None` if there are
    /// none. Asked each time when something is missing, so that nothing of a failure is remembered.
    async fn open(&self, uris: Option<&[String]>) -> Result<Option<Arc<dyn Store>>>;
}

/// A store that fetches what it lacks from others, by copying it from there: what a server does for its
/// clients where the store behind it has no substituters of its own.
///
/// # Security
/// What is fetched is checked as all that is added: its content against its hash, its signatures
/// against what was demanded when this was made. Clients' settings decide whether anything is
/// fetched and from where; who may set that is for the server to say.
#[derive(Debug, Clone)]
pub struct Fetching {
    into: Abilities,
    sources: Arc<dyn Sources>,
    /// Other sources than the configured ones.
    named: Option<Vec<String>>,
    check: SigCheck,
}

impl Fetching {
    /// Fetches for `into` from `sources` what satisfies `check`.
    pub fn new(into: Abilities, sources: Arc<dyn Sources>, check: SigCheck) -> Self {
        Fetching {
            into,
            sources,
            named: None,
            check,
        }
    }

    /// The store with all that it can do, this included.
    pub fn abilities(self) -> Abilities {
        let fetching = Arc::new(self);
        let mut abilities = fetching.into.clone();
        abilities.substitutes = Some(fetching.clone());
        if let Some(store) = abilities.maintenance {
            let sources = fetching.clone();
            abilities.maintenance = Some(Arc::new(MaintainedFromSources { store, sources }));
        }
        abilities.sessions = Some(fetching);
        abilities
    }

    async fn open(&self) -> Result<Option<Arc<dyn Store>>> {
        self.sources.open(self.named.as_deref()).await
    }

    /// What the sources know about those of `paths` that they have.
    async fn offered(&self, paths: Vec<StorePath>) -> Result<BTreeMap<StorePath, PathInfo>> {
        let Some(from) = self.open().await? else {
            return Ok(BTreeMap::new());
        };
        let mut answers = from.each_info(stream::iter(paths).boxed());
        let mut offered = BTreeMap::new();
        while let Some((path, info)) = answers.next().await {
            if let Some(info) = info? {
                offered.insert(path, info);
            }
        }
        Ok(offered)
    }

    /// Copies what the sources have of `missing`. What cannot be had is told and left out.
    async fn fetch(&self, missing: BTreeSet<StorePath>, log: &dyn LogSink) -> Result<()> {
        let Some(from) = self.open().await? else {
            return Ok(());
        };
        let mut offered = BTreeSet::new();
        let mut answers = from.each_info(stream::iter(missing).boxed());
        while let Some((path, info)) = answers.next().await {
            match info {
                Ok(Some(_)) => drop(offered.insert(path)),
                Ok(None) => {}
                Err(error) => warn(log, &path, &error),
            }
        }
        if self.copy(&from, &offered, log).await.is_ok() {
            return Ok(());
        }
        // What stands in the way of one need not stand in the way of the others.
        for path in offered {
            let one = BTreeSet::from([path.clone()]);
            if let Err(error) = self.copy(&from, &one, log).await {
                warn(log, &path, &error);
            }
        }
        Ok(())
    }

    async fn copy(
        &self,
        from: &Arc<dyn Store>,
        paths: &BTreeSet<StorePath>,
        log: &dyn LogSink,
    ) -> Result<()> {
        let Abilities { store, roots, .. } = &self.into;
        let options = CopyOptions {
            reach: Reach::Missing,
            ..CopyOptions::new(self.check.clone())
        };
        let plan = plan(&**from, &**store, paths, &options).await?;
        if let Some(roots) = roots {
            let missing = plan.missing.iter().map(|info| info.path.clone());
            roots.add_temp_roots(&missing.collect()).await?;
        }
        for info in &plan.missing {
            let path = store.dir().display(&info.path);
            let words = format!("copying path '{path}' from '{from}'...");
            log.event(LogEvent::message(Level::Info, words));
        }
        let report = plan.run(from, &**store, Arc::new(())).await?;
        for (path, error) in &report.failed {
            warn(log, path, error);
        }
        Ok(())
    }
}

fn warn(log: &dyn LogSink, path: &StorePath, error: &Error) {
    let words = format!("{path} cannot be fetched: {}", error.to_line());
    log.event(LogEvent::message(Level::Warn, words));
}

#[async_trait]
impl Substitute for Fetching {
    /// As with Nix, what cannot be fetched is told to `log` and counts as absent: the client sends it.
    async fn valid_or_fetched(
        &self,
        paths: &BTreeSet<StorePath>,
        log: &dyn LogSink,
    ) -> Result<BTreeSet<StorePath>> {
        let store = &self.into.store;
        let valid = store.valid(paths).await?;
        let missing = paths - &valid;
        if missing.is_empty() {
            return Ok(valid);
        }
        if let Err(error) = self.fetch(missing, log).await {
            let words = format!("nothing can be fetched: {}", error.to_line());
            log.event(LogEvent::message(Level::Warn, words));
        }
        store.valid(paths).await
    }

    async fn substitutable_paths(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> Result<BTreeSet<StorePath>> {
        let offered = self.offered(paths.iter().cloned().collect()).await?;
        Ok(offered.into_keys().collect())
    }

    /// Other store directories are not looked into. How much is to be fetched is not known.
    async fn substitutable_infos(
        &self,
        paths: &BTreeMap<StorePath, Option<ContentAddress>>,
    ) -> Result<BTreeMap<StorePath, SubstitutablePathInfo>> {
        let offered = self.offered(paths.keys().cloned().collect()).await?;
        let infos = offered.into_iter().map(|(path, info)| {
            let known = SubstitutablePathInfo {
                deriver: info.deriver,
                references: info.references,
                download_size: 0,
                nar_size: info.nar_size,
            };
            (path, known)
        });
        Ok(infos.collect())
    }
}

/// A store that looks after itself, and repairs from the sources of another that fetches for it.
#[derive(Debug)]
struct MaintainedFromSources {
    store: Arc<dyn Maintain>,
    sources: Arc<Fetching>,
}

#[async_trait]
impl Maintain for MaintainedFromSources {
    async fn optimise(&self, log: &dyn LogSink) -> Result<OptimiseReport> {
        self.store.optimise(log).await
    }

    async fn verify_store(
        &self,
        options: &StoreVerifyOptions,
        log: &dyn LogSink,
    ) -> Result<StoreVerifyReport> {
        let mut options = options.clone();
        if let RepairSource::Substituters = options.repair {
            let from = self.sources.open().await?;
            options.repair = RepairSource::Stores(from.into_iter().collect());
        }
        self.store.verify_store(&options, log).await
    }
}

impl Sessions for Fetching {
    fn session(&self, log: Arc<dyn LogSink>) -> Abilities {
        let into = self.into.session(log);
        let own = Fetching {
            into,
            ..self.clone()
        };
        own.abilities()
    }

    /// Whether to fetch, and from where.
    fn with_settings(&self, settings: &ClientSettings) -> Option<Abilities> {
        let further = self.into.sessions.as_ref();
        let further = further.and_then(|sessions| sessions.with_settings(settings));
        let named = if settings.use_substitutes {
            named(settings)
        } else {
            Some(Vec::new())
        };
        if further.is_none() && named == self.named {
            return None;
        }
        let own = Fetching {
            into: further.unwrap_or_else(|| self.into.clone()),
            named,
            ..self.clone()
        };
        Some(own.abilities())
    }
}

/// The substituters that a client names.
fn named(settings: &ClientSettings) -> Option<Vec<String>> {
    let given = NAMES.iter().find_map(|name| settings.overrides.get(*name));
    Some(given?.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Nix's names for them.
const NAMES: [&str; 2] = ["substituters", "binary-caches"];
