//! All that is wanted: what can be fetched, then derivation by derivation, as many at once as there
//! are slots.

use crate::{
    RemoteConfig,
    graph::{BuildGraph, BuildNode, opaque, static_path},
    job::{BuildJob, SharedJobs, failure},
    log::Numbers,
    pool::MachinePool,
    realised::Realised,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tk_narinfo::{
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
    realisation::UnkeyedRealisation,
};
use tk_path::{DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StorePath};
use tk_store::{
    Abilities, BuildMode, Error, Result,
    log::{Level, LogEvent, LogSink, strip_ansi, strip_error_prefix},
};

/// See [`crate::RemoteBuilder`].
pub async fn run(
    local: &Abilities,
    config: &RemoteConfig,
    paths: &[DerivedPath],
    log: &dyn LogSink,
) -> Result<Vec<KeyedBuildResult>> {
    let opaque = paths.iter().filter_map(opaque).cloned().collect();
    // Asked before anything is fetched, to tell what was there from what was substituted.
    let before = local.store.valid(&opaque).await?;
    let fetched = fetch(local, paths, log).await?;
    let realised = Realised::new(local.store.dir().clone());
    let mut graph = BuildGraph::of(local, &realised, paths, &BTreeSet::new()).await?;
    let known = graph.nodes.values().all(BuildNode::is_known);
    let shared = SharedJobs {
        local,
        realised,
        can_tell: !known && Realised::are_kept(local).await?,
        config,
        pool: MachinePool::new(config),
        numbers: Numbers::default(),
        log,
    };
    let nodes = std::mem::take(&mut graph.nodes);
    let mut asked = BTreeSet::new();
    for path in paths {
        if let DerivedPath::Built { drv, .. } = path {
            asked.insert(static_path(drv)?);
        }
    }
    let mut schedule = Schedule {
        shared: &shared,
        waiting: nodes.iter().map(|(p, n)| (p, n.waits_for.len())).collect(),
        nodes: &nodes,
        asked,
        known: std::mem::take(&mut graph.known),
        done: BTreeMap::new(),
        running: FuturesUnordered::new(),
    };
    schedule.run().await?;
    let (done, known) = (schedule.done, schedule.known);
    let there = local.store.valid(&opaque).await?;
    let result = |path: &DerivedPath| -> Result<KeyedBuildResult> {
        let result = match path {
            DerivedPath::Opaque(path) => match there.contains(path) {
                true if before.contains(path) => BuildResult::new(BuildStatus::AlreadyValid),
                true => BuildResult::new(BuildStatus::Substituted),
                false => BuildResult {
                    error: format!("{path} is not there, and no substituter has it"),
                    ..BuildResult::new(BuildStatus::NoSubstituters)
                },
            },
            DerivedPath::Built { drv, outputs } => {
                let drv = static_path(drv)?;
                let names = graph.names(&drv, outputs)?;
                told(&drv, &names, done.get(&drv), &known, &fetched)
            }
        };
        let path = path.clone();
        Ok(KeyedBuildResult { path, result })
    };
    paths.iter().map(result).collect()
}

/// The result for `names` of `drv`, which was `done` or had not to be.
fn told(
    drv: &StorePath,
    names: &BTreeSet<OutputName>,
    done: Option<&BuildResult>,
    known: &HashMap<(StorePath, OutputName), StorePath>,
    fetched: &BTreeSet<StorePath>,
) -> BuildResult {
    let path = |name: &OutputName| known.get(&(drv.clone(), name.clone())).cloned();
    let was_fetched = || names.iter().filter_map(path).any(|p| fetched.contains(&p));
    let mut result = match done {
        Some(result) => result.clone(),
        None if was_fetched() => BuildResult::new(BuildStatus::Substituted),
        None => BuildResult::new(BuildStatus::AlreadyValid),
    };
    if result.is_success() {
        let outputs = names
            .iter()
            .filter_map(|name| Some((name.clone(), path(name)?)));
        let outputs = outputs.map(|(name, path)| (name, UnkeyedRealisation::new(path)));
        result.outputs = outputs.collect();
    }
    result
}

/// Fetches what substituters have; gives what was to be fetched. What fails is built.
async fn fetch(
    local: &Abilities,
    paths: &[DerivedPath],
    log: &dyn LogSink,
) -> Result<BTreeSet<StorePath>> {
    let Some(build) = &local.build else {
        return Ok(BTreeSet::new());
    };
    let missing = build.missing(paths).await?;
    let wanted: Vec<_> = missing
        .substitute
        .iter()
        .cloned()
        .map(DerivedPath::Opaque)
        .collect();
    if !wanted.is_empty() {
        build.build(&wanted, BuildMode::Normal, log).await?;
    }
    Ok(missing.substitute)
}

/// What is being built, what waits for it, and what became of the rest.
struct Schedule<'a> {
    shared: &'a SharedJobs<'a>,
    nodes: &'a BTreeMap<StorePath, BuildNode>,
    /// For how many others each waits.
    waiting: BTreeMap<&'a StorePath, usize>,
    asked: BTreeSet<StorePath>,
    known: HashMap<(StorePath, OutputName), StorePath>,
    done: BTreeMap<StorePath, BuildResult>,
    running: FuturesUnordered<BoxFuture<'a, (&'a StorePath, Result<BuildResult>)>>,
}

