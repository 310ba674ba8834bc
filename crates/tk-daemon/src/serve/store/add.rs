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
use bytes::Bytes;
use futures::{
    StreamExt,
    future::{Either, select},
};
use std::{
    collections::{BTreeSet, VecDeque},
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{
    AddItem, AddItems, AddOptions, AddReport, Error, Existing, NarCheck, NarStream, Result,
    progress::arriving,
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
    let adding = ServeAdd {
        store,
        options,
        state: Mutex::default(),
    };
    let mut batches = items.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let mut items = VecDeque::with_capacity(batch.len());
        let mut ended = Ok(());
        for item in batch {
            match item {
                Ok(item) => items.push_back(item),
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
struct ServeAdd<'a> {
    store: &'a ServeStore,
    options: &'a AddOptions,
    state: Mutex<ServeAddState>,
}

#[derive(Default)]
struct ServeAddState {
    report: AddReport,
    /// Paths that are valid, or will be when what was sent is answered.
    valid: BTreeSet<StorePath>,
    /// What was sent as a whole and not answered, in order: path and NAR size.
    open: VecDeque<(StorePath, u64)>,
    /// Answers on the connection at hand.
    answered: usize,
}

impl ServeAdd<'_> {
    async fn add_batch(&self, mut items: VecDeque<AddItem>) -> Result<()> {
        let questions = self.questions(&items);
        let replies = self.store.pool.get().await?.call_all(&questions).await?;
        self.state().valid.extend(replies.into_iter().flatten());
        items.retain(|(info, _)| !self.is_there(&info.path));
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

    /// Which of the paths, and of what they refer to, are valid; they are to be kept.
    fn questions(&self, items: &VecDeque<AddItem>) -> Vec<QueryValidPaths> {
        let named = |(info, _): &AddItem| {
            let references = info.references.iter().cloned();
            references.chain([info.path.clone()]).collect::<Vec<_>>()
        };
        let mut paths: BTreeSet<_> = items.iter().flat_map(named).collect();
        paths.retain(|path| !self.state().valid.contains(path));
        let question = |paths| QueryValidPaths {
            lock: true,
            substitute: false,
            paths,
        };
        super::batches(paths, super::VALID).map(question).collect()
    }

    /// Whether `path` need not be sent.
    fn is_there(&self, path: &StorePath) -> bool {
        let mut state = self.state();
        let there = state.valid.contains(path);
        if there {
            self.options.note_added(&mut state.report, path.clone());
        }
        there
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
                // The same path twice in one batch.
                if self.state().valid.contains(&info.path) {
                    continue;
                }
                if let Err(error) = self.admit(&info) {
                    self.state().report.failed.push((info.path, error));
                    continue;
                }
                // A place for the answer first, lest more be open than is bearable.
                let Ok(place) = output.wait_for(Box::pin(sent.reserve())).await? else {
                    break;
                };
                match self.send(output, &info, nar).await? {
                    Sent::All => {
                        self.state().sent(info);
                        place.send(());
                    }
                    Sent::Nothing(error) => self.state().report.failed.push((info.path, error)),
                    Sent::Part(error) => {
                        self.state().report.failed.push((info.path, error));
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
                self.state().answered(self.options);
            }
            Ok(())
        };
        match select(pin!(write), pin!(read)).await {
            Either::Left((Ok(clean), read)) => read.await.map(|()| clean),
            Either::Left((Err(error), _)) | Either::Right((Err(error), _)) => Err(error),
            Either::Right((Ok(()), write)) => write.await,
        }
    }

    /// Whether the path may be added after those that were sent.
    fn admit(&self, info: &PathInfo) -> Result<()> {
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
        let absent = |r: &&StorePath| **r != info.path && !state.valid.contains(*r);
        if let Some(reference) = info.references.iter().find(absent) {
            return Err(Error::MissingReference {
                path: info.path.clone(),
                reference: reference.clone(),
                store: self.store.to_string(),
            });
        }
        match info.nar_size {
            0 => Err(self.store.unsupported(format!(
                "cannot take {}, whose NAR size is not known (the serve protocol)",
                info.path
            ))),
            _ => Ok(()),
        }
    }

    /// Sends one path. Of its NAR one chunk is kept back until all of it is known to be right; what
    /// fits in one chunk does not cost the connection if it is wrong.
    async fn send(
        &self,
        output: &mut ServeOutput,
        info: &PathInfo,
        nar: NarStream,
    ) -> Result<Sent> {
        let mut nar = arriving(nar, &self.options.progress);
        let mut info = info.clone();
        // What another store knew of itself.
        (info.ultimate, info.registration_time) = (false, 0);
        let mut check = NarCheck::new(&info, "its source");
        let head = AddToStoreNar { info };
        let mut held = Bytes::new();
        let mut begun = false;
        let broken = |begun, error| {
            if begun {
                Sent::Part(error)
            } else {
                Sent::Nothing(error)
            }
        };
        while let Some(chunk) = output.wait_for(nar.next()).await? {
            let checked = chunk.and_then(|chunk| check.update(&chunk).map(|()| chunk));
            let chunk = match checked {
                Ok(chunk) => chunk,
                Err(error) => return Ok(broken(begun, error)),
            };
            let ready = std::mem::replace(&mut held, chunk);
            if !ready.is_empty() {
                if !begun {
                    output.request(&head)?;
                    begun = true;
                }
                output.bytes(ready).await?;
            }
        }
        if let Err(error) = check.finish() {
            return Ok(broken(begun, error));
        }
        if !begun {
            output.request(&head)?;
        }
        output.bytes(held).await.map(|()| Sent::All)
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
    /// What refers to it may follow.
    fn sent(&mut self, info: PathInfo) {
        self.valid.insert(info.path.clone());
        self.open.push_back((info.path, info.nar_size));
    }

    /// The server has taken the path that was sent first.
    fn answered(&mut self, options: &AddOptions) {
        self.answered += 1;
        if let Some((path, size)) = self.open.pop_front() {
            options.note_added(&mut self.report, path);
            self.report.written += size;
        }
    }

    /// The server has ended: what it did not answer is lost.
    fn give_up(&mut self, error: &Error) {
        let line = error.to_line();
        for (path, _) in std::mem::take(&mut self.open) {
            self.valid.remove(&path);
            let error = Error::io(
                format!("adding {path}"),
                std::io::Error::other(line.clone()),
            );
            self.report.failed.push((path, error));
        }
    }
}

/// Paths that are asked about at once.
const BATCH: usize = 1024;
/// Paths that may be sent before the first of them is answered.
const UPLOADS: usize = 64;
