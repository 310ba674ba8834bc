//! Dumps a tree: threads encode batches of it ahead of the consumer, who takes them in order.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::block::{BLOCK, Block, Blocks, Chunk};
use super::encode_batch::{BatchEncoder, PIECE};
use super::error::DumpError;
use super::options::DumpOptions;
use super::walk::TreeWalk;

/// Writes the archive of the tree at `path` to `out`; returns its length in bytes.
///
/// `path` may be a file, a directory or a symlink, which is not followed. What was written before an error is not a
/// complete archive.
pub fn dump(path: &Path, options: &DumpOptions, out: &mut impl Write) -> Result<u64, DumpError> {
    let mut length = 0;
    for chunk in Dump::new(path, options)? {
        let chunk = chunk?;
        out.write_all(&chunk).map_err(DumpError::Write)?;
        length += chunk.len() as u64;
    }
    Ok(length)
}

/// The archive of a tree as chunks, in order, read ahead by threads.
///
/// Ends after the first error. Memory is bounded whatever the size of files: 256 KiB for each of 8 + 2 × threads chunks
/// (besides those the caller keeps), and the names of the open directories. At most 64 + 33 × threads descriptors are
/// open, and fewer where the process may not have many ([`descriptors`](super::descriptors)). Dropping it early stops
/// the threads and waits for them, which takes no longer than the read they are in.
///
/// ```
/// # let folder = std::env::temp_dir().join("tk-nar-doc-dump");
/// # std::fs::create_dir_all(&folder)?;
/// use tk_nar::fs::{Dump, DumpOptions};
///
/// let mut length = 0;
/// for chunk in Dump::new(&folder, &DumpOptions::default())? {
///     length += chunk?.len(); // hash it, write it, send it
/// }
/// # assert!(length >= 96);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Dump {
    shared: Arc<SharedDump>,
    options: DumpOptions,
    consumer: Consumer,
    phase: Phase,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// The first block is encoded by the consumer: small trees end there.
    First,
    Threads,
    Over,
}

impl Dump {
    /// Looks at the root of the tree; reads nothing of it yet.
    pub fn new(path: &Path, options: &DumpOptions) -> Result<Dump, DumpError> {
        let walk = TreeWalk::new(path, options.case_hack)?;
        let shared = Arc::new(SharedDump::new(walk, options.threads.get()));
        Ok(Dump {
            shared,
            options: options.clone(),
            consumer: Consumer::default(),
            phase: Phase::First,
            threads: Vec::new(),
        })
    }

    fn first(&mut self) -> Result<Option<Chunk>, DumpError> {
        let mut walk = lock(&self.shared.walk);
        let mut block = self.shared.blocks.take();
        while let Some(batch) = walk.next_batch()? {
            let mut encoding = BatchEncoder::new(batch);
            let complete = encoding.fill(&mut block, PIECE)?;
            // A batch that left much room was small, and so may be the whole tree.
            if complete && block.room() > ENOUGH_ROOM {
                continue;
            }
            drop(walk);
            return self.start(block, (!complete).then_some(encoding)).map(Some);
        }
        self.phase = Phase::Over;
        Ok((!block.is_empty()).then(|| self.shared.blocks.chunk(block)))
    }

    /// Starts the threads; `block` holds what comes before `rest`.
    fn start(&mut self, block: Block, rest: Option<BatchEncoder>) -> Result<Chunk, DumpError> {
        if let Some(rest) = rest {
            lock(&self.shared.state)
                .slots
                .push_back(DumpSlot::default());
            self.consumer.rest = Some((0, rest));
        }
        // The consumer works too, but something must read while it hashes.
        for index in 0..self.options.threads.get().saturating_sub(1).max(1) {
            let shared = self.shared.clone();
            let name = format!("nar-dump-{index}");
            match std::thread::Builder::new()
                .name(name)
                .spawn(move || DumpWorker { shared }.run())
            {
                Ok(thread) => self.threads.push(thread),
                // One thread is enough to come to the end.
                Err(_) if !self.threads.is_empty() => break,
                Err(source) => {
                    return Err(DumpError::Io {
                        doing: "start a thread to read",
                        path: PathBuf::new(),
                        source,
                    });
                }
            }
        }
        self.phase = Phase::Threads;
        Ok(self.shared.blocks.chunk(block))
    }

