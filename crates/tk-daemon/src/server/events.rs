//! What the store tells while it works, on its way to the client.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};
use tk_store::log::{Level, LogEvent, LogField, LogSink};
use tokio::sync::Notify;

/// Events that wait to be sent. A client that reads slower than a builder writes loses messages,
/// not the start or the end of an activity.
#[derive(Default)]
pub(super) struct Events {
    waiting: Mutex<WaitingEvents>,
    arrived: Notify,
}

#[derive(Default)]
struct WaitingEvents {
    events: VecDeque<LogEvent>,
    bytes: usize,
    lost: u64,
}

impl Events {
    /// Waits until there are some.
    pub async fn wait(&self) {
        while self.lock().events.is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Takes all that wait, and last a word about those that did not fit.
    pub fn take(&self) -> VecDeque<LogEvent> {
        let mut waiting = std::mem::take(&mut *self.lock());
        if waiting.lost > 0 {
            let text = format!(
                "{} messages were lost: the client is too slow",
                waiting.lost
            );
            waiting
                .events
                .push_back(LogEvent::message(Level::Warn, text));
        }
        waiting.events
    }

    fn lock(&self) -> MutexGuard<'_, WaitingEvents> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl LogSink for Events {
    fn event(&self, event: LogEvent) {
        let mut waiting = self.lock();
        let bytes = size(&event);
        let droppable = matches!(event, LogEvent::Message { .. } | LogEvent::Result { .. });
        if droppable && waiting.bytes + bytes > MAX_WAITING {
            waiting.lost += 1;
            return;
        }
        waiting.bytes += bytes;
        waiting.events.push_back(event);
        drop(waiting);
        self.arrived.notify_one();
    }
}

/// Roughly what an event takes in memory, in bytes.
fn size(event: &LogEvent) -> usize {
    let fields = |fields: &[LogField]| -> usize {
        let text = |field: &LogField| match field {
            LogField::Int(_) => 0,
            LogField::Text(text) => text.len(),
        };
        fields.iter().map(|field| 32 + text(field)).sum()
    };
    let own = match event {
        LogEvent::Message { text, .. } => text.len(),
        LogEvent::Start {
            text, fields: f, ..
        } => text.len() + fields(f),
        LogEvent::Stop { .. } => 0,
        LogEvent::Result { fields: f, .. } => fields(f),
    };
    96 + own
}

/// How much waiting events may take in memory, in bytes, before messages and results are dropped.
const MAX_WAITING: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_flood_loses_messages_and_says_so() {
        let events = Events::default();
        assert!(events.wait().now_or_never().is_none());
        let line = "x".repeat(1000);
        for _ in 0..10_000 {
            events.event(LogEvent::message(Level::Info, line.as_str()));
        }
        events.event(LogEvent::Stop { id: 7 });
        events.wait().await;
        let taken = events.take();
        assert!(taken.len() < 5000);
        assert!(taken.contains(&LogEvent::Stop { id: 7 }));
        let Some(LogEvent::Message { level, text }) = taken.back() else {
            panic!("{:?}", taken.back())
        };
        assert_eq!(*level, Level::Warn);
        assert!(text.ends_with("messages were lost: the client is too slow"));
        assert!(events.take().is_empty());
    }
}
