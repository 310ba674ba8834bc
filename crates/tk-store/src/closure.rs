//! Closures: everything a path refers to, directly or not.

use crate::{ClosureGraph, Error, Graph, Result, SigCheck, Store, StoreExt, store::unanswered};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tokio::sync::mpsc;

/// The closure of some roots in one store.
#[derive(Debug, Clone, Default)]
pub struct Closure {
    /// Metadata of every path of the closure that the store has.
    pub infos: BTreeMap<StorePath, PathInfo>,
    /// Paths that it does not have, each with one that refers to it (`None` for a root).
    pub absent: BTreeMap<StorePath, Option<StorePath>>,
}

impl Closure {
    /// Just `paths`, without what they refer to.
    pub async fn only(
        store: &dyn Store,
        paths: impl IntoIterator<Item = StorePath>,
    ) -> Result<Self> {
        let mut found = Closure::default();
        let mut answers = store.infos_of(paths.into_iter().collect());
        while let Some(answer) = answers.next().await {
            match answer? {
                (path, Some(info)) => drop(found.infos.insert(path, info)),
                (path, None) => drop(found.absent.insert(path, None)),
            }
        }
        Ok(found)
    }

    /// The sum of the NAR sizes, in bytes.
    pub fn nar_size(&self) -> u64 {
        self.infos.values().map(|info| info.nar_size).sum()
    }

    /// The error for the first absent path, if any is absent.
    pub fn require_complete(&self, store: &dyn Store) -> Result<()> {
        match self.absent.iter().next() {
            None => Ok(()),
            Some((path, referrer)) => Err(absence(path, referrer.as_ref(), store)),
        }
    }

    /// The paths in an order in which each comes after all that it refers to; otherwise by name.
    ///
    /// # Errors
    /// When the references form a circle, which only a lying store can say.
    pub fn references_first(&self) -> Result<Vec<&PathInfo>> {
        let graph = ClosureGraph::new(self);
        let order = graph.references_first()?.into_iter();
        Ok(order.filter_map(|node| graph.info(node)).collect())
    }

    /// The part of it that leads to one of `targets`, with these.
    pub fn leading_to(&self, targets: &[StorePath]) -> Closure {
        let graph = ClosureGraph::new(self);
        let targets: Vec<u32> = targets.iter().filter_map(|path| graph.node(path)).collect();
        let distances = graph.distances_to(&targets);
        let near = distances
            .iter()
            .zip(0u32..)
            .filter(|(far, _)| far.is_some());
        let infos = near.filter_map(|(_, node)| graph.info(node));
        Closure {
            infos: infos
                .map(|info| (info.path.clone(), info.clone()))
                .collect(),
            ..Closure::default()
        }
    }
}

/// Walks from `roots` along the references. References are asked for as they become known, in one
/// stream of questions, so that a distant store is never waited for path by path.
///
/// # Errors
/// Also when the references lead to more than [`MAX_CLOSURE_PATHS`] paths: then the store invents
/// them.
pub async fn closure(
    store: &dyn Store,
    roots: impl IntoIterator<Item = StorePath>,
) -> Result<Closure> {
    walk(store, roots, None, ClosureSize::default()).await
}

/// What is demanded of paths, and where paths are of which nothing is demanded any more.
pub(crate) type Demand<'a> = (&'a SigCheck, &'a dyn Store);

/// As [`closure`], but does not go beyond paths that do not meet `demand`: whoever invents paths
/// does not sign them.
pub(crate) async fn walk(
    store: &dyn Store,
    roots: impl IntoIterator<Item = StorePath>,
    demand: Option<Demand<'_>>,
    mut size: ClosureSize,
) -> Result<Closure> {
    let mut closure = Closure::default();
    let (ask, questions) = mpsc::unbounded_channel();
    let mut asked = BTreeMap::new();
    for root in roots {
        enqueue(root, None, &mut asked, &ask);
    }
    if asked.is_empty() {
        return Ok(closure);
    }
    let questions = stream::unfold(questions, |mut questions| async {
        questions.recv().await.map(|path| (path, questions))
    });
    let mut answers = store.infos(questions.boxed());
    // Paths that nobody trusted has signed.
    let mut doubtful = BTreeSet::new();
    // The store does not know when the questions end: it is this count that tells.
    let mut open = asked.len();
    loop {
        while open > 0 {
            let Some(answer) = answers.next().await else {
                return Err(unanswered(store, open));
            };
            let (path, info) = answer?;
            open -= 1;
            let Some(info) = info else {
                let referrer = asked.get(&path).cloned().flatten();
                closure.absent.insert(path, referrer);
                continue;
            };
            size.add(store, &info)?;
            if demand.is_some_and(|(check, _)| check.check(store.dir(), &info).is_err()) {
                doubtful.insert(path.clone());
            } else {
                open += follow(store, &info, &mut asked, &ask, &mut size)?;
            }
            closure.infos.insert(path, info);
        }
        let Some((_, trusting)) = demand.filter(|_| !doubtful.is_empty()) else {
            return Ok(closure);
        };
        // What that store has is not added to it, so no signature is demanded; what it refers to
        // is wanted as before. One question for all of them saves round trips.
        for path in trusting.valid(&std::mem::take(&mut doubtful)).await? {
            if let Some(info) = closure.infos.get(&path) {
                open += follow(store, info, &mut asked, &ask, &mut size)?;
            }
        }
    }
}

