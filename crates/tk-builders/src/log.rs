//! The logs of several machines as one.

use crate::pulse::Pulse;
use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tk_store::log::{ActivityType, Level, LogEvent, LogField, LogSink, ResultType};

/// Numbers of activities, for all machines of one call.
#[derive(Debug, Default)]
pub struct Numbers(AtomicU64);

/// The log of one machine: its activities get numbers that no other has, and its builds its name. What
/// comes is a sign of life.
pub struct MachineLog<'a> {
    next: &'a dyn LogSink,
    numbers: &'a Numbers,
    machine: &'a str,
    pulse: &'a Pulse,
    known: Mutex<HashMap<u64, u64>>,
    /// What each build wrote, by the number that the machine gave it.
    written: Mutex<HashMap<u64, Written>>,
}

/// What a build wrote.
#[derive(Debug)]
struct Written {
    drv: String,
    log: Vec<u8>,
}

impl<'a> MachineLog<'a> {
    pub fn new(
        next: &'a dyn LogSink,
        numbers: &'a Numbers,
        machine: &'a str,
        pulse: &'a Pulse,
    ) -> Self {
        MachineLog {
            next,
            numbers,
            machine,
            pulse,
            known: Mutex::default(),
            written: Mutex::default(),
        }
    }

    /// What the build of the whole path `drv` wrote; `None` if it was not built there.
    pub fn written(&self, drv: &str) -> Option<Vec<u8>> {
        let all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let of_drv = all.values().find(|written| written.drv == drv);
        of_drv.map(|written| written.log.clone())
    }

    fn keep(&self, event: &LogEvent) {
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            LogEvent::Start {
                id, kind, fields, ..
            } if *kind == ActivityType::BUILD && all.len() < MOST_OPEN => {
                if let Some(LogField::Text(drv)) = fields.first() {
                    let (drv, log) = (drv.clone(), Vec::new());
                    all.insert(*id, Written { drv, log });
                }
            }
            LogEvent::Result { id, kind, fields } if *kind == ResultType::BUILD_LOG_LINE => {
                let room: usize = all.values().map(|written| written.log.len()).sum();
                if let (Some(written), Some(LogField::Text(line))) =
                    (all.get_mut(id), fields.first())
                    && room + line.len() < MOST_WRITTEN
                {
                    written.log.extend_from_slice(line.as_bytes());
                    written.log.push(b'\n');
                }
            }
            _ => {}
        }
    }

    /// Tells something of our own.
    pub fn say(&self, level: Level, text: impl Into<String>) {
        self.next.event(LogEvent::message(level, text));
    }

    fn known(&self, id: u64) -> Option<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).copied()
    }

    fn begin(&self, id: u64) -> u64 {
        let new = self.numbers.0.fetch_add(1, Ordering::Relaxed) + 1;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever begins without end is told of, but not remembered.
        if known.len() < MOST_OPEN {
            known.insert(id, new);
        }
        new
    }

    fn end(&self, id: u64) -> Option<u64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&id)
    }
}

impl LogSink for MachineLog<'_> {
    fn event(&self, event: LogEvent) {
        self.pulse.beat();
        self.keep(&event);
        let event = match event {
            LogEvent::Start {
                id,
                level,
                kind,
                text,
                mut fields,
                parent,
            } => {
                if kind == ActivityType::BUILD && fields.len() > 1 {
                    fields[1] = LogField::Text(self.machine.to_owned());
                }
                LogEvent::Start {
                    id: self.begin(id),
                    level,
                    kind,
                    text,
                    fields,
                    parent: self.known(parent).unwrap_or(0),
                }
            }
            LogEvent::Stop { id } => match self.end(id) {
                Some(id) => LogEvent::Stop { id },
                None => return,
            },
            LogEvent::Result { id, kind, fields } => match self.known(id) {
                Some(id) => LogEvent::Result { id, kind, fields },
                None => return,
            },
            message => message,
        };
        self.next.event(event);
    }
}

impl Drop for MachineLog<'_> {
    /// What a lost machine had begun is over.
    fn drop(&mut self) {
        let known = self.known.get_mut();
        for id in known.unwrap_or_else(PoisonError::into_inner).values() {
            self.next.event(LogEvent::Stop { id: *id });
        }
    }
}

const MOST_OPEN: usize = 4096;
/// Bytes of logs that are kept of one job.
const MOST_WRITTEN: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_two_machines_do_not_meet() {
        let events = Mutex::new(Vec::new());
        let sink = |event: LogEvent| events.lock().unwrap().push(event);
        let numbers = Numbers::default();
        let start = || LogEvent::Start {
            id: 7,
            level: Level::Info,
            kind: ActivityType::BUILD,
            text: String::new(),
            fields: vec!["x.drv".into(), "".into(), 1.into(), 1.into()],
            parent: 0,
        };
        let pulse = Pulse::default();
        let one = MachineLog::new(&sink, &numbers, "ssh://one", &pulse);
        let two = MachineLog::new(&sink, &numbers, "ssh://two", &pulse);
        one.event(start());
        two.event(start());
        one.event(LogEvent::Stop { id: 7 });
        one.event(LogEvent::Stop { id: 7 });
        drop(two);
        drop(one);
        let mut told = Vec::new();
        for event in events.into_inner().unwrap() {
            told.push(match event {
                LogEvent::Start { id, fields, .. } => format!("start {id} {:?}", fields[1]),
                LogEvent::Stop { id } => format!("stop {id}"),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(
            told,
            [
                "start 1 Text(\"ssh://one\")",
                "start 2 Text(\"ssh://two\")",
                "stop 1",
                "stop 2"
            ]
        );
    }
}
