//! Compression in independent frames, so that several threads can work on one NAR.
//!
//! Order is kept: frames are written as they were cut. Frames under way are bounded over all
//! encoders of one [`Workers`]: one for each thread and one that waits, and one or two for each
//! encoder.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    num::NonZeroUsize,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// What makes frames of one format, one after the other.
pub(super) trait Codec: Sized + Send + 'static {
    /// The name that the threads of this format get.
    const NAME: &'static str;
    /// Whether an input that is a single frame is compressed on the thread that brings it. Not if
    /// what a codec holds is so large that only the few threads here may have one.
    const ON_THE_SPOT: bool;

    /// Bytes of input in each frame but the last.
    fn frame(level: i32) -> usize;

    fn new(level: i32) -> io::Result<Self>;

    /// Makes one frame of `input` in `output`, which may hold something else.
    fn compress(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<()>;
}

/// Threads that compress frames, started when there is work for them and ended with this.
pub(super) struct Workers<C> {
    shared: Arc<SharedFrames<C>>,
}

impl<C: Codec> Workers<C> {
    pub(super) fn new(level: i32, threads: NonZeroUsize) -> Self {
        Workers {
            shared: Arc::new(SharedFrames {
                level,
                threads: threads.get(),
                under_way: AtomicUsize::new(0),
                queue: Mutex::default(),
                wake: Condvar::new(),
                spare: Mutex::default(),
                idle: Mutex::default(),
            }),
        }
    }

    pub(super) fn encoder<W: Write>(&self, out: W, size: Option<u64>) -> FrameEncoder<'_, C, W> {
        let frame = C::frame(self.shared.level);
        let room = size.map_or(frame, |size| {
            usize::try_from(size).unwrap_or(frame).min(frame)
        });
        FrameEncoder {
            out,
            shared: &self.shared,
            filling: self.shared.buffer(room),
            under_way: VecDeque::new(),
            wrote: false,
        }
    }
}

impl<C> Drop for Workers<C> {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.wake.notify_all();
    }
}

/// Cuts what is written into frames and puts their compressed forms into `out`.
pub(super) struct FrameEncoder<'a, C, W> {
    out: W,
    shared: &'a Arc<SharedFrames<C>>,
    filling: Vec<u8>,
    under_way: VecDeque<UnderWay<C>>,
    /// Whether there was a frame.
    wrote: bool,
}

impl<C: Codec, W: Write> FrameEncoder<'_, C, W> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let frame = C::frame(self.shared.level);
        let n = bytes.len().min(frame - self.filling.len());
        self.filling.extend_from_slice(&bytes[..n]);
        if self.filling.len() == frame {
            self.submit(frame)?;
        }
        Ok(n)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.wrote && C::ON_THE_SPOT {
            // The whole input is one frame: a hand-over would cost more than it gains.
            let mut frame = Vec::new();
            self.shared
                .with_codec(|codec| codec.compress(&self.filling, &mut frame))?;
            self.out.write_all(&frame)?;
        } else if !self.wrote || !self.filling.is_empty() {
            self.submit(0)?;
        }
        while let Some(oldest) = self.under_way.pop_front() {
            self.write_frame(oldest)?;
        }
        self.shared.give_back(std::mem::take(&mut self.filling));
        Ok(self.out)
    }

    /// Hands over what there is. `room` is what may follow.
    fn submit(&mut self, room: usize) -> io::Result<()> {
        let shared = self.shared;
        // What is done is written, so that its memory is free. One frame of its own every encoder
        // may always have under way, or it could wait for others for ever.
        while !self.under_way.is_empty() && shared.under_way.load(Relaxed) > shared.threads {
            let oldest = self.under_way.pop_front().expect("not empty");
            self.write_frame(oldest)?;
        }
        self.wrote = true;
        let next = shared.buffer(room);
        let input = std::mem::replace(&mut self.filling, next);
        let (done, result) = sync_channel(1);
        self.under_way.push_back(UnderWay::new(shared, result));
        SharedFrames::push(shared, FrameJob { input, done })
    }

    fn write_frame(&mut self, frame: UnderWay<C>) -> io::Result<()> {
        let lost = |_| io::Error::other("a thread that compresses has died");
        let done = frame.result.recv().map_err(lost)??;
        self.out.write_all(&done)?;
        self.shared.give_back(done);
        Ok(())
    }
}