/// Asks for what `info` refers to; how many questions that are.
fn follow(
    store: &dyn Store,
    info: &PathInfo,
    asked: &mut BTreeMap<StorePath, Option<StorePath>>,
    ask: &mpsc::UnboundedSender<StorePath>,
    size: &mut ClosureSize,
) -> Result<usize> {
    let mut new = 0;
    for reference in &info.references {
        new += usize::from(enqueue(reference.clone(), Some(&info.path), asked, ask));
    }
    size.discover(store, new)?;
    Ok(new)
}

/// As [`closure`], but does not go beyond paths that `present` has: by the invariant of stores
/// their references are there as well. Nor beyond those that do not meet `check`. Returns what is
/// missing, and what was found present.
pub async fn missing_closure(
    store: &dyn Store,
    present: &dyn Store,
    roots: impl IntoIterator<Item = StorePath>,
    check: &SigCheck,
) -> Result<(Closure, BTreeSet<StorePath>)> {
    let mut closure = Closure::default();
    let mut found = BTreeSet::new();
    let mut size = ClosureSize::default();
    let mut referrers: BTreeMap<StorePath, Option<StorePath>> =
        roots.into_iter().map(|root| (root, None)).collect();
    let mut wave: BTreeSet<StorePath> = referrers.keys().cloned().collect();
    while !wave.is_empty() {
        let valid = present.valid(&wave).await?;
        let ask = &wave - &valid;
        found.extend(valid);
        wave = BTreeSet::new();
        let mut answers = store.infos_of(ask);
        while let Some(answer) = answers.next().await {
            let (path, info) = answer?;
            let Some(info) = info else {
                let referrer = referrers.get(&path).cloned().flatten();
                closure.absent.insert(path, referrer);
                continue;
            };
            size.add(store, &info)?;
            let before = wave.len();
            if check.check(store.dir(), &info).is_ok() {
                for reference in &info.references {
                    if let Entry::Vacant(new) = referrers.entry(reference.clone()) {
                        new.insert(Some(path.clone()));
                        wave.insert(reference.clone());
                    }
                }
            }
            size.discover(store, wave.len() - before)?;
            closure.infos.insert(path, info);
        }
    }
    Ok((closure, found))
}

/// Everything that refers to `paths` in the store `graph`, directly or not, and these themselves.
///
/// # Errors
/// As [`closure`].
pub async fn referrers_closure(
    graph: &dyn Graph,
    paths: impl IntoIterator<Item = StorePath>,
) -> Result<Closure> {
    let store: &dyn Store = graph;
    let mut size = ClosureSize::default();
    let mut found: BTreeSet<StorePath> = paths.into_iter().collect();
    let mut wave: Vec<StorePath> = found.iter().cloned().collect();
    while !wave.is_empty() {
        let questions = wave
            .iter()
            .map(|path| graph.referrers(path))
            .collect::<Vec<_>>();
        let answers = stream::iter(questions).buffer_unordered(REFERRERS_AT_ONCE);
        let answers: Vec<BTreeSet<StorePath>> = answers.try_collect().await?;
        let new = answers.into_iter().flatten();
        wave = new.filter(|path| found.insert(path.clone())).collect();
        size.discover(store, wave.len())?;
    }
    Closure::only(store, found).await
}

/// How much a closure may still come to, beside its roots.
#[derive(Debug)]
pub(crate) struct ClosureSize {
    paths: usize,
    /// Of names and signatures.
    bytes: usize,
}

impl Default for ClosureSize {
    fn default() -> Self {
        ClosureSize {
            paths: MAX_CLOSURE_PATHS,
            bytes: MAX_CLOSURE_BYTES,
        }
    }
}

impl ClosureSize {
    /// Counts paths that were not known before.
    fn discover(&mut self, store: &dyn Store, paths: usize) -> Result<()> {
        match self.paths.checked_sub(paths) {
            Some(left) => self.paths = left,
            None => return Err(endless(store, &format!("{MAX_CLOSURE_PATHS} paths"))),
        }
        Ok(())
    }

