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
//! order. One task decides (this file's [`CacheAdd`]); the cache does the work.

use super::CacheInner;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{AbortHandle, FuturesUnordered},
};
use std::{
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
    future::poll_fn,
    io::ErrorKind,
    sync::Arc,
    task::Poll,
};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{AddItem, AddItems, AddOptions, AddReport, Error, Existing, NarStream, Result};

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
    let there = options.asked.iter().filter(|(_, there)| **there);
    let there = there.map(|(path, _)| path);
    let mut adding = CacheAdd {
        cache: cache.clone(),
        options,
        report: AddReport::default(),
        nodes: HashMap::new(),
        visible: there.cloned().collect(),
        present: HashSet::new(),
        queue: BinaryHeap::new(),
        uploads: 0,
        publishable: Vec::new(),
        publishing: 0,
        running: FuturesUnordered::new(),
    };
    match adding.run(items).await {
        Ok(()) => Ok(std::mem::take(&mut adding.report)),
        Err(error) => {
            adding.stop().await;
            Err(error)
        }
    }
}

struct CacheAdd<'a> {
    cache: Arc<CacheInner>,
    options: &'a AddOptions,
    report: AddReport,
    /// All items so far that were not there before.
    nodes: HashMap<StorePath, AddNode>,
    /// Paths that were there before, as far as somebody asked.
    visible: HashSet<StorePath>,
    /// Items that were there before.
    present: HashSet<StorePath>,
    queue: BinaryHeap<Queued>,
    /// How many uploads are under way; [`CacheInner::uploads`] is the limit.
    uploads: usize,
    /// Narinfos that may be written now.
    publishable: Vec<(StorePath, String)>,
    /// Writings of narinfos under way.
    publishing: usize,
    running: FuturesUnordered<BoxFuture<'static, AddEvent>>,
}

/// What became of an item so far.
struct AddNode {
    state: AddState,
    /// References that are not visible yet.
    waits_for: usize,
    /// Items that wait for this one.
    referrers: Vec<StorePath>,
}

enum AddState {
    Queued,
    /// Aborting ends the NAR's stream, however long that would wait for its source.
    Uploading(AbortHandle),
    /// The NAR is there; its narinfo, held here, waits for references that are not visible yet.
    Uploaded(String),
    /// Its narinfo is being written, or is there.
    Published,
    Failed,
}

enum AddEvent {
    Uploaded(StorePath, Result<Uploaded, AddFailure>),
    Published(Vec<(StorePath, Result<()>)>),
}

enum Next {
    Items(Vec<Result<AddItem>>),
    Event(AddEvent),
    End,
}