impl<'a> Schedule<'a> {
    async fn run(&mut self) -> Result<()> {
        loop {
            self.start();
            let Some((path, result)) = self.running.next().await else {
                break;
            };
            let result = result?;
            let failed = !result.is_success();
            if failed && !self.asked.contains(path) {
                // Whoever asked for something that needs it is told what really failed.
                let text = format!("error: {}", strip_error_prefix(&strip_ansi(&result.error)));
                self.shared.log.event(LogEvent::message(Level::Error, text));
            }
            self.finish(path, result);
            if failed && !self.shared.config.keep_going {
                self.running.clear();
                break;
            }
        }
        self.give_up();
        Ok(())
    }

    /// Starts what waits for nothing.
    fn start(&mut self) {
        let ready = self.waiting.iter().filter(|(_, n)| **n == 0);
        let free = MOST_AT_ONCE.saturating_sub(self.running.len());
        let ready: Vec<_> = ready.map(|(path, _)| *path).take(free).collect();
        for path in ready {
            self.waiting.remove(path);
            let node = &self.nodes[path];
            let known = |drv: &StorePath, name: &OutputName| {
                self.known.get(&(drv.clone(), name.clone())).cloned()
            };
            let shared = self.shared;
            let job = BuildJob::new(shared, path, node, known);
            let built = async move {
                match job {
                    Some(job) => (path, job.run(shared).await),
                    None => (path, build_here(shared, path, node).await),
                }
            };
            self.running.push(built.boxed());
        }
    }

    fn finish(&mut self, path: &'a StorePath, result: BuildResult) {
        if result.is_success() {
            for (name, value) in &result.outputs {
                let id = (path.clone(), name.clone());
                self.known.insert(id, value.out_path.clone());
            }
            for (other, n) in &mut self.waiting {
                *n -= usize::from(self.nodes[*other].waits_for.contains(path));
            }
        }
        self.done.insert(path.clone(), result);
    }

    /// Says of all that was not built why not.
    fn give_up(&mut self) {
        let mut left: Vec<_> = self.nodes.keys().collect();
        left.retain(|path| !self.done.contains_key(*path));
        loop {
            // Each round may add failures that others depend on, so this goes on until a round adds none.
            let before = left.len();
            left.retain(|path| {
                let mut needs = self.nodes[*path].waits_for.iter();
                let failed =
                    |dep: &&StorePath| self.done.get(*dep).is_some_and(|r| !r.is_success());
                let Some(dep) = needs.find(failed) else {
                    return true;
                };
                let result = BuildResult {
                    error: format!("a dependency failed: {}", dep.name()),
                    ..BuildResult::new(BuildStatus::DependencyFailed)
                };
                self.done.insert((*path).clone(), result);
                false
            });
            if left.len() == before {
                break;
            }
        }
        for path in left {
            let words = if self.done.is_empty() {
                "what it needs needs it, too"
            } else {
                "it was given up, because another build failed"
            };
            self.done.insert(path.clone(), failure(words));
        }
    }
}

/// A derivation whose outputs only building tells, and that no machine builds: the store itself does.
async fn build_here(
    shared: &SharedJobs<'_>,
    path: &StorePath,
    node: &BuildNode,
) -> Result<BuildResult> {
    let Some(build) = &shared.local.build else {
        let (needs, store) = (node.needs(), &shared.local.store);
        let words = if node.is_impure() {
            format!("{path} is impure, which only the store here builds")
        } else if !shared.can_tell {
            format!(
                "the outputs of {path} are known only when it is built, and {store} keeps no \
                 realisations, which would tell it"
            )
        } else {
            shared.pool.why_none(&needs)
        };
        return Ok(failure(format!("{words}; and {store} does not build")));
    };
    let wanted = DerivedPath::Built {
        drv: SingleDerivedPath::Opaque(path.clone()),
        outputs: OutputsSpec::Names(node.wanted.clone()),
    };
    let results = build
        .build(&[wanted], BuildMode::Normal, shared.log)
        .await?;
    match results.into_iter().next() {
        Some(keyed) => Ok(keyed.result),
        None => Err(Error::invalid(format!(
            "{} told nothing of {path}",
            shared.local.store
        ))),
    }
}

/// Derivations that are being built or wait for a slot; the slots bound those that are built.
const MOST_AT_ONCE: usize = 1024;
