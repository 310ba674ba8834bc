//! Adding paths with their metadata.
//!
//! Each path is an operation of its own (`AddToStoreNar`), written ahead of the answers: no path
//! waits for a round trip, and one that fails ends neither the others nor the connection. With
//! `AddMultipleToStore`, all paths are one operation, which the first bad one ends.

use super::DaemonStore;
use crate::{
    client::DaemonLease,
    worker::ops::{AddToStoreNar, Data, QueryValidPaths, Request},
};
use futures::{StreamExt, TryStreamExt, future, stream};
use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tk_path::StorePath;
use tk_store::{
    AddId, AddItem, AddItems, AddOptions, AddReport, AddSchedule, Error, Existing, NarCheck,
    NarStream, RequiredReferences, Result, add_batches, progress::arriving,
};
use tokio::sync::Notify;

/// Implements [`tk_store::Store::add`]: asks what the daemon has of each batch, and sends the rest.
pub(super) async fn add(
    store: &DaemonStore,
    items: AddItems<'_>,
    options: &AddOptions,
) -> Result<AddReport> {
    let dir = &store.config.dir;
    let schedule = AddSchedule::new(dir, store, options, RequiredReferences::All);
    let adding = DaemonAdd {
        store,
        options,
        schedule: Arc::new(Mutex::new(schedule)),
        changed: Notify::new(),
    };
    let mut batches = add_batches(items);
    while let Some((batch, ended)) = batches.next().await {
        adding.add_batch(batch).await?;
        ended?;
    }
    let report = adding.schedule().take_report();
    Ok(report)
}

/// One call of `add`.
///
/// A path goes when its references are there, or went before it on the same connection (lane): the
/// daemon takes what one connection says in order.
struct DaemonAdd<'a> {
    store: &'a DaemonStore,
    options: &'a AddOptions,
    /// Shared with the NARs on their way, which fail their items if they break off.
    schedule: Arc<Mutex<AddSchedule<AddItem>>>,
    /// A path arrived, or has become impossible.
    changed: Notify,
}

impl DaemonAdd<'_> {
    async fn add_batch(&self, batch: Vec<AddItem>) -> Result<()> {
        let mut connection = self.store.connection().await?;
        let request = QueryValidPaths {
            paths: self.schedule().unknown(&batch),
            substitute: false,
        };
        let valid = connection.call(&request, self.store.log()).await?;
        let going = self.accept(valid, batch);
        match AddToStoreNar::data(connection.protocol()) {
            _ if going == 0 => Ok(()),
            Data::Framed => self.send_ahead(connection, going).await,
            _ => self.send_singly(connection).await,
        }
    }

    /// Accepts a batch of which `valid` are there; how many paths are to be sent.
    fn accept(&self, valid: BTreeSet<StorePath>, batch: Vec<AddItem>) -> usize {
        let mut schedule = self.schedule();
        schedule.note_present(valid);
        for item in batch {
            if let Some(id) = schedule.accept(&item.0) {
                schedule.prepared(id, item);
            }
        }
        schedule.waiting()
    }

    /// On `first`, and on as many more connections as may be used and are free.
    async fn send_ahead(&self, first: DaemonLease, going: usize) -> Result<()> {
        let most = self.store.config.upload_connections.min(going);
        let mut lanes = vec![first];
        while lanes.len() < most {
            match self.store.pool.try_get().await? {
                Some(connection) => lanes.push(connection),
                None => break,
            }
        }
        let lanes = lanes.into_iter().enumerate();
        let lanes = lanes.map(|(lane, connection)| self.send(lane, connection));
        future::try_join_all(lanes).await?;
        // Something is left only where a daemon took no more and answered all that it had taken. The lanes of
        // the next batch are other connections, on which nobody would wait for it in order.
        self.schedule().give_up(|path| {
            let source = io::Error::other("the daemon took no more");
            Error::io(format!("adding {path}"), source)
        });
        Ok(())
    }

    async fn send(&self, lane: usize, mut connection: DaemonLease) -> Result<()> {
        let uploads = stream::unfold((), |()| async move { Some((self.next(lane).await?, ())) });
        let answered = |(id, size), answer| {
            self.done(id, size, answer);
            self.changed.notify_waiters();
        };
        let log = self.store.log();
        connection.upload_many(uploads.boxed(), log, answered).await
    }

    /// What may go on `lane`, once there is something; `None` if nothing is left.
    async fn next(&self, lane: usize) -> Option<((AddId, u64), AddToStoreNar, NarStream)> {
        loop {
            // Made before the look at the schedule: a change in between still wakes this one.
            let changed = self.changed.notified();
            let (next, left) = {
                let mut schedule = self.schedule();
                (schedule.next(Some(lane)), schedule.waiting())
            };
            match next {
                Some((id, item)) => {
                    let size = item.0.nar_size;
                    let (request, nar) = self.request(id, item);
                    return Some(((id, size), request, nar));
                }
                None if left == 0 => return None,
                None => changed.await,
            }
        }
    }

    /// For daemons before 1.23: one after the other. A NAR that breaks off costs the connection.
    async fn send_singly(&self, mut connection: DaemonLease) -> Result<()> {
        while let Some(((id, size), request, nar)) = self.next(0).await {
            if !connection.is_clean() {
                drop(connection);
                connection = self.store.connection().await?;
            }
            let answer = connection.upload(&request, nar, self.store.log()).await;
            match answer {
                // A NAR that broke off is the fault of its path only. Otherwise the daemon is gone, for
                // all the rest too.
                Err(error) if !connection.is_clean() && self.schedule().is_open(id) => {
                    return Err(error);
                }
                answer => self.done(id, size, answer),
            }
        }
        Ok(())
    }

    /// What to ask for, and the NAR as it may be sent: its last bytes come only if all of it is
    /// what the metadata says.
    fn request(&self, id: AddId, (mut info, nar): AddItem) -> (AddToStoreNar, NarStream) {
        let nar = NarCheck::new(&info, "its source").stream(nar);
        let schedule = self.schedule.clone();
        // At once, so that what refers to it is not sent in vain.
        let fail = move |error| {
            lock(&schedule).fail(id, error);
            Error::invalid("the NAR broke off")
        };
        let nar = arriving(nar, &self.options.progress).map_err(fail);
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

    fn done(&self, id: AddId, size: u64, answer: Result<()>) {
        let mut schedule = self.schedule();
        match answer {
            Ok(()) => {
                schedule.added(id);
                schedule.wrote(size);
            }
            Err(error) => schedule.fail(id, error),
        }
    }

    fn schedule(&self) -> MutexGuard<'_, AddSchedule<AddItem>> {
        lock(&self.schedule)
    }
}

fn lock(schedule: &Mutex<AddSchedule<AddItem>>) -> MutexGuard<'_, AddSchedule<AddItem>> {
    schedule.lock().unwrap_or_else(PoisonError::into_inner)
}
