//! What people see: sizes, progress, warnings. All of it goes to stderr; stdout is for data.

pub use crate::words::out;

use crate::words::tell;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fmt::Display,
    io::{self, IsTerminal},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tk_path::StorePath;
use tk_store::copy::Progress;

/// How much is said on stderr.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    quiet: bool,
}

impl Ui {
    /// With `quiet`, only warnings and errors are said.
    pub fn new(quiet: bool) -> Self {
        Ui { quiet }
    }

    /// Whether only warnings and errors are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A line that tells what was done; not shown with `--quiet`.
    pub fn say(&self, line: impl Display) {
        if !self.quiet {
            tell(line);
        }
    }

    /// A line that the user should not miss.
    pub fn warn(&self, line: impl Display) {
        tell(format_args!("warning: {line}"));
    }

    /// A line about something that went wrong while the rest goes on.
    pub fn error(&self, line: impl Display) {
        tell(format_args!("tk-store: {line}"));
    }

    /// Progress over `paths` paths and `bytes` bytes: a bar on a terminal, else a line a path.
    pub fn progress(&self, verb: &'static str, paths: usize, bytes: u64) -> Meter {
        self.meter(verb, paths as u64, Some(bytes))
    }

    /// Progress over one thing of unknown size.
    pub fn reading(&self, verb: &'static str) -> Meter {
        self.meter(verb, 1, None)
    }

    fn meter(&self, verb: &'static str, paths: u64, bytes: Option<u64>) -> Meter {
        let bar = (!self.quiet && io::stderr().is_terminal()).then(|| bar(verb, bytes));
        Meter {
            verb,
            lines: !self.quiet && bar.is_none(),
            bar,
            paths,
            bytes,
            read: AtomicU64::new(0),
            done: AtomicU64::new(0),
            last: Mutex::new(Instant::now()),
        }
    }
}

/// Counts a job's paths and bytes, and shows them.
pub struct Meter {
    verb: &'static str,
    lines: bool,
    bar: Option<ProgressBar>,
    paths: u64,
    /// Of all NARs, if that is known.
    bytes: Option<u64>,
    read: AtomicU64,
    done: AtomicU64,
    last: Mutex<Instant>,
}

impl Meter {
    /// Takes the bar off the terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// What is being read, where no path is known yet.
    pub fn name(&self, name: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(name.to_owned());
        }
    }

    fn head(&self) -> String {
        let done = self.done.load(Ordering::Relaxed);
        format!("{}/{} paths", done, self.paths)
    }
}

impl Progress for Meter {
    fn started(&self, path: &StorePath) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}  {}", self.head(), path.name()));
        }
    }

    fn advanced(&self, bytes: u64) {
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(read);
        } else if self.lines
            && let Ok(mut last) = self.last.try_lock()
            && last.elapsed() >= LINE_EVERY
        {
            *last = Instant::now();
            let (verb, read) = (self.verb, HumanBytes(read));
            match self.bytes {
                Some(all) => {
                    let (all, head) = (HumanBytes(all), self.head());
                    tell(format_args!("{verb} {read} of {all}, {head}"));
                }
                None => tell(format_args!("{verb} {read}")),
            }
        }
    }

    fn finished(&self, path: &StorePath) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}  {}", self.head(), path.name()));
        } else if self.lines {
            tell(format_args!("{} [{done}/{}] {path}", self.verb, self.paths));
        }
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

/// A number of things, as `1 error` or `5 errors`.
pub fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// A duration for people, as `4.2 s`.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn bar(verb: &'static str, bytes: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr_with_hz(10));
    let style = match bytes {
        Some(_) => {
            "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}  {wide_msg}"
        }
        None => "{prefix} {spinner} {bytes} {bytes_per_sec}  {wide_msg}",
    };
    let style = ProgressStyle::with_template(style).expect("the templates are constants");
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(verb);
    bar
}

/// How often a log line tells of a long transfer.
const LINE_EVERY: Duration = Duration::from_secs(10);
