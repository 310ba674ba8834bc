//! Paths into the cache, so that what is visible is always complete.
//!
//! Each item goes through these states; a narinfo is written only on the last step:
//! ```text
//! queued -> uploading (NAR checked, packed, put into its place) -> uploaded -> visible
//!    \___________\________________________________________________/
//!                 failed, and with it all that refers to it
//! ```
//! An uploaded path becomes visible when everything it refers to is. The largest NARs of what is
//! at hand go first, so that no long one is left over for the end; therefore uploads end in any
//! order. One task decides ([`CacheAdd`], by an [`AddSchedule`]); the cache does the work.

use super::CacheInner;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    cmp::Reverse, collections::BTreeMap, future::poll_fn, io::ErrorKind, iter, sync::Arc,
    task::Poll,
};
use tk_path::StorePath;
use tk_store::{
    AddId, AddItem, AddItems, AddOptions, AddReport, AddSchedule, Error, RequiredReferences,
    Result, add_batches, nar::until_dropped,
};

/// What is left to do after an upload: write the narinfo.
pub(crate) struct Uploaded {
    /// The text of the narinfo, signed with the keys of the cache.
    pub(crate) narinfo: String,
    /// Bytes of the packed NAR.
    pub(crate) written: u64,
}

/// Why an upload failed.
pub(crate) enum AddFailure {
    /// Because of the path or its source.
    Item(Error),
    /// Because of the cache.
    Cache(Error),
}

impl AddFailure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            AddFailure::Item(error) | AddFailure::Cache(error) => error,
        }
    }
}

/// [`Store::add`](tk_store::Store::add) of a cache.
pub(super) async fn run(
    cache: &Arc<CacheInner>,
    items: AddItems<'_>,
    options: &AddOptions,
) -> Result<AddReport> {
    let required = if cache.config.require_references {
        RequiredReferences::AllBut(options.elsewhere.clone())
    } else {
        RequiredReferences::None
    };
    let mut schedule = AddSchedule::new(&cache.config.store_dir, cache, options, required);
    let there = options.asked.iter().filter(|(_, there)| **there);
    schedule.note_present(there.map(|(path, _)| path.clone()));
    let mut adding = CacheAdd {
        cache: cache.clone(),
        options,
        schedule,
        queue: BTreeMap::new(),
        uploads: 0,
        publishing: 0,
        running: FuturesUnordered::new(),
    };
    let outcome = adding.run(items).await;
    let report = adding.schedule.take_report();
    let CacheAdd {
        schedule,
        mut running,
        ..
    } = adding;
    // What is under way ends with the schedule. It is waited for, so that no thread writes after
    // this.
    drop(schedule);
    while running.next().await.is_some() {}
    outcome.map(|()| report)
}

/// One call of `add`. If nobody waits for it any more, the threads end at their next chunk, since
/// the schedule holds what ends the NARs.
struct CacheAdd<'a> {
    cache: Arc<CacheInner>,
    options: &'a AddOptions,
    /// A prepared item is its path, and its narinfo.
    schedule: AddSchedule<(StorePath, String)>,
    /// What waits for its upload: the largest NAR first, and of equal ones the first.
    queue: BTreeMap<(Reverse<u64>, AddId), AddItem>,
    /// How many uploads are under way; [`CacheInner::uploads`] is the limit.
    uploads: usize,
    /// Writings of narinfos under way.
    publishing: usize,
    running: FuturesUnordered<BoxFuture<'static, AddEvent>>,
}

enum AddEvent {
    Uploaded(AddId, StorePath, Result<Uploaded, AddFailure>),
    Published(Vec<AddId>, Vec<(StorePath, Result<()>)>),
}

enum Next {
    Items((Vec<AddItem>, Result<()>)),
    Event(AddEvent),
    End,
}

