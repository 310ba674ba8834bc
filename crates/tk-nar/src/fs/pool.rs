//! Threads that create the small files of an archive while it is still being decoded.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::error::UnpackError;
use super::make::{MadeDirectory, Maker};

/// Files and symlinks to make, with their names and contents in one buffer.
#[derive(Debug, Default)]
pub(super) struct MakeBatch {
    pub(super) arena: Vec<u8>,
    items: Vec<MakeItem>,
    directories: Vec<Arc<MadeDirectory>>,
}

#[derive(Debug)]
struct MakeItem {
    /// The index of its directory in `directories` of the batch.
    directory: usize,
    /// With its NUL byte.
    name: Range<usize>,
    kind: ItemKind,
}

#[derive(Debug)]
enum ItemKind {
    File {
        executable: bool,
        contents: Range<usize>,
    },
    /// With its NUL byte.
    Link { target: Range<usize> },
}

impl MakeBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn directories(&self) -> usize {
        self.directories.len()
    }

    /// Appends bytes followed by NUL.
    pub(super) fn put_text(&mut self, text: &[u8]) -> Range<usize> {
        let start = self.arena.len();
        self.arena.extend_from_slice(text);
        self.arena.push(0);
        start..self.arena.len()
    }

    /// Adds a file whose contents are what the arena got since `contents`.
    pub(super) fn file(
        &mut self,
        directory: &Arc<MadeDirectory>,
        name: Range<usize>,
        executable: bool,
        contents: usize,
    ) {
        let contents = contents..self.arena.len();
        self.push(
            directory,
            name,
            ItemKind::File {
                executable,
                contents,
            },
        );
    }

    pub(super) fn link(
        &mut self,
        directory: &Arc<MadeDirectory>,
        name: Range<usize>,
        target: Range<usize>,
    ) {
        self.push(directory, name, ItemKind::Link { target });
    }

    fn push(&mut self, directory: &Arc<MadeDirectory>, name: Range<usize>, kind: ItemKind) {
        if !self
            .directories
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, directory))
        {
            self.directories.push(directory.clone());
        }
        self.items.push(MakeItem {
            directory: self.directories.len() - 1,
            name,
            kind,
        });
    }

    fn first_directory(&self) -> usize {
        self.directories
            .first()
            .map_or(0, |directory| Arc::as_ptr(directory) as usize)
    }

    /// Makes everything, and completes the directories nobody else needs any more.
    fn run(&mut self, maker: &Maker, failed: &AtomicBool) -> Result<(), UnpackError> {
        for item in &self.items {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let directory = &self.directories[item.directory];
            let name = text(&self.arena, &item.name);
            match &item.kind {
                ItemKind::File {
                    executable,
                    contents,
                } => {
                    let contents = &self.arena[contents.clone()];
                    maker.file(directory, name, *executable, contents)?;
                }
                ItemKind::Link { target } => {
                    maker.link(directory, name, text(&self.arena, target))?
                }
            }
        }
        self.directories
            .drain(..)
            .try_for_each(|directory| maker.release(directory))
    }

    fn reset(&mut self) {
        self.arena.clear();
        self.items.clear();
        self.directories.clear();
    }
}

fn text<'a>(arena: &'a [u8], place: &Range<usize>) -> &'a CStr {
    CStr::from_bytes_with_nul(&arena[place.clone()]).unwrap_or_default()
}

/// The threads, started with the first batch, and the batches that wait for them.
#[derive(Debug)]
pub(super) struct MakePool {
    shared: Arc<SharedPool>,
    threads: Vec<JoinHandle<()>>,
    wanted: NonZeroUsize,
}

#[derive(Debug)]
struct SharedPool {
    maker: Arc<Maker>,
    state: Mutex<MakePoolState>,
    work: Condvar,
    idle: Condvar,
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct MakePoolState {
    queue: VecDeque<MakeBatch>,
    /// Arena bytes in the queue.
    bytes: usize,
    /// The first directory of each batch that is being run: two threads in one directory wait for each other.
    running: Vec<usize>,
    spare: Vec<MakeBatch>,
    error: Option<UnpackError>,
    stop: bool,
}

impl MakePool {
    pub(super) fn new(maker: Arc<Maker>, wanted: NonZeroUsize) -> Self {
        let shared = SharedPool {
            maker,
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            failed: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
            wanted,
        }
    }