    fn stop(&mut self) {
        self.phase = Phase::Over;
        lock(&self.shared.state).stop = true;
        self.shared.room.notify_all();
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was already told to the consumer by `Worker::drop`.
            let _ = thread.join();
        }
    }
}

impl Iterator for Dump {
    type Item = Result<Chunk, DumpError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = match self.phase {
            Phase::First => self.first(),
            Phase::Threads => self.shared.next(&mut self.consumer),
            Phase::Over => return None,
        };
        if !matches!(next, Ok(Some(_))) {
            self.stop();
        }
        self.consumer.left = Some(Instant::now());
        next.transpose()
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What consumer and threads share. Whoever takes a batch from the walk appends its slot before the walk is free again,
/// so slots are in archive order, and the first one is complete, at work in a thread, or in `rests`.
#[derive(Debug)]
struct SharedDump {
    walk: Mutex<TreeWalk>,
    state: Mutex<DumpState>,
    /// Threads with a full block wait here until they may hand it over.
    room: Condvar,
    /// Threads without a batch wait here for one.
    work: Condvar,
    /// The consumer waits here for a chunk of the first slot.
    ready: Condvar,
    /// Changes with every block that is appended to a slot.
    appended: AtomicUsize,
    blocks: Arc<Blocks>,
    /// Chunks that may wait for the consumer, all slots taken together.
    window: usize,
}

#[derive(Debug, Default)]
struct DumpState {
    slots: VecDeque<DumpSlot>,
    /// The number of `slots[0]`.
    first: u64,
    /// Chunks in all slots.
    waiting: usize,
    /// Batches the consumer began and left to the threads, with the numbers of their slots.
    rests: VecDeque<(u64, BatchEncoder)>,
    /// The walk is at its end: no more slots come.
    walked: bool,
    stop: bool,
    died: bool,
    /// Who waits at which condition variable: waking nobody costs a system call too.
    full: usize,
    idle: usize,
    starved: bool,
}

#[derive(Debug, Default)]
struct DumpSlot {
    chunks: VecDeque<Chunk>,
    error: Option<DumpError>,
    complete: bool,
    /// Its thread waits for room.
    full: bool,
}

impl SharedDump {
    fn new(walk: TreeWalk, threads: usize) -> Self {
        let window = WINDOW + threads;
        Self {
            walk: Mutex::new(walk),
            state: Mutex::default(),
            room: Condvar::new(),
            work: Condvar::new(),
            ready: Condvar::new(),
            appended: AtomicUsize::new(0),
            blocks: Blocks::new(window + threads + 1),
            window,
        }
    }

