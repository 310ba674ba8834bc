use crate::{Result, Target};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tk_path::{DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StorePath};
use tk_store::{
    Abilities, Error, SigCheck, Store,
    copy::{CopyOptions, Progress, Reach, plan},
};

/// What [`fetch`] did.
#[derive(Debug, Default)]
pub struct Fetched {
    /// The paths that were fetched, each with the bytes of its NAR.
    pub paths: BTreeMap<StorePath, u64>,
    /// What could not be had where it was said to be, or was turned down. It is left to be built.
    pub failed: Vec<(StorePath, Error)>,
}

/// Fetches the outputs of `targets` that `store` lacks and one of `caches` has, with all they refer
/// to, so that they need not be built.
///
/// Only outputs whose paths are known without building are looked for. The first cache that has
/// all wanted outputs of a target is the one that they come from; signatures are checked by
/// `check`.
///
/// # Errors
/// When the store or a cache cannot be asked: that is never taken for "absent".
pub async fn fetch(
    store: &Abilities,
    caches: &[Arc<dyn Store>],
    targets: &[Target],
    check: &SigCheck,
    progress: Arc<dyn Progress>,
) -> Result<Fetched> {
    let mut fetched = Fetched::default();
    let mut wanted = Vec::new();
    for target in targets {
        wanted.extend(known_outputs(store, target).await?);
    }
    let all: BTreeSet<_> = wanted.iter().flatten().cloned().collect();
    let there = store.store.valid(&all).await?;
    wanted.retain(|outputs| !outputs.is_subset(&there));
    for cache in caches {
        if wanted.is_empty() {
            break;
        }
        let asked: BTreeSet<_> = wanted.iter().flatten().cloned().collect();
        let has = cache.valid(&asked).await?;
        let (here, elsewhere): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|outputs| outputs.is_subset(&has));
        wanted = elsewhere;
        let roots: BTreeSet<_> = here.into_iter().flatten().collect();
        if roots.is_empty() {
            continue;
        }
        let options = CopyOptions {
            reach: Reach::Missing,
            ..CopyOptions::new(check.clone())
        };
        let plan = match plan(&**cache, &*store.store, &roots, &options).await {
            Ok(plan) => plan,
            // It has the outputs, but not all that they refer to.
            Err(error @ (Error::NotFound { .. } | Error::MissingReference { .. })) => {
                fetched
                    .failed
                    .extend(roots.first().cloned().map(|root| (root, error)));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let report = plan.run(cache, &*store.store, progress.clone()).await?;
        let copied = report.copied.into_iter();
        fetched
            .paths
            .extend(copied.map(|info| (info.path, info.nar_size)));
        fetched.failed.extend(report.failed);
    }
    Ok(fetched)
}

/// The wanted outputs of `target`, if the path of each is known.
async fn known_outputs(store: &Abilities, target: &Target) -> Result<Option<BTreeSet<StorePath>>> {
    let (drv, spec) = match &target.path {
        DerivedPath::Opaque(path) => return Ok(Some(BTreeSet::from([path.clone()]))),
        DerivedPath::Built { drv, outputs } => (drv, outputs),
    };
    let (Some(graph), SingleDerivedPath::Opaque(drv)) = (&store.graph, drv) else {
        return Ok(None);
    };
    let outputs = graph.output_map(drv).await?;
    let is_wanted = |name: &OutputName| match spec {
        OutputsSpec::All => true,
        OutputsSpec::Names(names) => names.contains(name),
    };
    let wanted = outputs.into_iter().filter(|(name, _)| is_wanted(name));
    Ok(wanted.map(|(_, path)| path).collect())
}
