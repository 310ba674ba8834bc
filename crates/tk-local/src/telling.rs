use crate::{LocalStore, inner::LocalInner, lock::Cancel};
use futures::future::join;
use tk_store::{
    Result,
    log::{Level, LogEvent, LogSink},
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
        // Whoever does not listen any more has cancelled the work too.
        let _ = self.events.blocking_send(LogEvent::message(level, text));
    }
}

impl LocalStore {
    /// Runs `work` on a blocking thread; what it tells goes to `log`. It is cancelled when the future is
    /// dropped.
    pub(crate) async fn run_telling<T: Send + 'static>(
        &self,
        log: &dyn LogSink,
        work: impl FnOnce(&LocalInner, &Teller) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (events, mut told) = channel(AHEAD);
        let cancel = Cancel::default();
        let _cancel_on_drop = cancel.on_drop();
        let teller = Teller { events, cancel };
        let work = self.run(move |store| work(store, &teller));
        let tell = async {
            while let Some(event) = told.recv().await {
                log.event(event);
            }
        };
        join(work, tell).await.0
    }
}

/// Events that may wait until they are told.
const AHEAD: usize = 256;
