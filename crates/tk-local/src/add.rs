//! Adding paths.
//!
//! Each path goes through two steps. *Receiving*, several at once, on blocking threads: temporary
//! root, output lock, a look whether somebody else was faster, then one pass over the NAR that
//! unpacks it to a temporary place and verifies it. *Committing*, one group at a time and
//! references first: content is moved to its name, then the group is registered in one
//! transaction, then the locks are given back.
//!
//! Nobody waits in a circle: who holds a lock waits only for paths that its path refers to.

use crate::{
    Durability, LocalConfig, LocalStore,
    inner::LocalInner,
    lock::{Cancel, OutputLock},
    place::{Nursery, TempPlace, remove_left_over, sweep},
    receive::receive,
    roots::TempRoots,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    future::poll_fn,
    iter,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Method, References, StorePath};
use tk_store::{
    AddId, AddItem, AddItems, AddOptions, AddReport, AddSchedule, ContentHasher, Error, Existing,
    NarCheck, NarStream, RequiredReferences, Result, add_batches, blocking, nar,
    progress::arriving,
};

/// Implements [`tk_store::Store::add`]: receives several paths at once, and registers them in groups.
pub(crate) async fn add(
    store: &LocalStore,
    items: AddItems<'_>,
    options: &AddOptions,
) -> Result<AddReport> {
    store.inner().require_writable()?;
    let sweeping = sweep_once(store.inner());
    let cancel = Cancel::default();
    let _cancel_on_drop = cancel.on_drop();
    let dir = &store.config().dir;
    let mut adding = LocalAdd {
        store,
        options,
        cancel,
        schedule: AddSchedule::new(dir, store, options, RequiredReferences::All),
        queue: VecDeque::new(),
        running: FuturesUnordered::new(),
    };
    let outcome = adding.run(items).await;
    sweeping.await?;
    outcome.map(|()| adding.schedule.take_report())
}

/// Implements [`tk_store::AddContent::add_content`]: the path is named once the content was read.
pub(crate) async fn add_content(
    store: &LocalStore,
    name: &str,
    method: Method,
    algorithm: Algorithm,
    references: &References,
    nar: NarStream,
) -> Result<PathInfo> {
    store.inner().require_writable()?;
    let sweeping = sweep_once(store.inner());
    let cancel = Cancel::default();
    let _cancel_on_drop = cancel.on_drop();
    let hasher = ContentHasher::new(method, algorithm)?;
    let (inner, name, references) = (store.inner().clone(), name.to_owned(), references.clone());
    let roots = store.temp_roots().clone();
    let (nar, _end_on_drop) = nar::until_dropped(nar);
    let work = move || {
        // The content makes the name, so all of it is read before there is a path to root or to lock.
        let place = inner.place(&cancel)?;
        let (hasher, _) = receive(nar, hasher, place.tree(), None, &cancel)?;
        let info = hasher.finish(&inner.config.dir, &name, &references)?;
        roots.add(&inner.config.dir, &info.path, &cancel)?;
        let lock = OutputLock::acquire(&inner.real_path(&info.path), &cancel)?;
        if let Some(there) = inner.db.info(&info.path)? {
            return Ok(there);
        }
        let received = Received {
            info: info.clone(),
            place,
            replaces: false,
            _lock: lock,
            bytes: 0,
        };
        match inner.commit(vec![received])?.failed.pop() {
            Some((_, error)) => Err(error),
            None => Ok(info),
        }
    };
    let info = blocking(work).await;
    sweeping.await?;
    info
}

/// One call of `add`.
struct LocalAdd<'a> {
    store: &'a LocalStore,
    options: &'a AddOptions,
    cancel: Cancel,
    schedule: AddSchedule<Received>,
    /// What waits to be received, references first.
    queue: VecDeque<(AddId, AddItem)>,
    running: FuturesUnordered<BoxFuture<'static, ReceivedPath>>,
}

/// Content that is verified and has not got its name yet.
pub(crate) struct Received {
    info: PathInfo,
    place: TempPlace,
    /// Whether the path is valid, so that what is there is taken back if this fails.
    replaces: bool,
    _lock: OutputLock,
    bytes: u64,
}

/// A path that was received: `None` if it was valid already.
type ReceivedPath = (AddId, Result<Option<Received>>);

enum AddStep {
    Items(Option<(Vec<AddItem>, Result<()>)>),
    Done(ReceivedPath),
}

