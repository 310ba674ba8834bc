//! Which derivations have been built so far, while others still are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};
use tk_path::{StoreDir, StorePath};
use tk_store::log::{ActivityType, LogEvent, LogField, LogSink};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Hands every event on, and tells of each derivation when its build ends, well or not.
///
/// A derivation is told of once. Its outputs are in the store by then, unless it failed or is built
/// on another machine, from where they may still be on their way.
#[derive(Debug)]
pub struct BuildTracker<S> {
    next: S,
    dir: StoreDir,
    ended: UnboundedSender<StorePath>,
    state: Mutex<TrackerState>,
}

#[derive(Debug, Default)]
struct TrackerState {
    /// The derivations that are being built, by the number of the activity that builds each.
    running: BTreeMap<u64, StorePath>,
    told: BTreeSet<StorePath>,
}

impl<S: LogSink> BuildTracker<S> {
    /// The sink, and the derivations in the order in which their builds end; these end with the sink.
    /// `dir` is the store's directory.
    pub fn new(dir: StoreDir, next: S) -> (Self, UnboundedReceiver<StorePath>) {
        let (ended, told) = unbounded_channel();
        let sink = BuildTracker {
            next,
            dir,
            ended,
            state: Mutex::default(),
        };
        (sink, told)
    }

    fn take(&self, event: &LogEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            LogEvent::Start {
                id, kind, fields, ..
            } if *kind == ActivityType::BUILD => {
                if let Some(LogField::Text(text)) = fields.first()
                    && let Ok(drv) = self.dir.parse(text)
                    && state.running.len() < MOST
                {
                    state.running.insert(*id, drv);
                }
            }
            LogEvent::Stop { id } => {
                let Some(drv) = state.running.remove(id) else {
                    return;
                };
                if state.told.len() < MOST && state.told.insert(drv.clone()) {
                    // Whoever does not listen any more need not be told.
                    let _ = self.ended.send(drv);
                }
            }
            _ => {}
        }
    }
}

impl<S: LogSink> LogSink for BuildTracker<S> {
    fn event(&self, event: LogEvent) {
        self.take(&event);
        self.next.event(event);
    }
}

/// Derivations that are remembered, some times what the largest builds have; of more nothing is told.
const MOST: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;
    use tk_store::log::Level;

    fn start(id: u64, kind: ActivityType, drv: &str) -> LogEvent {
        LogEvent::Start {
            id,
            level: Level::Info,
            kind,
            text: String::new(),
            fields: vec![drv.into(), "".into(), 1.into(), 1.into()],
            parent: 0,
        }
    }

    #[test]
    fn each_is_told_of_once_when_it_ends() {
        let drv = |name: &str| format!("/nix/store/{}-{name}.drv", "0".repeat(32));
        let (sink, mut told) = BuildTracker::new(StoreDir::default(), ());
        sink.event(start(1, ActivityType::BUILD, &drv("a")));
        sink.event(start(2, ActivityType::BUILD, &drv("b")));
        sink.event(start(3, ActivityType::BUILD, &drv("a")));
        // What is no build, and what is no derivation.
        sink.event(start(4, ActivityType::SUBSTITUTE, &drv("c")));
        sink.event(start(5, ActivityType::BUILD, "/somewhere/else"));
        assert!(told.try_recv().is_err(), "nothing has ended");
        for id in [2, 1, 3, 4, 5, 2, 77] {
            sink.event(LogEvent::Stop { id });
        }
        drop(sink);
        let mut names = Vec::new();
        while let Some(path) = told.blocking_recv() {
            names.push(path.name().to_string());
        }
        assert_eq!(names, ["b.drv", "a.drv"]);
    }
}
