//! Adding paths with their metadata.
//!
//! Each path is an operation of its own (`AddToStoreNar`), written ahead of the answers: no path
//! waits for a round trip, and one that fails ends neither the others nor the connection. With
//! `AddMultipleToStore`, all paths are one operation, which the first bad one ends.

use super::DaemonStore;
use crate::{
    client::{Connection, DaemonLease},
    worker::ops::{AddToStoreNar, Data, QueryValidPaths, Request},
};
use futures::{StreamExt, future, stream};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{
    AddItem, AddItems, AddOptions, AddReport, Error, Existing, NarCheck, NarStream, Result,
    progress::arriving,
};
use tokio::sync::Notify;

/// Implements [`tk_store::Store::add`]: asks what the daemon has of each batch, and sends the rest.
pub(super) async fn add(
    store: &DaemonStore,
    items: AddItems<'_>,
    options: &AddOptions,
) -> Result<AddReport> {
    let adding = DaemonAdd {
        store,
        options,
        state: Arc::default(),
    };
    let mut batches = items.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let mut items = Vec::with_capacity(batch.len());
        let mut ended = Ok(());
        for item in batch {
            match item {
                Ok(item) => items.push(item),
                Err(error) => {
                    ended = Err(error);
                    break;
                }
            }
        }
        adding.add_batch(items).await?;
        ended?;
    }
    let report = std::mem::take(&mut adding.state().report);
    Ok(report)
}

/// One call of `add`.
struct DaemonAdd<'a> {
    store: &'a DaemonStore,
    options: &'a AddOptions,
    state: Arc<Mutex<DaemonAddState>>,
}

#[derive(Default)]
struct DaemonAddState {
    report: AddReport,
    /// Paths that are known to be valid.
    valid: BTreeSet<StorePath>,
    /// Paths that could not be added, and those that refer to them.
    failed: BTreeSet<StorePath>,
}