impl CacheAdd<'_> {
    async fn run(&mut self, items: AddItems<'_>) -> Result<()> {
        let mut items = items.ready_chunks(BATCH).fuse();
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
                Next::Items(batch) => self.accept(batch).await?,
                Next::Event(AddEvent::Uploaded(path, result)) => self.uploaded(path, result)?,
                Next::Event(AddEvent::Published(results)) => self.published(results)?,
                Next::End => return Ok(()),
            }
        }
    }

    /// Ends what is under way and waits for it, so that no thread writes after this.
    async fn stop(&mut self) {
        for node in self.nodes.values() {
            node.abort();
        }
        while self.running.next().await.is_some() {}
    }

    async fn accept(&mut self, batch: Vec<Result<AddItem>>) -> Result<()> {
        let batch = batch.into_iter().collect::<Result<Vec<_>>>()?;
        let unknown = self.unknown(&batch);
        if !unknown.is_empty() {
            let present = self.cache.present(unknown).await?;
            self.visible.extend(present.into_keys());
        }
        for (info, nar) in batch {
            if self.nodes.contains_key(&info.path) {
                continue;
            }
            if self.visible.contains(&info.path) && self.options.existing == Existing::Keep {
                if self.present.insert(info.path.clone()) {
                    self.options.note_added(&mut self.report, info.path);
                }
                continue;
            }
            self.enqueue(info, nar);
        }
        Ok(())
    }

    /// The items and references of which nothing is known yet.
    fn unknown(&self, batch: &[AddItem]) -> BTreeSet<StorePath> {
        let paths = batch
            .iter()
            .flat_map(|(info, _)| info.references.iter().chain([&info.path]));
        let known = |p: &StorePath| {
            self.options.asked.contains_key(p)
                || self.visible.contains(p)
                || self.nodes.contains_key(p)
                || self.options.elsewhere.contains(p)
        };
        paths.filter(|path| !known(path)).cloned().collect()
    }

    fn enqueue(&mut self, info: PathInfo, nar: NarStream) {
        let path = info.path.clone();
        let mut node = AddNode {
            state: AddState::Queued,
            waits_for: 0,
            referrers: Vec::new(),
        };
        let accepted = self
            .options
            .check
            .check(&self.cache.config.store_dir, &info)
            .and_then(|()| self.await_references(&info));
        match accepted {
            Ok(waits_for) => {
                node.waits_for = waits_for;
                self.queue.push(Queued {
                    info,
                    nar,
                    place: self.nodes.len(),
                });
            }
            Err(error) => {
                node.state = AddState::Failed;
                self.report.failed.push((path.clone(), error));
            }
        }
        self.nodes.insert(path, node);
    }

    /// Registers `info` with those of its references that are still to come; their number.
    fn await_references(&mut self, info: &PathInfo) -> Result<usize> {
        if !self.cache.config.require_references {
            return Ok(0);
        }
        let is_there = |r: &StorePath| {
            *r == info.path || self.visible.contains(r) || self.options.elsewhere.contains(r)
        };
        let others = || info.references.iter().filter(|r| !is_there(r));
        let absent = others().find(|reference| match self.nodes.get(*reference) {
            Some(node) => matches!(node.state, AddState::Failed),
            None => true,
        });
        if let Some(reference) = absent {
            return Err(self.missing(&info.path, reference));
        }
        let awaited: Vec<_> = others().cloned().collect();
        for reference in &awaited {
            if let Some(node) = self.nodes.get_mut(reference) {
                node.referrers.push(info.path.clone());
            }
        }
        Ok(awaited.len())
    }

    /// Starts uploads while there are threads for them, and the writing of narinfos.
    fn start(&mut self) {
        while self.uploads < self.cache.uploads()
            && let Some(Queued { info, nar, .. }) = self.queue.pop()
        {
            let Some(node) = self.nodes.get_mut(&info.path) else {
                continue;
            };
            // It may have failed while it waited here, because something it refers to failed.
            if matches!(node.state, AddState::Queued) {
                let (nar, abort) = futures::stream::abortable(nar);
                node.state = AddState::Uploading(abort);
                self.uploads += 1;
                let path = info.path.clone();
                let options = self.options.clone();
                let upload = self.cache.clone().upload(info, nar.boxed(), options);
                let event = upload.map(|result| AddEvent::Uploaded(path, result));
                self.running.push(event.boxed());
            }
        }
        let (size, most) = self.cache.publishing();
        while self.publishing < most && !self.publishable.is_empty() {
            self.publishing += 1;
            let size = size.min(self.publishable.len());
            let narinfos = self.publishable.drain(..size).collect();
            let publish = self.cache.clone().publish(narinfos);
            self.running.push(publish.map(AddEvent::Published).boxed());
        }
    }

    fn uploaded(&mut self, path: StorePath, result: Result<Uploaded, AddFailure>) -> Result<()> {
        self.uploads -= 1;
        let Some(node) = self.nodes.get_mut(&path) else {
            return Ok(());
        };
        if matches!(node.state, AddState::Failed) {
            // A reference failed meanwhile. The NAR stays: another writer may use it by now.
            return Ok(());
        }
        match result {
            Ok(Uploaded { narinfo, written }) => {
                self.report.written += written;
                node.state = AddState::Uploaded(narinfo);
                self.publish_if_complete(&path);
                Ok(())
            }
            Err(AddFailure::Cache(error)) if is_fatal(&error) => Err(error),
            Err(AddFailure::Cache(error) | AddFailure::Item(error)) => {
                self.fail(path, error);
                Ok(())
            }
        }
    }

    fn publish_if_complete(&mut self, path: &StorePath) {
        if let Some(node) = self.nodes.get_mut(path)
            && node.waits_for == 0
            && let AddState::Uploaded(narinfo) = &mut node.state
        {
            self.publishable
                .push((path.clone(), std::mem::take(narinfo)));
            node.state = AddState::Published;
        }
    }

    fn published(&mut self, results: Vec<(StorePath, Result<()>)>) -> Result<()> {
        self.publishing -= 1;
        for (path, result) in results {
            match result {
                Ok(()) => {
                    // Only now: a narinfo must never be there before those of its references.
                    let referrers = self
                        .nodes
                        .get_mut(&path)
                        .map(|n| std::mem::take(&mut n.referrers));
                    for referrer in referrers.unwrap_or_default() {
                        if let Some(node) = self.nodes.get_mut(&referrer) {
                            node.waits_for -= 1;
                        }
                        self.publish_if_complete(&referrer);
                    }
                    self.present.insert(path.clone());
                    self.visible.insert(path.clone());
                    self.options.note_added(&mut self.report, path);
                }
                Err(error) if is_fatal(&error) => return Err(error),
                Err(error) => self.fail(path, error),
            }
        }
        Ok(())
    }

    /// Gives up `path`, and all that refers to it.
    fn fail(&mut self, path: StorePath, error: Error) {
        let mut failing = vec![(path, error)];
        while let Some((path, error)) = failing.pop() {
            let Some(node) = self.nodes.get_mut(&path) else {
                continue;
            };
            if matches!(node.state, AddState::Failed) {
                continue;
            }
            node.abort();
            node.state = AddState::Failed;
            for referrer in std::mem::take(&mut node.referrers) {
                let error = self.missing(&referrer, &path);
                failing.push((referrer, error));
            }
            self.report.failed.push((path, error));
        }
    }

    fn missing(&self, path: &StorePath, reference: &StorePath) -> Error {
        Error::MissingReference {
            path: path.clone(),
            reference: reference.clone(),
            store: self.cache.to_string(),
        }
    }
}

/// If nobody waits for the result any more, the threads end at their next chunk.
impl Drop for CacheAdd<'_> {
    fn drop(&mut self) {
        for node in self.nodes.values() {
            node.abort();
        }
    }
}

impl AddNode {
    fn abort(&self) {
        if let AddState::Uploading(abort) = &self.state {
            abort.abort();
        }
    }
}

/// An item that waits for its upload. The greatest is the next: the one with the largest NAR, and
/// of equal ones the first.
struct Queued {
    info: PathInfo,
    nar: NarStream,
    place: usize,
}

impl Queued {
    fn rank(&self) -> (u64, std::cmp::Reverse<usize>) {
        (self.info.nar_size, std::cmp::Reverse(self.place))
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
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

/// Items that are looked up in the cache together.
const BATCH: usize = 1024;
