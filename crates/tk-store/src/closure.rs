//! Closures: everything a path refers to, directly or not.

use crate::{Error, Result, Store, StoreExt, store::unanswered};
use futures::{StreamExt, stream};
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
        let mut order = Vec::with_capacity(self.infos.len());
        let mut state = BTreeMap::new();
        for root in self.infos.keys() {
            self.visit(root, &mut state, &mut order)?;
        }
        Ok(order)
    }

    /// Depth first without recursion: a hostile closure may be deep.
    fn visit<'a>(
        &'a self,
        root: &'a StorePath,
        state: &mut BTreeMap<&'a StorePath, Visit>,
        order: &mut Vec<&'a PathInfo>,
    ) -> Result<()> {
        let mut stack = vec![(root, true)];
        while let Some((path, entering)) = stack.pop() {
            let Some(info) = self.infos.get(path) else {
                continue;
            };
            if !entering {
                state.insert(path, Visit::Done);
                order.push(info);
                continue;
            }
            match state.get(path) {
                Some(Visit::Done) => continue,
                Some(Visit::Open) => return Err(circle(path)),
                None => {}
            }
            state.insert(path, Visit::Open);
            stack.push((path, false));
            for reference in info.references.iter().rev().filter(|r| *r != path) {
                match state.get(reference) {
                    Some(Visit::Open) => return Err(circle(reference)),
                    Some(Visit::Done) => {}
                    None => stack.push((reference, true)),
                }
            }
        }
        Ok(())
    }
}

/// Walks from `roots` along the references. References are asked for as they become known, in one
/// stream of questions, so that a distant store is never waited for path by path.
pub async fn closure(
    store: &dyn Store,
    roots: impl IntoIterator<Item = StorePath>,
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
    // The store does not know when the questions end: it is this count that tells.
    let mut open = asked.len();
    while open > 0 {
        let Some(answer) = answers.next().await else {
            return Err(unanswered(store, open));
        };
        let (path, info) = answer?;
        open -= 1;
        match info {
            None => {
                let referrer = asked.get(&path).cloned().flatten();
                closure.absent.insert(path, referrer);
            }
            Some(info) => {
                for reference in &info.references {
                    let new = enqueue(reference.clone(), Some(&path), &mut asked, &ask);
                    open += usize::from(new);
                }
                closure.infos.insert(path, info);
            }
        }
    }
    Ok(closure)
}

/// As [`closure`], but does not go beyond paths that `present` has: by the invariant of stores
/// their references are there as well. Returns what is missing, and what was found present.
pub async fn missing_closure(
    store: &dyn Store,
    present: &dyn Store,
    roots: impl IntoIterator<Item = StorePath>,
) -> Result<(Closure, BTreeSet<StorePath>)> {
    let mut closure = Closure::default();
    let mut found = BTreeSet::new();
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
            for reference in &info.references {
                if let Entry::Vacant(new) = referrers.entry(reference.clone()) {
                    new.insert(Some(path.clone()));
                    wave.insert(reference.clone());
                }
            }
            closure.infos.insert(path, info);
        }
    }
    Ok((closure, found))
}

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

fn circle(path: &StorePath) -> Error {
    Error::invalid(format!(
        "the references of {path} lead back to itself through other paths; no store can hold that"
    ))
}

#[derive(Clone, Copy)]
enum Visit {
    Open,
    Done,
}
