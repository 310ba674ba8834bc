use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tk_store::log::{ActivityType, LogEvent, LogField, LogSink, ResultType, strip_ansi};

/// Keeps the last lines that each builder wrote, beside handing every event on.
///
/// Memory is bounded: so many lines of so many bytes for each of so many builds, the oldest of
/// which are forgotten.
#[derive(Debug)]
pub struct BuildLogs<S = ()> {
    next: S,
    lines: usize,
    state: Mutex<BuildLogsState>,
}

/// What is known of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildTail {
    /// The derivation, as the daemon names it: a whole path.
    pub drv: String,
    /// Where it is built: empty for the daemon's own machine.
    pub machine: String,
    /// The phase that it is in, if it says so.
    pub phase: Option<String>,
    /// The last lines, without the escape sequences of terminals.
    pub lines: VecDeque<String>,
    /// How many lines there were in all.
    pub count: u64,
    /// When the daemon first told of the build, by the clock of this machine.
    pub start: SystemTime,
    /// When it ended; `None` while it runs.
    pub stop: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct BuildLogsState {
    /// Running builds, by activity.
    running: BTreeMap<u64, usize>,
    /// By number, in the order in which they began.
    builds: BTreeMap<usize, BuildTail>,
    begun: usize,
}

impl BuildLogs {
    /// Keeps `lines` lines of each build.
    pub fn new(lines: usize) -> Self {
        BuildLogs::with(lines, ())
    }
}

impl<S> BuildLogs<S> {
    /// The same, and gives every event to `next`.
    pub fn with(lines: usize, next: S) -> Self {
        BuildLogs {
            next,
            lines,
            state: Mutex::default(),
        }
    }

    /// All builds, in the order in which they began.
    pub fn builds(&self) -> Vec<BuildTail> {
        self.state().builds.values().cloned().collect()
    }

    /// The latest build of the derivation with that whole path.
    pub fn of(&self, drv: &str) -> Option<BuildTail> {
        let state = self.state();
        let mut builds = state.builds.values().rev();
        builds.find(|build| build.drv == drv).cloned()
    }

    fn state(&self) -> MutexGuard<'_, BuildLogsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BuildLogsState {
    fn start(&mut self, id: u64, fields: &[LogField]) {
        let text = |i: usize| match fields.get(i) {
            Some(LogField::Text(text)) => shorten(text),
            _ => String::new(),
        };
        self.running.insert(id, self.begun);
        let build = BuildTail {
            drv: text(0),
            machine: text(1),
            phase: None,
            lines: VecDeque::new(),
            count: 0,
            start: SystemTime::now(),
            stop: None,
        };
        self.builds.insert(self.begun, build);
        self.begun += 1;
        if self.builds.len() > MAX_BUILDS {
            self.builds.pop_first();
        }
        if self.running.len() > MAX_BUILDS {
            let builds = &self.builds;
            self.running.retain(|_, build| builds.contains_key(build));
        }
    }

    fn running(&mut self, id: u64) -> Option<&mut BuildTail> {
        self.builds.get_mut(self.running.get(&id)?)
    }

    fn take(&mut self, event: &LogEvent, lines: usize) {
        match event {
            LogEvent::Start {
                id, kind, fields, ..
            } if *kind == ActivityType::BUILD => self.start(*id, fields),
            LogEvent::Stop { id } => {
                if let Some(build) = self.running(*id) {
                    build.stop = Some(SystemTime::now());
                }
                self.running.remove(id);
            }
            LogEvent::Result { id, kind, fields } => {
                let (Some(build), Some(LogField::Text(text))) = (self.running(*id), fields.first())
                else {
                    return;
                };
                match *kind {
                    ResultType::BUILD_LOG_LINE => build.line(text, lines),
                    ResultType::SET_PHASE => build.phase = Some(shorten(text)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

impl BuildTail {
    fn line(&mut self, line: &str, keep: usize) {
        self.count += 1;
        self.lines.push_back(shorten(line));
        if self.lines.len() > keep {
            self.lines.pop_front();
        }
    }
}

impl<S: LogSink> LogSink for BuildLogs<S> {
    fn event(&self, event: LogEvent) {
        self.state().take(&event, self.lines);
        self.next.event(event);
    }
}

fn shorten(text: &str) -> String {
    let mut line = strip_ansi(text).into_owned();
    if line.len() > MAX_LINE {
        let mut end = MAX_LINE;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
    }
    line
}

/// Builds that are kept.
const MAX_BUILDS: usize = 1024;
/// Bytes of a line that are kept.
const MAX_LINE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use tk_store::log::Level;

    fn start(id: u64, drv: &str) -> LogEvent {
        LogEvent::Start {
            id,
            level: Level::Info,
            kind: ActivityType::BUILD,
            text: String::new(),
            fields: vec![drv.into(), "".into(), 1.into(), 1.into()],
            parent: 0,
        }
    }

    fn result(id: u64, kind: ResultType, text: &str) -> LogEvent {
        LogEvent::Result {
            id,
            kind,
            fields: vec![text.into()],
        }
    }

    #[test]
    fn last_lines_of_each_build() {
        let logs = BuildLogs::new(2);
        logs.event(start(1, "/nix/store/a.drv"));
        logs.event(start(2, "/nix/store/b.drv"));
        for line in ["one", "two", "\u{1b}[31mthree\u{1b}[0m"] {
            logs.event(result(1, ResultType::BUILD_LOG_LINE, line));
        }
        logs.event(result(2, ResultType::BUILD_LOG_LINE, "b's"));
        logs.event(result(1, ResultType::SET_PHASE, "buildPhase"));
        logs.event(LogEvent::Stop { id: 1 });
        // An activity that is over, and one that never was.
        logs.event(result(1, ResultType::BUILD_LOG_LINE, "late"));
        logs.event(result(7, ResultType::BUILD_LOG_LINE, "nobody's"));
        let a = logs.of("/nix/store/a.drv").unwrap();
        assert_eq!(a.lines, ["two", "three"]);
        assert_eq!((a.count, a.phase.as_deref()), (3, Some("buildPhase")));
        assert!(a.stop.is_some());
        let b = logs.of("/nix/store/b.drv").unwrap();
        assert_eq!((b.lines.len(), b.stop), (1, None));
        assert_eq!(logs.of("/nix/store/c.drv"), None);
    }

    #[test]
    fn memory_is_bounded() {
        let logs = BuildLogs::new(3);
        for id in 0..5000 {
            logs.event(start(id, "/nix/store/a.drv"));
            logs.event(result(id, ResultType::BUILD_LOG_LINE, &"ä".repeat(10_000)));
        }
        assert_eq!(logs.builds().len(), MAX_BUILDS);
        assert!(logs.state().running.len() <= MAX_BUILDS + 1);
        let lines = logs.builds().into_iter().flat_map(|build| build.lines);
        assert!(lines.map(|line| line.len()).max().unwrap() <= MAX_LINE);
    }
}
