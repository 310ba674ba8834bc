//! The live log of builds, for people: a line for each thing that begins, `name> ` before each
//! line of a builder, and on a terminal what is running at the bottom.

use crate::{
    output::{plain, tell},
    ui::Ui,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tk_store::log::{ActivityType, Level, LogEvent, LogField, LogSink, ResultType, strip_ansi};

/// Shows log events on stderr as they come.
pub struct LogPrinter {
    bar: Option<ProgressBar>,
    /// Whether the lines of builders are shown.
    lines: bool,
    /// Whether anything is shown.
    shown: bool,
    /// Whether errors are shown; they are left out where they are told otherwise.
    errors: bool,
    running: Mutex<BTreeMap<u64, RunningActivity>>,
    done: Mutex<FinishedActivities>,
}

/// What was begun so far: whole paths.
#[derive(Debug, Clone, Default)]
pub struct FinishedActivities {
    /// Derivations that were built, or tried.
    pub built: BTreeSet<String>,
    /// Paths that were fetched.
    pub fetched: BTreeSet<String>,
}

/// A build or a fetch that has begun.
struct RunningActivity {
    name: String,
    phase: String,
}

impl LogPrinter {
    /// A log as `ui` wants it; without `lines` what builders print is left out.
    pub fn new(ui: &Ui, lines: bool) -> Self {
        let shown = !ui.is_quiet();
        let bar = (shown && ui.draws()).then(spinner);
        if let Some(bar) = &bar {
            ui.attach(bar);
        }
        LogPrinter {
            bar,
            lines,
            shown,
            errors: true,
            running: Mutex::default(),
            done: Mutex::default(),
        }
    }

    /// The same without errors, which are told at the end.
    pub fn without_errors(self) -> Self {
        LogPrinter {
            errors: false,
            ..self
        }
    }

    /// What was built and fetched so far.
    pub fn done(&self) -> FinishedActivities {
        self.locked_done().clone()
    }

    fn locked_done(&self) -> MutexGuard<'_, FinishedActivities> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is at the bottom off the terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(plain(line)),
            None => tell(line),
        }
    }

    fn start(&self, id: u64, kind: ActivityType, text: &str, fields: &[LogField]) {
        let verb = match kind {
            ActivityType::BUILD => "building",
            ActivityType::SUBSTITUTE | ActivityType::COPY_PATH => "fetching",
            _ => return,
        };
        let path = match fields.first() {
            Some(LogField::Text(path)) => path.as_str(),
            _ => text,
        };
        let path = strip_ansi(path);
        {
            let mut done = self.locked_done();
            let begun = match kind {
                ActivityType::BUILD => &mut done.built,
                _ => &mut done.fetched,
            };
            // Whoever begins without end is counted up to there.
            if begun.len() < MOST_COUNTED {
                begun.insert(path.clone().into_owned());
            }
        }
        if !self.shown {
            return;
        }
        self.say(&format!("{verb} {path}"));
        let running = RunningActivity {
            name: name_of(&path),
            phase: String::new(),
        };
        let mut all = self.running();
        // Whoever begins without end is told of, but not remembered.
        if all.len() < MOST_RUNNING {
            all.insert(id, running);
        }
        self.show(&all);
    }

    fn result(&self, id: u64, kind: ResultType, fields: &[LogField]) {
        let Some(LogField::Text(text)) = fields.first() else {
            return;
        };
        let mut all = self.running();
        match kind {
            ResultType::BUILD_LOG_LINE | ResultType::POST_BUILD_LOG_LINE if self.lines => {
                let name = all.get(&id).map_or("build", |running| &running.name);
                for line in strip_ansi(text.trim_end()).split('\n') {
                    self.say(&format!("{name}> {line}"));
                }
            }
            ResultType::SET_PHASE => {
                if let Some(running) = all.get_mut(&id) {
                    running.phase = strip_ansi(text).into_owned();
                    self.show(&all);
                }
            }
            _ => (),
        }
    }

    fn show(&self, all: &BTreeMap<u64, RunningActivity>) {
        let Some(bar) = &self.bar else { return };
        let named = all.values().map(|running| match running.phase.as_str() {
            "" => running.name.clone(),
            phase => format!("{} ({phase})", running.name),
        });
        bar.set_message(named.collect::<Vec<_>>().join(", "));
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, RunningActivity>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogSink for LogPrinter {
    fn event(&self, event: LogEvent) {
        match event {
            LogEvent::Message { level, text } if level <= Level::Info => {
                let text = strip_ansi(text.trim_end());
                let error = level == Level::Error || text.starts_with("error:");
                if self.shown && (self.errors || !error) {
                    text.lines().for_each(|line| self.say(line));
                }
            }
            LogEvent::Message { .. } => (),
            LogEvent::Start {
                id,
                kind,
                text,
                fields,
                ..
            } => self.start(id, kind, &text, &fields),
            LogEvent::Stop { id } => {
                let mut all = self.running();
                all.remove(&id);
                self.show(&all);
            }
            LogEvent::Result { id, kind, fields } if self.shown => self.result(id, kind, &fields),
            LogEvent::Result { .. } => (),
        }
    }
}

/// The name that goes before lines: `hello` of `/nix/store/…-hello.drv`.
fn name_of(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    let name = base.split_once('-').map_or(base, |(_, name)| name);
    name.strip_suffix(".drv").unwrap_or(name).to_owned()
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
    bar.set_style(style.expect("the template is a constant"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

const MOST_RUNNING: usize = 1024;
const MOST_COUNTED: usize = 1 << 20;
