//! Progress of one job.

use super::{
    Bottom, EVENT_EVERY, LINE_EVERY, ProgressMode, Ui,
    line::{self, ProgressState},
    wire::WireCount,
};
use serde_json::json;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tk_path::{StoreDir, StorePath};
use tk_store::copy::Progress;
use tokio::task::AbortHandle;

/// Counts a job's paths and bytes, and shows them: those that are where they should be.
#[derive(Debug)]
pub struct Meter {
    job: Arc<MeteredJob>,
    ticker: Option<AbortHandle>,
}

#[derive(Debug)]
struct MeteredJob {
    ui: Ui,
    verb: &'static str,
    /// Where the paths belong.
    dir: StoreDir,
    paths: Option<u64>,
    /// Of all NARs, if that is known.
    bytes: Option<u64>,
    moved: AtomicU64,
    done: AtomicU64,
    name: Mutex<String>,
    bottom: Mutex<Option<Bottom>>,
    /// What had gone over the wire before.
    wire: WireCount,
    samples: Mutex<Samples>,
}

impl Meter {
    pub(super) fn new(
        ui: Ui,
        verb: &'static str,
        dir: StoreDir,
        paths: Option<u64>,
        bytes: Option<u64>,
    ) -> Self {
        let mode = ui.0.mode;
        let bottom = (mode == ProgressMode::Bar).then(|| ui.bottom());
        let job = Arc::new(MeteredJob {
            ui,
            verb,
            dir,
            paths,
            bytes,
            moved: AtomicU64::new(0),
            done: AtomicU64::new(0),
            name: Mutex::default(),
            bottom: Mutex::new(bottom),
            wire: ui.wire_count(),
            samples: Mutex::default(),
        });
        ui.event(
            "begin",
            json!({ "verb": verb, "paths": paths, "bytes": bytes }),
        );
        let every = match mode {
            ProgressMode::Bar => Duration::from_millis(100),
            ProgressMode::Lines => LINE_EVERY,
            ProgressMode::Json => EVENT_EVERY,
            ProgressMode::None => return Meter { job, ticker: None },
        };
        let watched = job.clone();
        let tick = async move {
            loop {
                tokio::time::sleep(every).await;
                watched.show();
            }
        };
        let ticker = Some(tokio::spawn(tick).abort_handle());
        Meter { job, ticker }
    }

    /// Takes the bar off the terminal.
    pub fn clear(&self) {
        if let Some(ticker) = &self.ticker {
            ticker.abort();
        }
        if lock(&self.job.bottom).take().is_some() {
            return;
        }
        let (verb, state) = (self.job.verb, self.job.state());
        let fields = json!({ "verb": verb, "paths": state.paths.map(|(done, _)| done),
            "bytes": state.bytes, "wire": state.wire });
        self.job.ui.event("end", fields);
    }

    /// What is worked on, where no path is known yet.
    pub fn name(&self, name: &str) {
        name.clone_into(&mut lock(&self.job.name));
    }

    /// So many bytes more are where they should be.
    pub fn moved(&self, bytes: u64) {
        self.job.moved.fetch_add(bytes, Relaxed);
    }

    /// All that was to be done with `path` is done.
    pub fn done(&self, path: &StorePath) {
        let job = &self.job;
        let done = job.done.fetch_add(1, Relaxed) + 1;
        let all = job.paths.unwrap_or_default();
        match job.ui.0.mode {
            ProgressMode::Lines => {
                let verb = job.verb;
                job.ui.line(format_args!("{verb} [{done}/{all}] {path}"));
            }
            ProgressMode::Json => {
                let fields = json!({ "verb": job.verb, "path": job.dir.path(path), "done": done,
                    "paths": all });
                job.ui.event("visible", fields);
            }
            _ => {}
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(ticker) = &self.ticker {
            ticker.abort();
        }
        lock(&self.job.bottom).take();
    }
}

impl Progress for Meter {
    fn started(&self, path: &StorePath) {
        self.name(path.name());
        let fields = json!({ "verb": self.job.verb, "path": self.job.dir.path(path) });
        self.job.ui.event("started", fields);
    }

    /// Counts where there is nothing to do but to read.
    fn advanced(&self, bytes: u64) {
        if self.job.paths.is_none() {
            self.moved(bytes);
        }
    }

    fn arrived(&self, bytes: u64) {
        self.moved(bytes);
    }

    fn visible(&self, path: &StorePath) {
        self.done(path);
    }
}

impl MeteredJob {
    fn show(&self) {
        let state = self.state();
        match self.ui.0.mode {
            ProgressMode::Bar => {
                if let Some(bottom) = &*lock(&self.bottom) {
                    bottom.show(state.to_bar(line::columns()));
                }
            }
            ProgressMode::Lines => self.ui.line(state.to_line()),
            ProgressMode::Json => {
                let paths = state.paths.unzip();
                let fields = json!({ "verb": self.verb, "done": paths.0, "paths": paths.1,
                    "bytes": state.bytes, "allBytes": state.all_bytes, "wire": state.wire,
                    "bytesPerSecond": state.speed,
                    "secondsLeft": state.left.map(|left| left.as_secs_f64()) });
                self.ui.event("progress", fields);
            }
            ProgressMode::None => {}
        }
    }

