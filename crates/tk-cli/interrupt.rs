//! What Ctrl-C leaves: a clean terminal, and a word on how to go on.

use crate::output::tell;
use indicatif::{ProgressBar, WeakProgressBar};
use std::{
    process,
    sync::{Mutex, PoisonError},
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

/// From now on a signal that ends this process takes the bars off the terminal first, and says `advice`.
///
/// A thread of its own waits for it: nothing that the others are in keeps the process from ending. Without
/// one the process ends as if nobody had waited.
pub fn watch(advice: &'static str) {
    let wait = async || {
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        Some(tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        })
    };
    let waiting = move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let Ok(runtime) = runtime.enable_io().build() else {
            return;
        };
        let Some(signal) = runtime.block_on(wait()) else {
            return;
        };
        for bar in BARS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            if let Some(bar) = bar.upgrade() {
                bar.finish_and_clear();
            }
        }
        tell(advice);
        process::exit(128 + signal.as_raw_value());
    };
    let _ = thread::Builder::new().name("signals".into()).spawn(waiting);
}

/// Takes `bar` off the terminal should a signal end this process.
pub fn clears(bar: &ProgressBar) {
    let mut bars = BARS.lock().unwrap_or_else(PoisonError::into_inner);
    bars.retain(|bar| bar.upgrade().is_some());
    bars.push(bar.downgrade());
}

static BARS: Mutex<Vec<WeakProgressBar>> = Mutex::new(Vec::new());