impl CacheAdd<'_> {
    async fn run(&mut self, items: AddItems<'_>) -> Result<()> {
        let mut items = add_batches(items).fuse();
        loop {
            self.start();
            // Items first: the more are known, the better is the order of the uploads.
            let next = poll_fn(|cx| {
                let ended = match items.poll_next_unpin(cx) {
                    Poll::Ready(Some(batch)) => return Poll::Ready(Next::Items(batch)),
                    Poll::Ready(None) => true,
                    Poll::Pending => false,
                };
                match self.running.poll_next_unpin(cx) {
                    Poll::Ready(Some(event)) => Poll::Ready(Next::Event(event)),
                    Poll::Ready(None) if ended => Poll::Ready(Next::End),
                    _ => Poll::Pending,
                }
            });
            match next.await {
                Next::Items((batch, ended)) => {
                    ended?;
                    self.accept(batch).await?;
                }
                Next::Event(AddEvent::Uploaded(id, path, result)) => {
                    self.uploaded(id, path, result)?;
                }
                Next::Event(AddEvent::Published(ids, results)) => self.published(ids, results)?,
                Next::End => return Ok(()),
            }
        }
    }

    async fn accept(&mut self, batch: Vec<AddItem>) -> Result<()> {
        let mut unknown = self.schedule.unknown(&batch);
        unknown.retain(|path| !self.options.asked.contains_key(path));
        if !unknown.is_empty() {
            let present = self.cache.present(unknown).await?;
            self.schedule.note_present(present.into_keys());
        }
        for (info, nar) in batch {
            if let Some(id) = self.schedule.accept(&info) {
                self.queue.insert((Reverse(info.nar_size), id), (info, nar));
            }
        }
        Ok(())
    }

    /// Starts uploads while there are threads for them, and the writing of narinfos.
    fn start(&mut self) {
        while self.uploads < self.cache.uploads()
            && let Some(((_, id), (info, nar))) = self.queue.pop_first()
        {
            let (nar, end) = until_dropped(nar);
            if self.schedule.begin(id, Some(end)) {
                self.uploads += 1;
                let path = info.path.clone();
                let upload = self.cache.clone().upload(info, nar, self.options.clone());
                let event = upload.map(move |result| AddEvent::Uploaded(id, path, result));
                self.running.push(event.boxed());
            }
        }
        let (size, most) = self.cache.publishing();
        while self.publishing < most {
            // No lane: a narinfo must never be there before those of its references.
            let ready = iter::from_fn(|| self.schedule.next(None)).take(size);
            let (ids, narinfos): (Vec<_>, Vec<_>) = ready.unzip();
            if ids.is_empty() {
                break;
            }
            self.publishing += 1;
            let publish = self.cache.clone().publish(narinfos);
            let event = publish.map(|results| AddEvent::Published(ids, results));
            self.running.push(event.boxed());
        }
    }

    fn uploaded(
        &mut self,
        id: AddId,
        path: StorePath,
        result: Result<Uploaded, AddFailure>,
    ) -> Result<()> {
        self.uploads -= 1;
        match result {
            // A reference failed meanwhile. The NAR stays: another writer may use it by now.
            _ if !self.schedule.is_open(id) => {}
            Ok(Uploaded { narinfo, written }) => {
                self.schedule.wrote(written);
                self.schedule.prepared(id, (path, narinfo));
            }
            Err(AddFailure::Cache(error)) if is_fatal(&error) => return Err(error),
            Err(failure) => self.schedule.fail(id, failure.into_error()),
        }
        Ok(())
    }

    fn published(&mut self, ids: Vec<AddId>, results: Vec<(StorePath, Result<()>)>) -> Result<()> {
        self.publishing -= 1;
        for (id, (_, result)) in ids.into_iter().zip(results) {
            match result {
                Ok(()) => self.schedule.added(id),
                Err(error) if is_fatal(&error) => return Err(error),
                Err(error) => self.schedule.fail(id, error),
            }
        }
        Ok(())
    }
}

/// Whether the rest need not be tried.
fn is_fatal(error: &Error) -> bool {
    let source = match error {
        Error::Io { source, .. } => source,
        // It says the same to everything.
        Error::Refused { .. } | Error::Unsupported { .. } => return true,
        _ => return false,
    };
    matches!(
        source.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
    )
}
