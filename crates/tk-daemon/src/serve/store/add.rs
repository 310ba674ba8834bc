//! Adding paths with their metadata.
//!
//! One question tells what is there of a batch and of what it refers to. What is not goes out as
//! one `AddToStoreNar` after the other, ahead of the answers. The protocol cannot take anything
//! back: a NAR of which something was sent before it turned out to be wrong ends the connection,
//! before its last bytes, and the rest of the batch goes over another.

use super::{
    ServeStore,
    connection::{ServeConnection, ServeOutput},
};
use crate::{
    serve::commands::{AddToStoreNar, QueryValidPaths},
    values::Done,
};
use futures::{
    StreamExt,
    future::{Either, select},
};
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tk_narinfo::PathInfo;
use tk_store::{
    AddId, AddItem, AddItems, AddOptions, AddReport, AddSchedule, Error, Existing, NarCheck,
    NarStream, RequiredReferences, Result, add_batches, progress::arriving,
};
use tokio::sync::mpsc;

/// Implements [`tk_store::Store::add`]: asks what the server has of each batch, and sends the rest.
pub(super) async fn add(
    store: &ServeStore,
    items: AddItems<'_>,
    options: &AddOptions,
) -> Result<AddReport> {
    if options.existing == Existing::Replace {
        return Err(store.unsupported(
            "cannot replace what it has: the serve protocol has no command for it; use ssh-ng://",
        ));
    }
    let dir = &store.config.dir;
    let schedule = AddSchedule::new(dir, store, options, RequiredReferences::All);
    let state = ServeAddState {
        schedule,
        open: VecDeque::new(),
        answered: 0,
    };
    let adding = ServeAdd {
        store,
        options,
        state: Mutex::new(state),
    };
    let mut batches = add_batches(items);
    while let Some((batch, ended)) = batches.next().await {
        adding.add_batch(batch.into()).await?;
        ended?;
    }
    let report = adding.state().schedule.take_report();
    Ok(report)
}

/// One call of `add`.
struct ServeAdd<'a> {
    store: &'a ServeStore,
    options: &'a AddOptions,
    state: Mutex<ServeAddState>,
}

struct ServeAddState {
    /// Nothing is ever prepared: items are accepted when it is their turn to be sent.
    schedule: AddSchedule<Infallible>,
    /// What was sent as a whole and not answered, in order, with the NAR size.
    open: VecDeque<(AddId, u64)>,
    /// Answers on the connection at hand.
    answered: usize,
}