impl<C> fmt::Debug for Workers<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.shared.threads)
    }
}

/// A frame that was handed over; it is counted for as long as somebody waits for it.
struct UnderWay<C> {
    result: Receiver<io::Result<Vec<u8>>>,
    shared: Arc<SharedFrames<C>>,
}

impl<C> UnderWay<C> {
    fn new(shared: &Arc<SharedFrames<C>>, result: Receiver<io::Result<Vec<u8>>>) -> Self {
        shared.under_way.fetch_add(1, Relaxed);
        let shared = shared.clone();
        UnderWay { result, shared }
    }
}

impl<C> Drop for UnderWay<C> {
    fn drop(&mut self) {
        self.shared.under_way.fetch_sub(1, Relaxed);
    }
}

struct SharedFrames<C> {
    level: i32,
    threads: usize,
    /// Frames that were handed over and not yet written out.
    under_way: AtomicUsize,
    queue: Mutex<FrameQueue>,
    wake: Condvar,
    /// Buffers to use again: fresh ones cost a page fault for every 4 KiB.
    spare: Mutex<Vec<Vec<u8>>>,
    /// Codecs of encoders that compress on their own thread.
    idle: Mutex<Vec<C>>,
}

#[derive(Default)]
struct FrameQueue {
    jobs: VecDeque<FrameJob>,
    started: usize,
    waiting: usize,
    closed: bool,
}

struct FrameJob {
    input: Vec<u8>,
    done: SyncSender<io::Result<Vec<u8>>>,
}

impl<C: Codec> SharedFrames<C> {
    fn push(this: &Arc<Self>, job: FrameJob) -> io::Result<()> {
        let mut queue = lock(&this.queue);
        queue.jobs.push_back(job);
        if queue.waiting < queue.jobs.len() && queue.started < this.threads {
            let shared = this.clone();
            thread::Builder::new()
                .name(C::NAME.to_owned())
                .spawn(move || shared.work())?;
            queue.started += 1;
        }
        drop(queue);
        this.wake.notify_one();
        Ok(())
    }

    /// The life of a thread.
    fn work(&self) {
        let mut codec = None;
        while let Some(job) = self.next_job() {
            let codec = match &mut codec {
                Some(codec) => Ok(codec),
                none => C::new(self.level).map(|c| none.insert(c)),
            };
            let mut output = self.buffer(0);
            let made = codec.and_then(|codec| codec.compress(&job.input, &mut output));
            self.give_back(job.input);
            // The encoder may have failed and gone.
            let _ = job.done.send(made.map(|()| output));
        }
    }

    fn next_job(&self) -> Option<FrameJob> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue.waiting += 1;
            queue = self.wake.wait(queue).unwrap_or_else(|e| e.into_inner());
            queue.waiting -= 1;
        }
    }

    fn with_codec<T>(&self, run: impl FnOnce(&mut C) -> io::Result<T>) -> io::Result<T> {
        let idle = lock(&self.idle).pop();
        let mut codec = match idle {
            Some(codec) => codec,
            None => C::new(self.level)?,
        };
        let result = run(&mut codec);
        let mut idle = lock(&self.idle);
        if idle.len() < self.threads {
            idle.push(codec);
        }
        result
    }

    fn buffer(&self, room: usize) -> Vec<u8> {
        let spare = lock(&self.spare).pop();
        let mut buffer = spare.unwrap_or_default();
        buffer.clear();
        buffer.reserve(room);
        buffer
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = lock(&self.spare);
        if spare.len() <= self.threads {
            spare.push(buffer);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