impl LocalAdd<'_> {
    async fn run(&mut self, items: AddItems<'_>) -> Result<()> {
        let mut items = add_batches(items);
        let mut more = true;
        let mut ended = Ok(());
        while more || !self.running.is_empty() {
            let accept = more && self.queue.is_empty() && self.has_room();
            let step = poll_fn(|cx| match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(done)) => Poll::Ready(AddStep::Done(done)),
                _ if accept => items.poll_next_unpin(cx).map(AddStep::Items),
                _ => Poll::Pending,
            });
            match step.await {
                AddStep::Items(Some((batch, end))) => {
                    // What came before an error is brought to its end, so that it need not be done again.
                    ended = self.accept(batch).await.and(end);
                    more = ended.is_ok();
                }
                AddStep::Items(None) => more = false,
                AddStep::Done(done) => {
                    self.done(done);
                    // Each commit is a transaction: what else has arrived goes into the same one.
                    while let Some(Some(done)) = self.running.next().now_or_never() {
                        self.done(done);
                    }
                    self.commit().await?;
                }
            }
            self.start();
        }
        ended
    }

    fn has_room(&self) -> bool {
        self.running.len() < self.store.config().jobs.get() && self.schedule.waiting() < MAX_WAITING
    }

    async fn accept(&mut self, batch: Vec<AddItem>) -> Result<()> {
        let unknown = self.schedule.unknown(&batch);
        let (inner, roots) = (self.store.inner().clone(), self.store.temp_roots().clone());
        let cancel = self.cancel.clone();
        // First the roots: what a collector takes after the question would be missing in the end.
        let ask = move || {
            roots.add_all(&inner.config.dir, &unknown, &cancel)?;
            inner.db.valid(&unknown)
        };
        let valid = blocking(ask).await?;
        self.schedule.note_present(valid);
        for item in batch {
            // Signatures are checked by the threads that receive.
            if let Some(id) = self.schedule.accept_unchecked(&item.0) {
                self.queue.push_back((id, item));
            }
        }
        Ok(())
    }

    /// Receives what is queued, as far as there is room.
    fn start(&mut self) {
        while self.has_room()
            && let Some((id, (info, nar))) = self.queue.pop_front()
        {
            if self.schedule.begin(id, None) {
                self.receive(id, info, nar);
            }
        }
    }

    fn receive(&mut self, id: AddId, info: PathInfo, nar: NarStream) {
        let (nar, end_on_drop) = nar::until_dropped(arriving(nar, &self.options.progress));
        let request = ReceiveRequest {
            options: self.options.clone(),
            cancel: self.cancel.clone(),
            roots: self.store.temp_roots().clone(),
            info,
            nar,
        };
        let inner = self.store.inner().clone();
        let work = blocking(move || request.receive(&inner));
        let done = work.map(move |outcome| {
            drop(end_on_drop);
            (id, outcome)
        });
        self.running.push(done.boxed());
    }

    fn done(&mut self, (id, outcome): ReceivedPath) {
        match outcome {
            Ok(Some(received)) => self.schedule.prepared(id, received),
            Ok(None) => self.schedule.added(id),
            Err(error) => self.schedule.fail(id, error),
        }
    }

    /// Commits what has all its references, or goes with them.
    async fn commit(&mut self) -> Result<()> {
        let mut ids = HashMap::new();
        let ready = iter::from_fn(|| self.schedule.next(Some(GROUP)));
        let group = ready.map(|(id, received)| {
            ids.insert(received.info.path.clone(), id);
            received
        });
        let group: Vec<_> = group.collect();
        if group.is_empty() {
            return Ok(());
        }
        let inner = self.store.inner().clone();
        let committed = blocking(move || inner.commit(group)).await?;
        self.schedule.wrote(committed.bytes);
        for path in committed.paths {
            self.schedule.added(ids[&path]);
        }
        for (path, error) in committed.failed {
            self.schedule.fail(ids[&path], error);
        }
        Ok(())
    }
}

/// What the blocking thread needs to receive one path.
struct ReceiveRequest {
    info: PathInfo,
    nar: NarStream,
    options: AddOptions,
    cancel: Cancel,
    roots: Arc<TempRoots>,
}

impl ReceiveRequest {
    /// Receives the path; `None` if it is valid already and shall stay as it is.
    fn receive(self, store: &LocalInner) -> Result<Option<Received>> {
        let ReceiveRequest {
            mut info,
            nar,
            options,
            cancel,
            roots,
        } = self;
        options.check_metadata(&store.config.dir, &info)?;
        // First the root, so that no collector takes the path any more; then the lock, so that nobody
        // else makes it; then a second look, since somebody may have made it before the lock.
        roots.add(&store.config.dir, &info.path, &cancel)?;
        let lock = OutputLock::acquire(&store.real_path(&info.path), &cancel)?;
        let replaces = store.is_valid(&info.path)?;
        if replaces && options.existing == Existing::Keep {
            return Ok(None);
        }
        let place = store.place(&cancel)?;
        let size = Some(info.nar_size);
        let (check, bytes) = receive(
            nar,
            NarCheck::new(&info, "its source"),
            place.tree(),
            size,
            &cancel,
        )?;
        check.finish()?;
        info.nar_size = bytes;
        info.registration_time = 0;
        Ok(Some(Received {
            info,
            place,
            replaces,
            _lock: lock,
            bytes,
        }))
    }
}

