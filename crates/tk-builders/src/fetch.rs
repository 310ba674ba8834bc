//! Fetching what caches have of what would be built.
//!
//! ```text
//! what is wanted → derivations whose outputs neither the store nor a cache has, and what these need
//!                → outputs of the rest that the store lacks: fetched with their closure, each path from the
//!                  first cache that gives what it promises → what no cache gave is built, so: again
//! ```

use crate::{
    graph::{BuildGraph, opaque},
    realised::Realised,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tk_path::{DerivedPath, StorePath};
use tk_store::{
    Abilities, Error, Result, SeveralStores, SigCheck, Store,
    copy::{CopyOptions, CopyReport, Plan, Progress, Reach, plan},
};

/// The paths that [`fetch`] brought to the store, and those that it could not bring.
#[derive(Debug, Default)]
pub struct FetchReport {
    /// The paths that were fetched, each with the bytes of its NAR.
    pub paths: BTreeMap<StorePath, u64>,
    /// What could not be had where it was said to be, or was turned down. It is left to be built.
    pub failed: Vec<(StorePath, Error)>,
}

/// What [`fetch`] would do.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fetchable {
    /// The paths that would be fetched, each with the bytes of its NAR.
    pub paths: BTreeMap<StorePath, u64>,
    /// Derivations that would have to be built.
    pub build: BTreeSet<StorePath>,
}

/// Fetches what `caches` have of `targets`, and of what these are built from, with all that it refers to, so that
/// it need not be built. Of each path the first cache that has it is asked first, and others when it does not
/// give what it promises; signatures are checked by `check`.
///
/// Outputs whose paths only building tells are found by their realisations, which are told to `store`.
///
/// # Errors
/// When the store cannot be asked, or a cache about something that no other has: that is never taken
/// for "absent".
pub async fn fetch(
    store: &Abilities,
    caches: &[Abilities],
    targets: &[DerivedPath],
    check: &SigCheck,
    progress: Arc<dyn Progress>,
) -> Result<FetchReport> {
    let look = PresenceQuery::new(store, caches, targets, check)?;
    let source: Arc<dyn Store> = look.caches.clone();
    let (mut fetched, mut lacking) = (FetchReport::default(), BTreeSet::new());
    // What failed is left out of the next look, whose plan may then be another; the end is a round without
    // news.
    loop {
        let found = look.at(&lacking).await?;
        let mut is_over = true;
        let plans = look.plans(&found.roots).await?;
        for (path, error) in plans.incomplete {
            is_over &= !lacking.insert(path.clone());
            fetched.failed.push((path, error));
        }
        for plan in plans.complete {
            let report = plan.run(&source, &*store.store, progress.clone()).await?;
            is_over &= report.copied.is_empty();
            let copied = report.copied.iter();
            let copied = copied.map(|info| (info.path.clone(), info.nar_size));
            fetched.paths.extend(copied);
            for (path, error) in causes(report) {
                // Another cache may have it.
                if look.caches.bar(&path) {
                    is_over = false;
                } else {
                    is_over &= !lacking.insert(path.clone());
                    fetched.failed.push((path, error));
                }
            }
        }
        look.tell(&found, &lacking).await?;
        if is_over {
            return Ok(fetched);
        }
    }
}

/// What [`fetch`] would do with the same arguments, if caches give what they promise.
///
/// # Errors
/// As [`fetch`].
pub async fn fetchable(
    store: &Abilities,
    caches: &[Abilities],
    targets: &[DerivedPath],
    check: &SigCheck,
) -> Result<Fetchable> {
    let look = PresenceQuery::new(store, caches, targets, check)?;
    let mut lacking = BTreeSet::new();
    loop {
        let found = look.at(&lacking).await?;
        let plans = look.plans(&found.roots).await?;
        if plans.incomplete.is_empty() {
            let missing = plans.complete.iter().flat_map(|plan| &plan.missing);
            return Ok(Fetchable {
                paths: missing
                    .map(|item| (item.path.clone(), item.nar_size))
                    .collect(),
                build: found.build,
            });
        }
        lacking.extend(plans.incomplete.into_iter().map(|(path, _)| path));
    }
}

/// The failures that do not follow from others.
fn causes(report: CopyReport) -> impl Iterator<Item = (StorePath, Error)> {
    let failed = report.failed.into_iter();
    failed.filter(|(_, error)| !matches!(error, Error::MissingReference { .. }))
}

/// Looks at what the store and the caches have together.
struct PresenceQuery<'a> {
    store: &'a Abilities,
    caches: Arc<SeveralStores>,
    all: Abilities,
    realised: Realised,
    wanted: Vec<DerivedPath>,
    options: CopyOptions,
}