    /// Counts what is held of one path.
    fn add(&mut self, store: &dyn Store, info: &PathInfo) -> Result<()> {
        let names = info.references.iter().map(|path| path.as_str().len());
        let signatures = info.signatures.iter().map(|signature| {
            let name = signature.key_name().len();
            name + signature.bytes().len()
        });
        match self.bytes.checked_sub(names.chain(signatures).sum()) {
            Some(left) => self.bytes = left,
            None => {
                let most = format!("{} MiB of references", MAX_CLOSURE_BYTES >> 20);
                return Err(endless(store, &most));
            }
        }
        Ok(())
    }
}

fn endless(store: &dyn Store, most: &str) -> Error {
    let why = format!("it comes to more than {most}, as only an invented one does");
    Error::malformed(format!("the closure that {store} tells of"), why)
}

/// The most paths that references may lead to. All of Nixpkgs is a tenth of it.
pub const MAX_CLOSURE_PATHS: usize = 1 << 20;

/// The most bytes of names and signatures that are held of one closure.
const MAX_CLOSURE_BYTES: usize = 256 << 20;

/// Paths whose referrers are asked for at once.
const REFERRERS_AT_ONCE: usize = 16;

fn enqueue(
    path: StorePath,
    referrer: Option<&StorePath>,
    asked: &mut BTreeMap<StorePath, Option<StorePath>>,
    ask: &mpsc::UnboundedSender<StorePath>,
) -> bool {
    match asked.entry(path) {
        Entry::Occupied(_) => false,
        Entry::Vacant(new) => {
            // The receiver lives in the answers' stream, which outlives the walk.
            let _ = ask.send(new.key().clone());
            new.insert(referrer.cloned());
            true
        }
    }
}

fn absence(path: &StorePath, referrer: Option<&StorePath>, store: &dyn Store) -> Error {
    let (path, store) = (path.clone(), store.to_string());
    match referrer {
        None => Error::NotFound { path, store },
        Some(referrer) => Error::MissingReference {
            path: referrer.clone(),
            reference: path,
            store,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddItem, MemoryStore, nar};
    use tk_path::NarHash;

    /// A hundred paths, each of which refers to the one before it.
    async fn chain() -> (MemoryStore, StorePath) {
        let content = crate::conformance::file_nar(b"");
        let path = |n: usize| -> StorePath { format!("{n:032}-a").parse().unwrap() };
        let item = |n: usize| -> Result<AddItem> {
            let mut info = PathInfo::new(path(n), NarHash::digest(&content), content.len() as u64);
            info.references = (n.max(1) - 1..n).map(path).collect();
            Ok((info, nar::from_bytes(content.clone())))
        };
        let store = MemoryStore::default();
        let items = stream::iter((0..100).map(item).collect::<Vec<_>>()).boxed();
        let report = store.add(items, &SigCheck::Skip.into()).await.unwrap();
        assert_eq!(report.added.len(), 100);
        (store, path(99))
    }

    #[tokio::test]
    async fn what_refers_to_a_path() {
        let (store, top) = chain().await;
        let path = |n: usize| -> StorePath { format!("{n:032}-a").parse().unwrap() };
        for (paths, expected) in [
            (vec![path(97)], 97..100),
            (vec![path(98), path(40)], 40..100),
            (vec![top], 99..100),
        ] {
            let found = referrers_closure(&store, paths.clone()).await.unwrap();
            assert!(
                found
                    .infos
                    .keys()
                    .eq(expected.map(path).collect::<Vec<_>>().iter())
            );
            // As whoever can only list everything finds it.
            let whole = closure(&store, [path(99)]).await.unwrap();
            assert_eq!(whole.leading_to(&paths).infos, found.infos);
        }
        let absent = referrers_closure(&store, [path(200)]).await.unwrap();
        assert_eq!(absent.absent, [(path(200), None)].into());
    }

    #[tokio::test]
    async fn closures_are_bounded() {
        let (store, top) = chain().await;
        // 99 others, and as many names of 34 bytes.
        for (paths, bytes, words) in [
            (99, 99 * 34, ""),
            (98, 99 * 34, "more than 1048576 paths"),
            (99, 99 * 34 - 1, "more than 256 MiB of references"),
        ] {
            let size = ClosureSize { paths, bytes };
            let found = walk(&store, [top.clone()], None, size).await;
            match found {
                Ok(found) => assert_eq!((found.infos.len(), words), (100, "")),
                Err(error) => assert!(!words.is_empty() && error.to_line().contains(words)),
            }
        }
    }
}
