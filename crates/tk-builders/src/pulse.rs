//! Signs of life of a machine.

use std::sync::{Mutex, PoisonError};
use tk_store::copy::Progress;
use tokio::time::Instant;

/// When something was last heard of a machine, by whomever.
#[derive(Debug)]
pub struct Pulse(Mutex<Instant>);

impl Pulse {
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse(Mutex::new(Instant::now()))
    }
}

/// Who takes content takes a sign of life.
impl Progress for Pulse {
    fn advanced(&self, _: u64) {
        self.beat();
    }
}
