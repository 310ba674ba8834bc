use crate::{LocalStore, inner::LocalInner, lock::Cancel};
use futures::future::join;
use std::{
    num::NonZeroUsize,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use tk_store::{
    Result, blocking,
    log::{Level, LogEvent, LogField, LogSink, ResultType},
};
use tokio::sync::mpsc::{Sender, channel};

/// What blocking work says while it goes on, and whether anybody still waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    events: Sender<LogEvent>,
    pub cancel: Cancel,
}

impl Teller {
    /// Tells a message.
    pub fn say(&self, level: Level, text: impl Into<String>) {
        self.event(LogEvent::message(level, text));
    }

    /// Tells something about the one activity that there is.
    pub fn result(&self, kind: ResultType, fields: Vec<LogField>) {
        let id = ACTIVITY;
        self.event(LogEvent::Result { id, kind, fields });
    }

    pub fn event(&self, event: LogEvent) {
        // Whoever does not listen any more has cancelled the work too.
        let _ = self.events.blocking_send(event);
    }
}

impl LocalStore {
    /// As [`telling`], for work on this store.
    pub(crate) async fn run_telling<T: Send + 'static>(
        &self,
        log: &dyn LogSink,
        work: impl FnOnce(&LocalInner, &Teller) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.inner().clone();
        telling(log, move |teller| work(&store, teller)).await
    }
}

/// Runs `work` on a blocking thread; what it tells goes to `log`. It is cancelled when the future is
/// dropped.
pub(crate) async fn telling<T: Send + 'static>(
    log: &dyn LogSink,
    work: impl FnOnce(&Teller) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (events, mut told) = channel(AHEAD);
    let cancel = Cancel::default();
    let _cancel_on_drop = cancel.on_drop();
    let teller = Teller { events, cancel };
    let work = blocking(move || work(&teller));
    let tell = async {
        while let Some(event) = told.recv().await {
            log.event(event);
        }
    };
    join(work, tell).await.0
}

/// Runs `look` for each number below `count` with `jobs` threads; what it found, in order.
pub(crate) fn in_parallel<T: Send>(
    jobs: NonZeroUsize,
    count: usize,
    cancel: &Cancel,
    look: impl Fn(usize) -> Option<T> + Sync,
) -> Result<Vec<(usize, T)>> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count || cancel.check().is_err() {
                return;
            }
            if let Some(one) = look(at) {
                let mut found = found.lock().unwrap_or_else(|e| e.into_inner());
                found.push((at, one));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..jobs.get().min(count) {
            scope.spawn(work);
        }
        work();
    });
    cancel.check()?;
    let mut found = found.into_inner().unwrap_or_else(|e| e.into_inner());
    found.sort_unstable_by_key(|(at, _)| *at);
    Ok(found)
}

/// Only one activity goes on in a call.
pub(crate) const ACTIVITY: u64 = 1;
/// Events that may wait until they are told.
const AHEAD: usize = 256;
