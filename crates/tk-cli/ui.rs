//! What people see: sizes, progress, warnings. All of it goes to stderr; stdout is for data.

mod line;
mod meter;
mod wire;

pub use crate::output::{out, out_all};
pub use meter::Meter;

use crate::{
    interrupt,
    output::{plain, tell},
};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::{
    fmt::Display,
    io::{self, IsTerminal},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tk_cache::observer::NetworkObserver;
use tk_path::StoreDir;
use tk_store::log::{Level, LogEvent, LogSink, strip_ansi};
use wire::{Wire, WireCount};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgressMode {
    /// A bar at the bottom of the terminal
    Bar,
    /// A line for each path, and one every ten seconds
    Lines,
    /// Nothing
    None,
    /// An object a line, for programs
    Json,
}

impl ProgressMode {
    /// What suits where stderr goes to.
    fn find(quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match io::stderr().is_terminal() && !dumb {
            _ if quiet => ProgressMode::None,
            true => ProgressMode::Bar,
            false => ProgressMode::Lines,
        }
    }
}

/// How much is said on stderr. There is one for the life of the process, so that a copy of it can
/// go to wherever words come from.
#[derive(Debug, Clone, Copy)]
pub struct Ui(&'static SharedUi);

#[derive(Debug)]
struct SharedUi {
    quiet: bool,
    verbose: bool,
    mode: ProgressMode,
    /// The bar at the bottom of the terminal, if there is one now.
    bar: Mutex<Option<ProgressBar>>,
    wire: Wire,
}

impl Ui {
    /// With `quiet`, only warnings and errors are said; with `verbose`, also each request and what
    /// was decided.
    pub fn new(quiet: bool, verbose: bool, mode: Option<ProgressMode>) -> Self {
        Ui(Box::leak(Box::new(SharedUi {
            quiet,
            verbose,
            mode: mode.unwrap_or_else(|| ProgressMode::find(quiet)),
            bar: Mutex::default(),
            wire: Wire::default(),
        })))
    }

    /// Whether only warnings and errors are wanted.
    pub fn is_quiet(&self) -> bool {
        self.0.quiet
    }

    /// Whether something may be drawn at the bottom of the terminal.
    pub fn draws(&self) -> bool {
        self.0.mode == ProgressMode::Bar && io::stderr().is_terminal()
    }

    /// A line that tells what was done; not shown with `--quiet`.
    pub fn say(&self, line: impl Display) {
        if !self.0.quiet {
            self.message("info", "", line);
        }
    }

    /// A line about a request or a decision; only shown with `--verbose`.
    pub fn detail(&self, line: impl Display) {
        if self.0.verbose {
            self.message("detail", "", line);
        }
    }

    /// A line that the user should not miss.
    pub fn warn(&self, line: impl Display) {
        self.message("warning", "warning: ", line);
    }

    /// A line about something that went wrong while the rest goes on.
    pub fn error(&self, line: impl Display) {
        self.message("error", "tk-store: ", line);
    }

    /// Where a store's own words go.
    pub fn log(self) -> impl LogSink {
        move |event| {
            let LogEvent::Message { level, text } = event else {
                return;
            };
            for line in strip_ansi(text.trim_end()).lines() {
                match level {
                    Level::Error => self.error(line),
                    Level::Warn => self.warn(line.trim_start_matches("warning: ")),
                    Level::Notice | Level::Info => self.say(line),
                    _ => self.detail(line),
                }
            }
        }
    }

    fn message(&self, level: &str, prefix: &str, line: impl Display) {
        match self.0.mode {
            ProgressMode::Json => {
                // As JSON cannot escape it.
                let text = plain(&line.to_string());
                self.event("message", json!({ "level": level, "text": text }));
            }
            _ => self.line(format_args!("{prefix}{line}")),
        }
    }

    /// Writes an event, if that is how progress is wanted.
    fn event(&self, name: &str, fields: Value) {
        if self.0.mode == ProgressMode::Json {
            let mut event = json!({ "event": name });
            if let (Some(event), Value::Object(mut fields)) = (event.as_object_mut(), fields) {
                event.append(&mut fields);
            }
            self.line(event);
        }
    }

    /// Writes a line, above the bar if there is one.
    fn line(&self, line: impl Display) {
        let bar = self.bar().clone();
        match bar {
            Some(bar) => bar.suspend(|| tell(line)),
            None => tell(line),
        }
    }

    /// Progress over `paths` paths and `bytes` bytes: a bar on a terminal, else a line a path.
    /// `dir` is where the paths belong.
    pub fn progress(&self, verb: &'static str, dir: &StoreDir, paths: usize, bytes: u64) -> Meter {
        Meter::new(*self, verb, dir.clone(), Some(paths as u64), Some(bytes))
    }

    /// Progress over one thing of unknown size.
    pub fn reading(&self, verb: &'static str) -> Meter {
        Meter::new(*self, verb, StoreDir::default(), None, None)
    }

    /// Waits for `work`, which asks about `what`. Says so if that takes a while.
    pub async fn asking<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let (first, every) = match self.0.mode {
            ProgressMode::Bar => (Duration::from_millis(200), Duration::from_millis(200)),
            ProgressMode::Lines => (Duration::from_secs(2), LINE_EVERY),
            ProgressMode::None => return work.await,
            ProgressMode::Json => (Duration::ZERO, EVENT_EVERY),
        };
        let begun = self.wire_count();
        let mut bar = None;
        let mut work = std::pin::pin!(work);
        let mut wait = first;
        loop {
            if let Ok(done) = tokio::time::timeout(wait, &mut work).await {
                drop(bar);
                return done;
            }
            wait = every;
            let answers = self.wire_count().answers - begun.answers;
            let answered = match answers {
                0 => String::new(),
                answers => format!(" ({answers} answers)"),
            };
            let line = format!("asking about {what} …{answered}");
            match self.0.mode {
                ProgressMode::Bar => bar
                    .get_or_insert_with(|| self.bottom())
                    .show(line::shortened(line, line::columns())),
                ProgressMode::Json => {
                    self.event("asking", json!({ "about": what, "answers": answers }));
                }
                _ => self.line(line),
            }
        }
    }

    fn is_json(&self) -> bool {
        self.0.mode == ProgressMode::Json
    }

    /// Who tells of requests.
    pub fn observer(&self) -> Arc<dyn NetworkObserver> {
        Arc::new(*self)
    }

    fn wire_count(&self) -> WireCount {
        self.0.wire.count()
    }

    /// Lines are written above `bar` from now on.
    pub fn attach(&self, bar: &ProgressBar) {
        *self.bar() = Some(bar.clone());
    }

    /// The bottom of the terminal, for as long as the result lives.
    fn bottom(&self) -> Bottom {
        let target = if self.draws() {
            ProgressDrawTarget::stderr_with_hz(20)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is a constant"));
        self.attach(&bar);
        interrupt::clears(&bar);
        Bottom { ui: *self, bar }
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.0.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line at the bottom of the terminal. Dropping it takes it off.
#[derive(Debug)]
struct Bottom {
    ui: Ui,
    bar: ProgressBar,
}

impl Bottom {
    fn show(&self, line: String) {
        self.bar.set_message(line);
        self.bar.tick();
    }
}

impl Drop for Bottom {
    fn drop(&mut self) {
        self.ui.bar().take();
        self.bar.finish_and_clear();
    }
}

/// A size for people, as `12.3 MiB`.
pub fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// A number of paths, as `1 path` or `5 paths`.
pub fn paths(n: usize) -> String {
    count(n, "path")
}

/// The verb for `n` things.
pub fn were(n: usize) -> &'static str {
    if n == 1 { "was" } else { "were" }
}

/// A number of things, as `1 error` or `5 errors`.
pub fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// A duration for people, as `4.2 s`.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// How often a log line tells of a long transfer.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often an event does.
const EVENT_EVERY: Duration = Duration::from_secs(1);