/// What became of a group.
pub(crate) struct Committed {
    paths: Vec<StorePath>,
    failed: Vec<(StorePath, Error)>,
    bytes: u64,
}

impl LocalInner {
    pub fn require_writable(&self) -> Result<()> {
        if !self.config.read_only {
            return Ok(());
        }
        Err(Error::Unsupported {
            store: self.uri.clone(),
            what: "is open for reading only".to_owned(),
        })
    }

    /// A place for new content, in the temporary folder of this store.
    fn place(&self, cancel: &Cancel) -> Result<TempPlace> {
        let mut nursery = self.nursery.lock().unwrap_or_else(|e| e.into_inner());
        match &*nursery {
            Some(there) if there.exists() => Ok(there.place()),
            _ => {
                let LocalConfig { real, dir, .. } = &self.config;
                let new = Arc::new(Nursery::new(real, dir, &self.roots, cancel)?);
                Ok(nursery.insert(new).place())
            }
        }
    }

    pub fn is_valid(&self, path: &StorePath) -> Result<bool> {
        self.db.is_valid(path)
    }

    pub fn missing(&self, path: &StorePath, reference: &StorePath) -> Error {
        Error::MissingReference {
            path: path.clone(),
            reference: reference.clone(),
            store: self.uri.clone(),
        }
    }

    /// Moves the content of `group`, references first, to its names and registers it.
    fn commit(&self, group: Vec<Received>) -> Result<Committed> {
        let mut failed = Vec::new();
        let mut published = Vec::new();
        // Content gets its name before its row is written: no path may be valid whose content is not
        // there.
        for received in group {
            let real = self.real_path(&received.info.path);
            let moved = if received.replaces {
                received.place.exchange(&real)
            } else {
                received.place.publish(&real)
            };
            match moved {
                Ok(()) => published.push(received),
                Err(error) => failed.push((received.info.path.clone(), error)),
            }
        }
        let infos: Vec<_> = published.iter().map(|r| r.info.clone()).collect();
        let (outputs, wrong) = self.outputs_of(&infos);
        for (path, error) in wrong {
            self.take_back(&mut published, &path);
            failed.push((path, error));
        }
        // Content must reach the disk before the database says that it is there.
        self.sync()?;
        loop {
            let infos: Vec<_> = published.iter().map(|r| r.info.clone()).collect();
            match self.db.register(&infos, &outputs) {
                Ok(()) => break,
                // Collected in the meantime, or failed just above: the others need not suffer.
                Err(Error::MissingReference {
                    path,
                    reference,
                    store,
                }) => {
                    self.take_back(&mut published, &path);
                    failed.push((
                        path.clone(),
                        Error::MissingReference {
                            path,
                            reference,
                            store,
                        },
                    ));
                }
                Err(error) => {
                    let paths: Vec<_> = published.iter().map(|r| r.info.path.clone()).collect();
                    for path in paths {
                        self.take_back(&mut published, &path);
                    }
                    return Err(error);
                }
            }
        }
        Ok(Committed {
            bytes: published.iter().map(|r| r.bytes).sum(),
            paths: published.iter().map(|r| r.info.path.clone()).collect(),
            failed,
        })
    }

    /// Undoes what was done for `path`, which cannot be registered.
    fn take_back(&self, published: &mut Vec<Received>, path: &StorePath) {
        let real = self.real_path(path);
        for received in published.extract_if(.., |r| r.info.path == *path) {
            // What it was exchanged for lies in its place.
            let _ = if received.replaces {
                received.place.exchange(&real)
            } else {
                remove_left_over(&real)
            };
        }
    }

    fn sync(&self) -> Result<()> {
        if self.config.durability != Durability::Content {
            return Ok(());
        }
        let real = &self.config.real;
        let sync = || rustix::fs::syncfs(File::open(real)?).map_err(Into::into);
        sync().map_err(|e: std::io::Error| {
            Error::io(format!("writing {} to the disk", real.display()), e)
        })
    }
}

/// Removes, once per open store, what killed processes left in the store directory.
fn sweep_once(store: &Arc<LocalInner>) -> impl Future<Output = Result<()>> + use<> {
    let first = !store.swept.swap(true, Ordering::Relaxed);
    let store = store.clone();
    let work = first.then(|| tokio::task::spawn_blocking(move || sweep(&store.config.real)));
    async move {
        match work {
            // A sweep that was cut short does no harm.
            Some(work) => work.await.or(Ok(())),
            None => Ok(()),
        }
    }
}

/// Paths that may be received and wait for others; each holds two open files.
const MAX_WAITING: usize = 128;

/// The lane of all commits: a group goes into its transaction in order, references first.
const GROUP: usize = 0;