    /// The consumer's side: the next chunk. Works on batches itself rather than wait for one.
    fn next(&self, consumer: &mut Consumer) -> Result<Option<Chunk>, DumpError> {
        let fast = consumer.is_fast();
        let mut patient = false;
        let mut state = lock(&self.state);
        loop {
            let keeps = |(number, rest): &mut (u64, BatchEncoder)| {
                *number == state.first && (fast || rest.is_in_large_file())
            };
            if let Some((number, rest)) = consumer.rest.take_if(|rest| !keeps(rest)) {
                self.leave(&mut state, number, rest);
            }
            match state.pop()? {
                Popped::Chunk(chunk) => {
                    self.wake_threads(&state);
                    return Ok(Some(chunk));
                }
                Popped::End => return Ok(None),
                Popped::Nothing => {}
            }
            if state.died {
                return Err(DumpError::Thread);
            }
            if let Some((number, rest)) = consumer.rest.take().or_else(|| state.first_rest()) {
                drop(state);
                self.help(consumer, number, rest);
            } else if state.has_room(self.window) {
                drop(state);
                if let Some((number, encoding)) = self.take_batch() {
                    self.help(consumer, number, encoding);
                }
            } else {
                // The first slot can have become the first only now, while its thread waits for that.
                self.wake_threads(&state);
                let seen = self.appended.load(Ordering::Relaxed);
                // To fall asleep and be woken takes longer than most reads, so it sleeps only after it has
                // spun once.
                if std::mem::take(&mut patient) {
                    state.starved = true;
                    state = self
                        .ready
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                drop(state);
                self.spin(seen);
                patient = true;
            }
            state = lock(&self.state);
        }
    }

    /// Waits a moment without sleeping: reading the next piece takes less time than falling asleep and waking up.
    fn spin(&self, seen: usize) {
        for _ in 0..SPINS {
            if self.appended.load(Ordering::Relaxed) != seen {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Encodes the beginning of a batch for the consumer, who must not be kept long.
    fn help(&self, consumer: &mut Consumer, number: u64, mut encoding: BatchEncoder) {
        // Who only passes the bytes on does best with few large reads.
        // One of them, so that it is still in the cache when the next one is read into it.
        let (piece, blocks) = if consumer.is_fast() {
            (BLOCK, 1)
        } else {
            (PIECE, HELP)
        };
        let start = Instant::now();
        for _ in 0..blocks {
            let mut block = self.blocks.take();
            let result = encoding.fill(&mut block, piece);
            let more = matches!(result, Ok(false));
            self.append(&mut lock(&self.state), number, block, result);
            if !more {
                return;
            }
        }
        consumer.fill = start.elapsed() / blocks;
        consumer.rest = Some((number, encoding));
    }

    /// Leaves what the consumer began to the threads.
    fn leave(&self, state: &mut DumpState, number: u64, rest: BatchEncoder) {
        let place = state.rests.partition_point(|(other, _)| *other < number);
        state.rests.insert(place, (number, rest));
        if state.idle > 0 {
            self.work.notify_one();
        }
    }

    /// A thread's side: the next batch, once there is room for its chunks; `None` if there is nothing more to do.
    fn wait_for_batch(&self) -> Option<(u64, BatchEncoder)> {
        loop {
            let mut state = lock(&self.state);
            loop {
                if state.stop {
                    return None;
                }
                if let Some(rest) = state.rests.pop_front() {
                    return Some(rest);
                }
                if state.has_room(self.window) {
                    break;
                }
                state.idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
            drop(state);
            if let Some(batch) = self.take_batch() {
                return Some(batch);
            }
        }
    }

    /// Takes the next batch from the walk and gives it a slot.
    fn take_batch(&self) -> Option<(u64, BatchEncoder)> {
        // The walk stays locked until the slot is there, so that slots stand in the order of the archive.
        let mut walk = lock(&self.walk);
        if lock(&self.state).walked {
            return None;
        }
        let batch = walk.next_batch();
        let mut state = lock(&self.state);
        let slot = match &batch {
            Ok(Some(_)) => DumpSlot::default(),
            Ok(None) => {
                state.walked = true;
                self.wake_consumer(&mut state);
                return None;
            }
            Err(_) => DumpSlot {
                complete: true,
                ..DumpSlot::default()
            },
        };
        state.slots.push_back(slot);
        match batch {
            Ok(Some(batch)) => Some((
                state.first + state.slots.len() as u64 - 1,
                BatchEncoder::new(batch),
            )),
            Ok(None) => None,
            Err(error) => {
                state.walked = true;
                if let Some(slot) = state.slots.back_mut() {
                    slot.error = Some(error);
                }
                self.wake_consumer(&mut state);
                None
            }
        }
    }

    /// Appends a block to its slot; waits while too many chunks wait, unless the consumer is waiting for this very slot.
    /// False if the dump was stopped.
    fn hand_over(&self, number: u64, block: Block, result: Result<bool, DumpError>) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.stop {
                return false;
            }
            let queued = state.slots.front().map_or(0, |slot| slot.chunks.len());
            if state.waiting < self.window || (state.first == number && queued < 2) {
                break;
            }
            // It may sleep until the first slot has more chunks than there is room for now.
            if queued > 0 {
                self.wake_consumer(&mut state);
            }
            state.set_full(number, true);
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.set_full(number, false);
        }
        self.append(&mut state, number, block, result);
        true
    }

    fn append(
        &self,
        state: &mut DumpState,
        number: u64,
        block: Block,
        result: Result<bool, DumpError>,
    ) {
        let index = (number - state.first) as usize;
        let Some(slot) = state.slots.get_mut(index) else {
            return;
        };
        match result {
            Ok(complete) => slot.complete = complete,
            Err(error) => slot.error = Some(error),
        }
        if !block.is_empty() {
            slot.chunks.push_back(self.blocks.chunk(block));
            state.waiting += 1;
        }
        self.appended.fetch_add(1, Ordering::Relaxed);
        // A consumer that is faster than the threads is woken for several chunks at once.
        let over = slot.complete || slot.error.is_some();
        if index == 0
            && (over || slot.chunks.len() >= ENOUGH_CHUNKS || state.waiting >= self.window)
        {
            self.wake_consumer(state);
        }
    }

    /// Wakes threads once there is room for several chunks, or if the first slot runs dry.
    fn wake_threads(&self, state: &DumpState) {
        let room = state.waiting <= self.window / 2;
        let work = !state.rests.is_empty() || (room && state.has_room(self.window));
        let dry = state
            .slots
            .front()
            .is_some_and(|slot| slot.full && slot.chunks.len() < 2);
        if state.full > 0 && (room || dry) {
            self.room.notify_all();
        }
        if state.idle > 0 && work {
            self.work.notify_all();
        }
    }

    fn wake_consumer(&self, state: &mut DumpState) {
        if std::mem::take(&mut state.starved) {
            self.ready.notify_one();
        }
    }
}

/// What only the consumer knows.
#[derive(Debug, Default)]
struct Consumer {
    /// A batch it began and did not leave to the threads yet.
    rest: Option<(u64, BatchEncoder)>,
    /// How long it took to encode a block.
    fill: Duration,
    /// When it went away with its last chunk.
    left: Option<Instant>,
}

impl Consumer {
    /// Whether it needs so little time for a chunk that passing chunks from thread to thread would only slow it down.
    fn is_fast(&self) -> bool {
        self.left.is_some_and(|left| left.elapsed() * 4 < self.fill)
    }
}

enum Popped {
    Chunk(Chunk),
    /// The first slot has no chunk yet.
    Nothing,
    End,
}

impl DumpState {
    fn pop(&mut self) -> Result<Popped, DumpError> {
        while let Some(slot) = self.slots.front_mut() {
            if let Some(chunk) = slot.chunks.pop_front() {
                self.waiting -= 1;
                return Ok(Popped::Chunk(chunk));
            }
            if let Some(error) = slot.error.take() {
                return Err(error);
            }
            if !slot.complete {
                return Ok(Popped::Nothing);
            }
            self.slots.pop_front();
            self.first += 1;
        }
        Ok(if self.walked {
            Popped::End
        } else {
            Popped::Nothing
        })
    }

    /// The batch whose chunks come next, if the consumer left it to the threads and none took it.
    fn first_rest(&mut self) -> Option<(u64, BatchEncoder)> {
        match self.rests.front() {
            Some((number, _)) if *number == self.first => self.rests.pop_front(),
            _ => None,
        }
    }

    fn set_full(&mut self, number: u64, full: bool) {
        let index = (number - self.first) as usize;
        if let Some(slot) = self.slots.get_mut(index) {
            slot.full = full;
        }
        if full {
            self.full += 1;
        } else {
            self.full -= 1;
        }
    }

    /// Whether another batch may be taken from the walk.
    fn has_room(&self, window: usize) -> bool {
        !self.walked && self.waiting < window && self.slots.len() < 2 * window
    }
}

struct DumpWorker {
    shared: Arc<SharedDump>,
}

impl DumpWorker {
    fn run(&self) {
        while let Some((number, mut encoding)) = self.shared.wait_for_batch() {
            loop {
                let mut block = self.shared.blocks.take();
                let result = encoding.fill(&mut block, PIECE);
                let more = matches!(result, Ok(false));
                if !self.shared.hand_over(number, block, result) {
                    return;
                }
                if !more {
                    break;
                }
            }
        }
    }
}

impl Drop for DumpWorker {
    /// A thread that panics must not leave the consumer waiting.
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.shared.state).died = true;
            self.shared.ready.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chunks that wait for the consumer, besides one for each thread.
const WINDOW: usize = 4;
/// Chunks of an incomplete batch for which a waiting consumer is woken.
const ENOUGH_CHUNKS: usize = 3;
/// Turns a waiting consumer spins, some tens of microseconds.
const SPINS: usize = 1000;
/// Blocks the consumer encodes before it looks for its own chunk again.
const HELP: u32 = 4;
/// If the first batch leaves more room than this, the next one is encoded without threads too.
const ENOUGH_ROOM: usize = BLOCK / 4 * 3;