impl ServeAdd<'_> {
    async fn add_batch(&self, mut items: VecDeque<AddItem>) -> Result<()> {
        let unknown = self.state().schedule.unknown(&items);
        let question = |paths| QueryValidPaths {
            // They are to be kept.
            lock: true,
            substitute: false,
            paths,
        };
        let questions: Vec<_> = super::batches(unknown, super::VALID)
            .map(question)
            .collect();
        let replies = self.store.pool.get().await?.call_all(&questions).await?;
        let there = replies.into_iter().flatten();
        self.state().schedule.note_present(there);
        items.retain(|(info, _)| !self.state().schedule.keeps(&info.path));
        while !items.is_empty() {
            let mut connection = self.store.pool.get().await?;
            self.state().answered = 0;
            connection.flight.begin();
            match self.send_all(&mut connection, &mut items).await {
                Ok(true) => connection.flight.end(),
                Ok(false) => {}
                // A server that takes nothing at all is not asked again and again.
                Err(error) if self.state().answered == 0 => return Err(error),
                Err(error) => self.state().give_up(&error),
            }
        }
        Ok(())
    }

    /// Sends items until there are none, or until one breaks off. Whether the connection is clean.
    async fn send_all(
        &self,
        connection: &mut ServeConnection,
        items: &mut VecDeque<AddItem>,
    ) -> Result<bool> {
        let ServeConnection { input, output, .. } = connection;
        let (sent, mut open) = mpsc::channel::<()>(UPLOADS);
        let write = async {
            // Dropped at the end: then the reader knows that nothing more comes.
            let sent = sent;
            while let Some((info, nar)) = items.pop_front() {
                let Some(id) = self.accept(&info) else {
                    continue;
                };
                // A place for the answer first, lest more be open than is bearable.
                let Ok(place) = output.wait_for(Box::pin(sent.reserve())).await? else {
                    break;
                };
                match self.send(output, &info, nar).await? {
                    Sent::All => {
                        self.state().open.push_back((id, info.nar_size));
                        place.send(());
                    }
                    Sent::Nothing(error) => self.state().schedule.fail(id, error),
                    Sent::Part(error) => {
                        self.state().schedule.fail(id, error);
                        // The server still waits for the rest of that NAR, so no other request can follow
                        // it.
                        return output.flush().await.map(|()| false);
                    }
                }
            }
            output.flush().await.map(|()| true)
        };
        let read = async {
            while open.recv().await.is_some() {
                let Done = input.reply().await?;
                self.state().answered();
            }
            Ok(())
        };
        match select(pin!(write), pin!(read)).await {
            Either::Left((Ok(clean), read)) => read.await.map(|()| clean),
            Either::Left((Err(error), _)) | Either::Right((Err(error), _)) => Err(error),
            Either::Right((Ok(()), write)) => write.await,
        }
    }

    /// Accepts the path if it may be added after those that were sent.
    fn accept(&self, info: &PathInfo) -> Option<AddId> {
        let schedule = &mut self.state().schedule;
        let id = schedule.accept(info)?;
        if info.nar_size == 0 {
            let error = self.store.unsupported(format!(
                "cannot take {}, whose NAR size is not known (the serve protocol)",
                info.path
            ));
            schedule.fail(id, error);
        }
        schedule.begin(id, None).then_some(id)
    }

    /// Sends one path. Of its NAR one chunk is kept back until all of it is known to be right; what
    /// fits in one chunk does not cost the connection if it is wrong.
    async fn send(
        &self,
        output: &mut ServeOutput,
        info: &PathInfo,
        nar: NarStream,
    ) -> Result<Sent> {
        let mut info = info.clone();
        // What another store knew of itself.
        (info.ultimate, info.registration_time) = (false, 0);
        let nar = NarCheck::new(&info, "its source").stream(nar);
        let mut nar = arriving(nar, &self.options.progress);
        let head = AddToStoreNar { info };
        let mut begun = false;
        while let Some(chunk) = output.wait_for(nar.next()).await? {
            match chunk {
                Ok(chunk) => {
                    if !begun {
                        output.request(&head)?;
                        begun = true;
                    }
                    output.bytes(chunk).await?;
                }
                Err(error) if begun => return Ok(Sent::Part(error)),
                Err(error) => return Ok(Sent::Nothing(error)),
            }
        }
        Ok(Sent::All)
    }

    fn state(&self) -> MutexGuard<'_, ServeAddState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of a path was sent.
enum Sent {
    /// The whole NAR was sent; the answer is still to come.
    All,
    /// Nothing, for this reason.
    Nothing(Error),
    /// Not all of it, for this reason.
    Part(Error),
}

impl ServeAddState {
    /// The server has taken the path that was sent first.
    fn answered(&mut self) {
        self.answered += 1;
        if let Some((id, size)) = self.open.pop_front() {
            self.schedule.added(id);
            self.schedule.wrote(size);
        }
    }

    /// The server has ended: what it did not answer is lost, also what was just being sent.
    fn give_up(&mut self, error: &Error) {
        let line = error.to_line();
        self.open.clear();
        self.schedule.give_up(|path| {
            let source = std::io::Error::other(line.clone());
            Error::io(format!("adding {path}"), source)
        });
    }
}

/// Paths that may be sent before the first of them is answered.
const UPLOADS: usize = 64;
