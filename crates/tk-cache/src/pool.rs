//! Threads that pack NARs: few, and always the same.
//!
//! An encoder takes tens of MiB, which the system's allocator keeps for the thread that freed
//! them. On the runtime's blocking threads, of which there are many, that would add up.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};
use tk_store::{Error, Result};
use tokio::sync::oneshot;

/// Up to a number of threads, started when there is work for them and ended with this.
pub(crate) struct PackPool {
    jobs: Mutex<PackPoolState>,
    waiting: Arc<Mutex<Receiver<PackJob>>>,
    most: usize,
}

struct PackPoolState {
    sender: Sender<PackJob>,
    started: usize,
}

type PackJob = Box<dyn FnOnce() + Send>;

impl PackPool {
    pub(crate) fn new(most: usize) -> Self {
        let (sender, waiting) = channel();
        PackPool {
            jobs: Mutex::new(PackPoolState { sender, started: 0 }),
            waiting: Arc::new(Mutex::new(waiting)),
            most,
        }
    }

    /// Runs `work` as soon as a thread is free; what it panics with goes on here.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let job = move || {
            // Nobody may wait any more.
            let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
        };
        self.push(Box::new(job))
            .map_err(|e| Error::io("starting a thread", e))?;
        match result.await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(gone) => Err(Error::io("waiting for a thread", io::Error::other(gone))),
        }
    }

    fn push(&self, job: PackJob) -> io::Result<()> {
        let mut state = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if state.started < self.most {
            let waiting = self.waiting.clone();
            thread::Builder::new()
                .name("pack".to_owned())
                .spawn(move || work(&waiting))?;
            state.started += 1;
        }
        let gone = |_| io::Error::other("the threads that pack have died");
        state.sender.send(job).map_err(gone)
    }
}

/// The life of a thread.
fn work(waiting: &Mutex<Receiver<PackJob>>) {
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::collections::HashSet;

    #[tokio::test]
    async fn work_is_done_by_few_threads() {
        let pool = PackPool::new(2);
        let all = (0..50).map(|n| pool.run(move || (n, thread::current().id())));
        let done = futures::future::try_join_all(all).await.unwrap();
        assert!(done.iter().map(|(n, _)| *n).eq(0..50));
        let threads: HashSet<_> = done.iter().map(|(_, thread)| *thread).collect();
        assert!(threads.len() <= 2, "{threads:?}");
    }

    #[tokio::test]
    async fn a_panic_goes_on_where_the_result_is_awaited_and_ends_no_thread() {
        let pool = PackPool::new(1);
        let panics = AssertUnwindSafe(pool.run(|| panic!("on purpose"))).catch_unwind();
        assert!(panics.await.is_err());
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }
}
