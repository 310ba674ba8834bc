//! zstd in independent frames, so that several threads can work on one NAR.
//!
//! Order is kept: frames are written as they were cut. Frames under way are bounded over all
//! encoders of one [`Workers`]: one for each thread and one that waits, and one or two for each
//! encoder.

use super::zstd_frame;
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
use zstd::bulk::Compressor;

/// Threads that compress frames, started when there is work for them and ended with this.
pub(super) struct Workers {
    shared: Arc<Shared>,
}

impl Workers {
    pub(super) fn new(level: i32, threads: NonZeroUsize) -> Self {
        Workers {
            shared: Arc::new(Shared {
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

    pub(super) fn encoder<W: Write>(&self, out: W, size: Option<u64>) -> FrameEncoder<'_, W> {
        let frame = zstd_frame(self.shared.level);
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

impl Drop for Workers {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.wake.notify_all();
    }
}

/// Cuts what is written into frames and puts their compressed forms into `out`.
pub(super) struct FrameEncoder<'a, W> {
    out: W,
    shared: &'a Arc<Shared>,
    filling: Vec<u8>,
    under_way: VecDeque<UnderWay>,
    /// Whether there was a frame.
    wrote: bool,
}

impl<W: Write> FrameEncoder<'_, W> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let frame = zstd_frame(self.shared.level);
        let n = bytes.len().min(frame - self.filling.len());
        self.filling.extend_from_slice(&bytes[..n]);
        if self.filling.len() == frame {
            self.submit()?;
        }
        Ok(n)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.wrote {
            // The whole input is one frame: a hand-over would cost more than it gains.
            let frame = self.shared.with_compressor(|c| compress(c, &self.filling));
            self.out.write_all(&frame?)?;
        } else if !self.filling.is_empty() {
            self.submit()?;
        }
        while let Some(oldest) = self.under_way.pop_front() {
            self.write_frame(oldest)?;
        }
        self.shared.give_back(std::mem::take(&mut self.filling));
        Ok(self.out)
    }

    fn submit(&mut self) -> io::Result<()> {
        let shared = self.shared;
        // What is done is written, so that its memory is free. One frame of its own every encoder
        // may always have under way, or it could wait for others for ever.
        while !self.under_way.is_empty() && shared.under_way.load(Relaxed) > shared.threads {
            let oldest = self.under_way.pop_front().expect("not empty");
            self.write_frame(oldest)?;
        }
        self.wrote = true;
        let next = shared.buffer(zstd_frame(shared.level));
        let input = std::mem::replace(&mut self.filling, next);
        let (done, result) = sync_channel(1);
        self.under_way.push_back(UnderWay::new(shared, result));
        Shared::push(shared, Job { input, done })
    }

    fn write_frame(&mut self, frame: UnderWay) -> io::Result<()> {
        let lost = |_| io::Error::other("a thread that compresses has died");
        let done = frame.result.recv().map_err(lost)??;
        self.out.write_all(&done)?;
        self.shared.give_back(done);
        Ok(())
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.shared.threads)
    }
}

/// A frame that was handed over; it is counted for as long as somebody waits for it.
struct UnderWay {
    result: Receiver<io::Result<Vec<u8>>>,
    shared: Arc<Shared>,
}

impl UnderWay {
    fn new(shared: &Arc<Shared>, result: Receiver<io::Result<Vec<u8>>>) -> Self {
        shared.under_way.fetch_add(1, Relaxed);
        let shared = shared.clone();
        UnderWay { result, shared }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.under_way.fetch_sub(1, Relaxed);
    }
}

struct Shared {
    level: i32,
    threads: usize,
    /// Frames that were handed over and not yet written out.
    under_way: AtomicUsize,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Buffers to use again: fresh ones cost a page fault for every 4 KiB.
    spare: Mutex<Vec<Vec<u8>>>,
    /// Compressors of encoders that compress on their own thread.
    idle: Mutex<Vec<Compressor<'static>>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    started: usize,
    waiting: usize,
    closed: bool,
}

struct Job {
    input: Vec<u8>,
    done: SyncSender<io::Result<Vec<u8>>>,
}

impl Shared {
    fn push(this: &Arc<Self>, job: Job) -> io::Result<()> {
        let mut queue = lock(&this.queue);
        queue.jobs.push_back(job);
        if queue.waiting < queue.jobs.len() && queue.started < this.threads {
            let shared = this.clone();
            thread::Builder::new()
                .name("zstd".to_owned())
                .spawn(move || shared.work())?;
            queue.started += 1;
        }
        drop(queue);
        this.wake.notify_one();
        Ok(())
    }

    /// The life of a thread.
    fn work(&self) {
        let mut compressor = None;
        while let Some(job) = self.next_job() {
            let compressor = match &mut compressor {
                Some(compressor) => Ok(compressor),
                none => Compressor::new(self.level).map(|c| none.insert(c)),
            };
            let mut output = self.buffer(0);
            let made = compressor.and_then(|c| compress_into(c, &job.input, &mut output));
            self.give_back(job.input);
            // The encoder may have failed and gone.
            let _ = job.done.send(made.map(|()| output));
        }
    }

    fn next_job(&self) -> Option<Job> {
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

    fn with_compressor<T>(
        &self,
        run: impl FnOnce(&mut Compressor<'static>) -> io::Result<T>,
    ) -> io::Result<T> {
        let idle = lock(&self.idle).pop();
        let mut compressor = match idle {
            Some(compressor) => compressor,
            None => Compressor::new(self.level)?,
        };
        let result = run(&mut compressor);
        let mut idle = lock(&self.idle);
        if idle.len() < self.threads {
            idle.push(compressor);
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

fn compress(compressor: &mut Compressor<'static>, input: &[u8]) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    compress_into(compressor, input, &mut output)?;
    Ok(output)
}

fn compress_into(
    compressor: &mut Compressor<'static>,
    input: &[u8],
    output: &mut Vec<u8>,
) -> io::Result<()> {
    output.clear();
    output.reserve(zstd::zstd_safe::compress_bound(input.len()));
    compressor.compress_to_buffer(input, output).map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