/// What one look at the store and the caches found.
#[derive(Default)]
struct FoundPaths {
    /// What the store lacks, and caches have.
    roots: BTreeSet<StorePath>,
    /// Derivations that have to be built.
    build: BTreeSet<StorePath>,
    /// Derivations that have not to, with paths of outputs.
    realised: BTreeMap<StorePath, BTreeSet<StorePath>>,
}

/// How roots come from the caches.
struct Plans {
    complete: Vec<Plan>,
    /// What refers to something that no cache has.
    incomplete: Vec<(StorePath, Error)>,
}

impl<'a> PresenceQuery<'a> {
    fn new(
        store: &'a Abilities,
        caches: &[Abilities],
        targets: &[DerivedPath],
        check: &SigCheck,
    ) -> Result<Self> {
        let all = [store.clone()].into_iter().chain(caches.iter().cloned());
        let mut options = CopyOptions::new(check.clone());
        options.reach = Reach::Missing;
        Ok(PresenceQuery {
            store,
            caches: Arc::new(SeveralStores::new(caches.iter().cloned())?.prefer(check.clone())),
            all: Arc::new(SeveralStores::new(all)?).abilities(),
            realised: Realised::new(store.store.dir().clone()),
            wanted: targets.to_vec(),
            options,
        })
    }

    /// What there is, where `lacking` counts as absent.
    async fn at(&self, lacking: &BTreeSet<StorePath>) -> Result<FoundPaths> {
        let graph = BuildGraph::of(&self.all, &self.realised, &self.wanted, lacking).await;
        let graph = match graph {
            Ok(graph) => graph,
            // Whoever builds it says what is wrong with it.
            Err(Error::Invalid { .. } | Error::NotFound { .. }) => return Ok(FoundPaths::default()),
            Err(error) => return Err(error),
        };
        let mut found = FoundPaths::default();
        let mut paths: BTreeSet<_> = self.wanted.iter().filter_map(opaque).cloned().collect();
        paths.retain(|path| !lacking.contains(path));
        for ((drv, _), path) in &graph.known {
            if !graph.nodes.contains_key(drv) && !lacking.contains(path) {
                paths.insert(path.clone());
                let of_drv = found.realised.entry(drv.clone()).or_default();
                of_drv.insert(path.clone());
            }
        }
        let there = self.store.store.valid(&paths).await?;
        let absent = &paths - &there;
        // What is no output may be nowhere.
        found.roots = self.caches.valid(&absent).await?;
        found.build = graph.nodes.into_keys().collect();
        Ok(found)
    }

    async fn plans(&self, roots: &BTreeSet<StorePath>) -> Result<Plans> {
        let mut plans = Plans {
            complete: Vec::new(),
            incomplete: Vec::new(),
        };
        if roots.is_empty() {
            return Ok(plans);
        }
        match self.plan(roots).await {
            Ok(plan) => {
                plans.complete.push(plan);
                return Ok(plans);
            }
            Err(error) if is_incomplete(&error) => {}
            Err(error) => return Err(error),
        }
        let mut whole = BTreeSet::new();
        for root in roots {
            match self.plan(&[root.clone()].into()).await {
                Ok(_) => drop(whole.insert(root.clone())),
                Err(error) if is_incomplete(&error) => plans.incomplete.push((root.clone(), error)),
                Err(error) => return Err(error),
            }
        }
        if !whole.is_empty() {
            plans.complete.push(self.plan(&whole).await?);
        }
        Ok(plans)
    }

    async fn plan(&self, roots: &BTreeSet<StorePath>) -> Result<Plan> {
        plan(&*self.caches, &*self.store.store, roots, &self.options).await
    }

    async fn pass_on(&self, from: &Abilities, drv: &StorePath) -> Result<()> {
        let (all, to, check) = (&self.all, self.store, &self.options.check);
        self.realised.pass_on(all, from, to, drv, check).await
    }

    /// Tells the store what outputs are that only building tells, and that it has now.
    async fn tell(&self, found: &FoundPaths, lacking: &BTreeSet<StorePath>) -> Result<()> {
        let paths = found.realised.values().flatten();
        let paths: BTreeSet<_> = paths
            .filter(|path| !lacking.contains(*path))
            .cloned()
            .collect();
        let there = self.store.store.valid(&paths).await?;
        for (drv, outputs) in &found.realised {
            if outputs.iter().any(|path| found.roots.contains(path)) && outputs.is_subset(&there) {
                let from = self.caches.clone().abilities();
                let told = self.pass_on(&from, drv);
                told.await?;
            }
        }
        Ok(())
    }
}

fn is_incomplete(error: &Error) -> bool {
    matches!(
        error,
        Error::NotFound { .. } | Error::MissingReference { .. }
    )
}