    /// Hands a batch to the threads and gives an empty one back. Helps them while too much is waiting.
    pub(super) fn submit(&mut self, batch: MakeBatch) -> Result<MakeBatch, UnpackError> {
        self.start();
        let mut state = self.shared.lock();
        while state.bytes > WINDOW || state.queue.len() >= MAX_QUEUE || self.threads.is_empty() {
            match state.take() {
                Some((batch, mark)) => state = self.shared.run(batch, mark, state),
                None => break,
            }
        }
        state.bytes += batch.arena.len();
        state.queue.push_back(batch);
        let empty = state.spare.pop().unwrap_or_default();
        drop(state);
        self.shared.work.notify_one();
        self.check()?;
        Ok(empty)
    }

    /// Waits until all batches are done, and works on them meanwhile.
    pub(super) fn drain(&self) -> Result<(), UnpackError> {
        let mut state = self.shared.lock();
        loop {
            match state.take() {
                Some((batch, mark)) => state = self.shared.run(batch, mark, state),
                None if state.running.is_empty() => break,
                None => {
                    state = self
                        .shared
                        .idle
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
        drop(state);
        self.check()
    }

    /// Runs the last batch, without threads if none were needed so far.
    pub(super) fn finish(&self, batch: MakeBatch) -> Result<(), UnpackError> {
        let mut state = self.shared.lock();
        state.bytes += batch.arena.len();
        state.queue.push_back(batch);
        drop(state);
        self.drain()
    }

    /// The first error of a thread, once.
    pub(super) fn check(&self) -> Result<(), UnpackError> {
        if !self.shared.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(self
            .shared
            .lock()
            .error
            .take()
            .unwrap_or(UnpackError::Failed))
    }

    fn start(&mut self) {
        while self.threads.len() < self.wanted.get() {
            let shared = self.shared.clone();
            let name = format!("nar-unpack-{}", self.threads.len());
            match std::thread::Builder::new()
                .name(name)
                .spawn(move || shared.serve())
            {
                Ok(thread) => self.threads.push(thread),
                // Then the caller does more, or all.
                Err(_) => break,
            }
        }
    }
}

impl Drop for MakePool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stop = true;
        state.queue.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl SharedPool {
    fn lock(&self) -> MutexGuard<'_, MakePoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        while !state.stop {
            state = match state.take() {
                Some((batch, mark)) => self.run(batch, mark, state),
                None => self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn run<'a>(
        &'a self,
        mut batch: MakeBatch,
        mark: usize,
        state: MutexGuard<'a, MakePoolState>,
    ) -> MutexGuard<'a, MakePoolState> {
        drop(state);
        let running = RunningBatch { shared: self, mark };
        let result = batch.run(&self.maker, &self.failed);
        batch.reset();
        let mut state = self.lock();
        if let Err(error) = result {
            state.error.get_or_insert(error);
            self.failed.store(true, Ordering::Relaxed);
        }
        if state.spare.len() < MAX_SPARE {
            state.spare.push(batch);
        }
        drop(state);
        drop(running);
        self.lock()
    }
}

/// Takes the mark of a running batch away, also when its thread panics.
struct RunningBatch<'a> {
    shared: &'a SharedPool,
    mark: usize,
}

impl Drop for RunningBatch<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(index) = state.running.iter().position(|&mark| mark == self.mark) {
            state.running.swap_remove(index);
        }
        if std::thread::panicking() {
            self.shared.failed.store(true, Ordering::Relaxed);
        }
        if state.running.is_empty() {
            self.shared.idle.notify_all();
        }
    }
}

impl MakePoolState {
    /// The first batch in a directory nobody works in, or else the first.
    fn take(&mut self) -> Option<(MakeBatch, usize)> {
        let free = self
            .queue
            .iter()
            .position(|batch| !self.running.contains(&batch.first_directory()));
        let batch = self.queue.remove(free.unwrap_or(0))?;
        let mark = batch.first_directory();
        self.bytes -= batch.arena.len();
        self.running.push(mark);
        Some((batch, mark))
    }
}

/// Arena bytes that may wait; what is being worked on comes on top.
const WINDOW: usize = 8 * 1024 * 1024;
const MAX_QUEUE: usize = 64;
const MAX_SPARE: usize = 8;