impl DaemonAdd<'_> {
    async fn add_batch(&self, items: Vec<AddItem>) -> Result<()> {
        let mut connection = self.store.connection().await?;
        let named = |(info, _): &AddItem| {
            let references = info.references.iter().cloned();
            references.chain([info.path.clone()]).collect::<Vec<_>>()
        };
        let named = items.iter().flat_map(named).collect();
        self.ask(&mut connection, named).await?;
        let mut going = Vec::with_capacity(items.len());
        let mut paths = BTreeSet::new();
        for (info, nar) in items {
            let path = info.path.clone();
            if paths.contains(&path) {
                continue;
            }
            let keep = self.options.existing == Existing::Keep;
            if keep && self.state().valid.contains(&path) {
                self.options.note_added(&mut self.state().report, path);
                continue;
            }
            match self.admit(&info, &paths) {
                Ok(()) => {
                    // It may have failed before; what refers to it is not doomed while it is tried again.
                    self.state().failed.remove(&path);
                    paths.insert(path);
                    going.push((info, nar));
                }
                Err(error) => self.state().fail(path, error),
            }
        }
        if going.is_empty() {
            return Ok(());
        }
        match AddToStoreNar::data(connection.protocol()) {
            Data::Framed => self.send_ahead(connection, going).await,
            _ => self.send_singly(connection, going).await,
        }
    }

    /// Asks which of the paths are valid.
    async fn ask(&self, connection: &mut Connection, mut paths: BTreeSet<StorePath>) -> Result<()> {
        paths.retain(|path| !self.state().valid.contains(path));
        let request = QueryValidPaths {
            paths,
            substitute: false,
        };
        let valid = connection.call(&request, self.store.log()).await?;
        self.state().valid.extend(valid);
        Ok(())
    }

    /// Whether `info` may be added after the paths that are `going`.
    fn admit(&self, info: &PathInfo, going: &BTreeSet<StorePath>) -> Result<()> {
        let dir = &self.store.config.dir;
        self.options.check.check(dir, info)?;
        if let Some(ca) = &info.ca
            && !info.is_content_addressed(dir)
        {
            return Err(Error::invalid(format!(
                "{} claims the content address {ca}, which implies another store path",
                info.path
            )));
        }
        let state = self.state();
        let absent =
            |r: &&StorePath| **r != info.path && !state.valid.contains(*r) && !going.contains(*r);
        match info.references.iter().find(absent) {
            Some(reference) => Err(self.missing(&info.path, reference)),
            None => Ok(()),
        }
    }

    /// On `first`, and on as many more connections as may be used and are free.
    async fn send_ahead(&self, first: DaemonLease, going: Vec<AddItem>) -> Result<()> {
        let most = self.store.config.upload_connections.min(going.len());
        let mut lanes = vec![first];
        while lanes.len() < most {
            match self.store.pool.try_get().await? {
                Some(connection) => lanes.push(connection),
                None => break,
            }
        }
        let queue = SendQueue::new(self, going);
        let lanes = lanes.into_iter().enumerate();
        let lanes = lanes.map(|(lane, connection)| queue.send(lane, connection));
        future::try_join_all(lanes).await?;
        Ok(())
    }

    /// For daemons before 1.23: one after the other. A NAR that breaks off costs the connection.
    async fn send_singly(&self, mut connection: DaemonLease, going: Vec<AddItem>) -> Result<()> {
        for (info, nar) in going {
            if self.give_up(&info) {
                continue;
            }
            if !connection.is_clean() {
                drop(connection);
                connection = self.store.connection().await?;
            }
            let (request, nar) = self.request(info.clone(), nar);
            let answer = connection.upload(&request, nar, self.store.log()).await;
            let broke_off = self.state().failed.contains(&info.path);
            match answer {
                // A NAR that broke off is the fault of its path only. Otherwise the daemon is gone, for
                // all the rest too.
                Err(error) if !connection.is_clean() && !broke_off => return Err(error),
                answer => self.done(info, answer),
            }
        }
        Ok(())
    }

    /// Whether a reference of `info` could not be added, so that it cannot either.
    fn give_up(&self, info: &PathInfo) -> bool {
        let mut state = self.state();
        let Some(reference) = state.doomed(info) else {
            return false;
        };
        state.fail(info.path.clone(), self.missing(&info.path, &reference));
        true
    }

    /// What to ask for, and the NAR as it may be sent: its last bytes come only if all of it is
    /// what the metadata says.
    fn request(&self, mut info: PathInfo, nar: NarStream) -> (AddToStoreNar, NarStream) {
        let check = NarCheck::new(&info, "its source");
        let (path, state) = (info.path.clone(), self.state.clone());
        let nar = arriving(checked(nar, check), &self.options.progress).inspect(move |chunk| {
            if chunk.is_err() {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.failed.insert(path.clone());
            }
        });
        // What another store knew of itself.
        info.ultimate = false;
        info.registration_time = 0;
        let request = AddToStoreNar {
            info,
            repair: self.options.existing == Existing::Replace,
            // Checked by now. A daemon that does not trust us checks all the same.
            dont_check_signatures: true,
        };
        (request, nar.boxed())
    }

    fn done(&self, info: PathInfo, answer: Result<()>) {
        let mut state = self.state();
        match (answer, state.doomed(&info)) {
            (Ok(()), _) => {
                let path = info.path.clone();
                self.options.note_added(&mut state.report, path);
                state.report.written += info.nar_size;
                state.valid.insert(info.path);
            }
            // It was sent before its reference was known to have failed, which is taken for the reason.
            (Err(Error::Refused { .. }), Some(reference)) => {
                let error = self.missing(&info.path, &reference);
                state.fail(info.path, error);
            }
            (Err(error), _) => state.fail(info.path, error),
        }
    }

    fn missing(&self, path: &StorePath, reference: &StorePath) -> Error {
        Error::MissingReference {
            path: path.clone(),
            reference: reference.clone(),
            store: self.store.to_string(),
        }
    }

    fn state(&self) -> MutexGuard<'_, DaemonAddState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is still to be sent, by one or more connections (lanes).
///
/// A path goes when its references are there, or went before it on the same connection: the daemon
/// takes what one connection says in order.
struct SendQueue<'a> {
    adding: &'a DaemonAdd<'a>,
    waiting: Mutex<WaitingItem>,
    /// A path arrived, or has become impossible.
    changed: Notify,
}

struct WaitingItem {
    /// References first; those that went are taken out.
    items: VecDeque<AddItem>,
    /// The paths of `items`.
    paths: BTreeSet<StorePath>,
    /// Sent and not answered yet, with the lane.
    flying: BTreeMap<StorePath, usize>,
}

impl<'a> SendQueue<'a> {
    fn new(adding: &'a DaemonAdd<'a>, items: Vec<AddItem>) -> Self {
        let paths = items.iter().map(|(info, _)| info.path.clone());
        let waiting = WaitingItem {
            paths: paths.collect(),
            items: items.into(),
            flying: BTreeMap::new(),
        };
        SendQueue {
            adding,
            waiting: Mutex::new(waiting),
            changed: Notify::new(),
        }
    }

    async fn send(&self, lane: usize, mut connection: DaemonLease) -> Result<()> {
        let uploads = stream::unfold((), |()| async move { Some((self.next(lane).await?, ())) });
        let answered = |info: PathInfo, answer: Result<()>| {
            let path = info.path.clone();
            self.adding.done(info, answer);
            self.arrived(&path);
        };
        let log = self.adding.store.log();
        connection.upload_many(uploads.boxed(), log, answered).await
    }

