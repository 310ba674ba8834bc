//! Adding paths with their metadata.
//!
//! Each path is an operation of its own (`AddToStoreNar`), written ahead of the answers: no path
//! waits for a round trip, and one that fails ends neither the others nor the connection. With
//! `AddMultipleToStore`, all paths are one operation, which the first bad one ends.

use super::DaemonStore;
use crate::{
    client::{Connection, Lease},
    worker::ops::{AddToStoreNar, Data, QueryValidPaths, Request},
};
use futures::{StreamExt, stream};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{AddItem, AddItems, AddReport, Error, NarCheck, NarStream, Result, SigCheck};

/// See [`tk_store::Store::add`].
pub(super) async fn add(
    store: &DaemonStore,
    items: AddItems<'_>,
    check: &SigCheck,
) -> Result<AddReport> {
    let adding = Adding {
        store,
        check,
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
struct Adding<'a> {
    store: &'a DaemonStore,
    check: &'a SigCheck,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    report: AddReport,
    /// Paths that are known to be valid.
    valid: BTreeSet<StorePath>,
    /// Paths that could not be added, and those that refer to them.
    failed: BTreeSet<StorePath>,
}

impl Adding<'_> {
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
            if self.state().valid.contains(&path) {
                self.state().report.added.push(path);
                continue;
            }
            match self.admit(&info, &paths) {
                Ok(()) => {
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
            Data::Framed => self.send_ahead(&mut connection, going).await,
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
        self.check.check(dir, info)?;
        if let Some(ca) = &info.ca
            && !info.is_content_addressed(dir)
        {
            return Err(Error::invalid(format!(
                "{} claims the content address {ca}, which makes another path",
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

    async fn send_ahead(&self, connection: &mut Lease, going: Vec<AddItem>) -> Result<()> {
        let answered = |info: PathInfo, answer: Result<()>| self.done(info, answer);
        let log = self.store.log();
        let uploads = stream::iter(Going {
            adding: self,
            items: going.into_iter(),
        });
        connection.upload_many(uploads, log, answered).await
    }

    /// For daemons before 1.23: one after the other. A NAR that breaks off costs the connection.
    async fn send_singly(&self, mut connection: Lease, going: Vec<AddItem>) -> Result<()> {
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
        let nar = checked(nar, check).inspect(move |chunk| {
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
            repair: false,
            // Checked by now. A daemon that does not trust us checks all the same.
            dont_check_signatures: true,
        };
        (request, nar.boxed())
    }

    fn done(&self, info: PathInfo, answer: Result<()>) {
        let mut state = self.state();
        match (answer, state.doomed(&info)) {
            (Ok(()), _) => {
                state.report.added.push(info.path.clone());
                state.report.written += info.nar_size;
                state.valid.insert(info.path);
            }
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is still to be sent; what has become impossible meanwhile is left out.
struct Going<'a> {
    adding: &'a Adding<'a>,
    items: std::vec::IntoIter<AddItem>,
}

impl Iterator for Going<'_> {
    type Item = (PathInfo, AddToStoreNar, NarStream);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (info, nar) = self.items.next()?;
            if !self.adding.give_up(&info) {
                let (request, nar) = self.adding.request(info.clone(), nar);
                return Some((info, request, nar));
            }
        }
    }
}

impl State {
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
    struct Checked {
        nar: NarStream,
        check: NarCheck,
        held: bytes::Bytes,
    }
    let start = Checked {
        nar,
        check,
        held: bytes::Bytes::new(),
    };
    let next = |state: Option<Checked>| async move {
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
