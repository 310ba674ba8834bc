//! Few threads mean fewer at once. Work that waits for other work, each in a thread of its own, would wait
//! for ever where the second thread cannot be had.

use crate::ui::count;
use anyhow::{Result, ensure};
use rustix::process::{Resource, getrlimit};
use std::{
    fs,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Barrier},
    thread,
};
use tokio::runtime::{Builder, Runtime};

/// How few threads this process may start; made by [`Threads::find`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads(Option<usize>);

impl Threads {
    /// Asks the system: the group of processes (`TasksMax` of systemd) and the user (`ulimit -u`) may be
    /// limited.
    ///
    /// # Errors
    /// When there are too few for anything.
    pub fn find() -> Result<Self> {
        let of_group = room_of_group().filter(|room| *room < FEW);
        let limit = getrlimit(Resource::Nproc).current;
        let of_user = limit
            .filter(|limit| *limit < FEW as u64)
            .map(|_| room_by_trying());
        let room = of_group
            .into_iter()
            .chain(of_user)
            .min()
            .filter(|room| *room < FEW);
        if let Some(room) = room {
            ensure!(
                room >= LEAST,
                "this process may start {} only, and needs {LEAST}: raise TasksMax of its service or \
                 container, or ulimit -u",
                count(room, "thread")
            );
        }
        Ok(Threads(room))
    }

    /// The paths that may be worked on at once where `wanted` are asked for, or as many as there are
    /// processors.
    pub fn jobs(self, wanted: Option<NonZeroUsize>) -> Option<NonZeroUsize> {
        let Some(most) = self.0.map(of_room) else {
            return wanted;
        };
        let processors = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Some(wanted.unwrap_or(processors).min(most))
    }

    /// The runtime, whose threads are there before anything else may take them.
    pub fn runtime(self, mut builder: Builder) -> Result<Runtime> {
        let Some(room) = self.0 else {
            return Ok(builder.build()?);
        };
        // Two wait for each other for each path.
        let threads = (3 * of_room(room).get() + 4).min(room / 2).max(LEAST - 2);
        builder.worker_threads(1).max_blocking_threads(threads);
        let runtime = builder.thread_keep_alive(FOR_EVER).build()?;
        let all = Arc::new(Barrier::new(threads + 1));
        for _ in 0..threads {
            let all = all.clone();
            runtime.spawn_blocking(move || all.wait());
        }
        all.wait();
        Ok(runtime)
    }
}

/// The paths that so many threads are enough for.
fn of_room(room: usize) -> NonZeroUsize {
    NonZeroUsize::new(room / OF_ONE_JOB).unwrap_or(NonZeroUsize::MIN)
}

/// The processes and threads that may still be started in the groups of this one, those above included.
fn room_of_group() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let folders = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some(Path::new(GROUPS).join(path)),
            all if all.split(',').any(|name| name == "pids") => {
                Some(Path::new(GROUPS).join("pids").join(path))
            }
            _ => None,
        }
    });
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<usize>().ok();
    let rooms = folders.flat_map(|folder| {
        let above = folder
            .ancestors()
            .take_while(|folder| folder.starts_with(GROUPS));
        let rooms = above.filter_map(|folder| {
            let most = number(&folder.join("pids.max"))?;
            Some(most.saturating_sub(number(&folder.join("pids.current"))?))
        });
        rooms.collect::<Vec<_>>()
    });
    rooms.min()
}

/// The same for the user, whose processes nobody counts: by starting threads, which end at once.
fn room_by_trying() -> usize {
    let held = Arc::new(std::sync::Mutex::new(()));
    let hold = held.lock();
    let mut threads = Vec::new();
    while threads.len() < FEW {
        let held = held.clone();
        let wait = move || drop(held.lock());
        match thread::Builder::new().stack_size(SMALL_STACK).spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(_) => break,
        }
    }
    drop(hold);
    let room = threads.len();
    for thread in threads {
        let _ = thread.join();
    }
    room
}

/// From so many threads on nobody needs to count.
const FEW: usize = 512;
/// Threads without which nothing can be moved.
const LEAST: usize = 6;
/// Threads that read, pack, unpack and write one path.
const OF_ONE_JOB: usize = 12;
const SMALL_STACK: usize = 64 << 10;
const FOR_EVER: std::time::Duration = std::time::Duration::from_secs(1 << 32);
const GROUPS: &str = "/sys/fs/cgroup";