    /// What may go on `lane`, once there is something; `None` if nothing is left.
    async fn next(&self, lane: usize) -> Option<(PathInfo, AddToStoreNar, NarStream)> {
        loop {
            // Made before the look at the queue: a change in between still wakes this one.
            let changed = self.changed.notified();
            let (item, left) = self.waiting().take(lane);
            match item {
                Some((info, _)) if self.adding.give_up(&info) => self.arrived(&info.path),
                Some((info, nar)) => {
                    let (request, nar) = self.adding.request(info.clone(), nar);
                    return Some((info, request, nar));
                }
                None if left == 0 => return None,
                None => changed.await,
            }
        }
    }

    fn arrived(&self, path: &StorePath) {
        self.waiting().flying.remove(path);
        self.changed.notify_waiters();
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingItem> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WaitingItem {
    /// The first path that may go on `lane`, if one may, and how many are left.
    fn take(&mut self, lane: usize) -> (Option<AddItem>, usize) {
        let ready = |info: &PathInfo| {
            info.references.iter().all(|r| {
                *r == info.path
                    || !self.paths.contains(r)
                        && self.flying.get(r).is_none_or(|other| *other == lane)
            })
        };
        let first = self.items.iter().position(|(info, _)| ready(info));
        let item = first.and_then(|i| self.items.remove(i));
        if let Some((info, _)) = &item {
            self.paths.remove(&info.path);
            self.flying.insert(info.path.clone(), lane);
        }
        (item, self.items.len())
    }
}

impl DaemonAddState {
    fn fail(&mut self, path: StorePath, error: Error) {
        self.failed.insert(path.clone());
        self.report.failed.push((path, error));
    }

    /// A reference that could not be added.
    fn doomed(&self, info: &PathInfo) -> Option<StorePath> {
        let failed = |r: &&StorePath| **r != info.path && self.failed.contains(*r);
        info.references.iter().find(failed).cloned()
    }
}

/// `nar` as long as it is what `check` expects. One chunk is kept back, so that nobody has got all
/// of a NAR that turns out to be wrong.
fn checked(nar: NarStream, check: NarCheck) -> NarStream {
    struct CheckedItem {
        nar: NarStream,
        check: NarCheck,
        held: bytes::Bytes,
    }
    let start = CheckedItem {
        nar,
        check,
        held: bytes::Bytes::new(),
    };
    let next = |state: Option<CheckedItem>| async move {
        let Some(mut state) = state else {
            return Ok(None);
        };
        loop {
            match state.nar.next().await {
                Some(chunk) => {
                    let chunk = chunk?;
                    state.check.update(&chunk)?;
                    let held = std::mem::replace(&mut state.held, chunk);
                    if !held.is_empty() {
                        return Ok(Some((held, Some(state))));
                    }
                }
                None => {
                    state.check.finish()?;
                    return Ok(Some((state.held, None)));
                }
            }
        }
    };
    stream::try_unfold(Some(start), next).boxed()
}

/// Paths that are asked about at once.
const BATCH: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tk_path::NarHash;

    /// Items by name, each with what it refers to.
    fn waiting(items: &[(&str, &[&str])]) -> WaitingItem {
        let path = |name: &str| StorePath::from_digest(&[7; 20], name).unwrap();
        let item = |(name, references): &(&str, &[&str])| {
            let mut info = PathInfo::new(path(name), NarHash::digest(b""), 0);
            info.references = references.iter().map(|name| path(name)).collect();
            (info, tk_store::nar::from_bytes(""))
        };
        WaitingItem {
            items: items.iter().map(item).collect(),
            paths: items.iter().map(|(name, _)| path(name)).collect(),
            flying: BTreeMap::new(),
        }
    }

    fn take(waiting: &mut WaitingItem, lane: usize) -> Option<String> {
        let (item, _) = waiting.take(lane);
        item.map(|(info, _)| info.path.name().to_owned())
    }

    #[test]
    fn nothing_goes_before_what_it_refers_to() {
        let items: &[(&str, &[&str])] = &[
            ("base", &["base"]),
            ("middle", &["base"]),
            ("top", &["middle", "base"]),
            ("alone", &[]),
        ];
        let mut one = waiting(items);
        for name in ["base", "middle", "top", "alone"] {
            assert_eq!(
                take(&mut one, 0).as_deref(),
                Some(name),
                "in order, on one lane"
            );
        }

        let mut two = waiting(items);
        assert_eq!(take(&mut two, 0).as_deref(), Some("base"));
        assert_eq!(
            take(&mut two, 1).as_deref(),
            Some("alone"),
            "base is under way elsewhere"
        );
        assert_eq!(take(&mut two, 1), None);
        assert_eq!(
            take(&mut two, 0).as_deref(),
            Some("middle"),
            "behind base, on its lane"
        );
        assert_eq!(take(&mut two, 1), None);
        two.flying.clear();
        assert_eq!(
            take(&mut two, 1).as_deref(),
            Some("top"),
            "all that it needs is there"
        );
        assert_eq!(two.take(0).1, 0);
    }
}