    fn state(&self) -> ProgressState {
        let now = self.ui.wire_count();
        let wire = now.bytes() - self.wire.bytes();
        let (bytes, done) = (self.moved.load(Relaxed), self.done.load(Relaxed));
        let speeds = lock(&self.samples).add(Sample {
            at: Instant::now(),
            bytes,
            wire,
            done,
        });
        let left_bytes = self.bytes.map(|all| all.saturating_sub(bytes));
        let left_paths = self.paths.map(|all| all.saturating_sub(done));
        ProgressState {
            verb: self.verb,
            paths: self.paths.map(|all| (done, all)),
            bytes,
            all_bytes: self.bytes,
            speed: match wire {
                0 => speeds.bytes as u64,
                _ => speeds.wire as u64,
            },
            left: speeds.left(
                left_bytes.unwrap_or_default(),
                left_paths.unwrap_or_default(),
            ),
            wire,
            name: lock(&self.name).clone(),
        }
    }
}

/// How far it was some seconds ago.
#[derive(Debug, Default)]
struct Samples(VecDeque<Sample>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    bytes: u64,
    wire: u64,
    done: u64,
}

/// What happened in one second.
#[derive(Debug, Default)]
struct Speeds {
    bytes: f64,
    wire: f64,
    done: f64,
}

impl Samples {
    fn add(&mut self, now: Sample) -> Speeds {
        let samples = &mut self.0;
        let old = |sample: &Sample| now.at - sample.at > WINDOW;
        while samples.len() > 1 && samples.get(1).is_some_and(old) {
            samples.pop_front();
        }
        samples.push_back(now);
        let Some(then) = samples.front() else {
            return Speeds::default();
        };
        let seconds = (now.at - then.at).as_secs_f64();
        let speed = |now: u64, then: u64| {
            if seconds > 0.0 {
                now.saturating_sub(then) as f64 / seconds
            } else {
                0.0
            }
        };
        Speeds {
            bytes: speed(now.bytes, then.bytes),
            wire: speed(now.wire, then.wire),
            done: speed(now.done, then.done),
        }
    }
}

impl Speeds {
    /// How long `bytes` and `paths` will take; `None` where nothing moves.
    fn left(&self, bytes: u64, paths: u64) -> Option<Duration> {
        let time = |left: u64, speed: f64| (left > 0).then(|| left as f64 / speed);
        let longest = match (time(bytes, self.bytes), time(paths, self.done)) {
            (Some(bytes), Some(paths)) if paths.is_finite() => bytes.max(paths),
            (Some(bytes), _) => bytes,
            (None, Some(paths)) => paths,
            (None, None) => return None,
        };
        Duration::try_from_secs_f64(longest)
            .ok()
            .filter(|left| *left < TOO_LONG)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time that speeds are taken over.
const WINDOW: Duration = Duration::from_secs(10);

/// Nobody believes that it will take so long.
const TOO_LONG: Duration = Duration::from_secs(100 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn speeds(samples: &[(u64, u64, u64, u64)]) -> Speeds {
        let start = Instant::now();
        let mut all = Samples::default();
        let mut speeds = Speeds::default();
        for &(seconds, bytes, wire, done) in samples {
            let at = start + Duration::from_secs(seconds);
            speeds = all.add(Sample {
                at,
                bytes,
                wire,
                done,
            });
        }
        speeds
    }

    #[test]
    fn nothing_is_left_to_say_where_nothing_moves() {
        assert_eq!(speeds(&[(0, 0, 0, 0)]).left(10, 1), None);
        assert_eq!(speeds(&[(0, 0, 0, 0), (5, 0, 900, 0)]).left(10, 1), None);
        let stalled = speeds(&[(0, 0, 0, 0), (1, 50, 0, 0), (30, 50, 0, 0), (60, 50, 0, 0)]);
        assert_eq!(stalled.left(10, 1), None);
    }

    #[test]
    fn what_takes_longest_counts() {
        let now = speeds(&[(0, 0, 0, 0), (10, 100, 0, 2)]);
        assert_eq!(now.left(200, 1), Some(Duration::from_secs(20)));
        assert_eq!(now.left(10, 10), Some(Duration::from_secs(50)));
        assert_eq!(
            now.left(0, 10),
            Some(Duration::from_secs(50)),
            "all bytes are there"
        );
        assert_eq!(now.left(0, 0), None);
    }
}
