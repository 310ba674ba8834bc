//! Trying again.

use super::{
    Retry,
    failure::{Again, Failure},
};
use crate::limit::{Limit, Permit};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// The attempts of one request.
pub(crate) struct Tries<'a> {
    retry: &'a Retry,
    limit: &'a Limit,
    made: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(retry: &'a Retry, limit: &'a Limit) -> Self {
        let made = 0;
        Tries { retry, limit, made }
    }

    /// Waits for the turn of the next attempt.
    pub(crate) async fn start(&self) -> Permit {
        self.limit.acquire().await
    }

    /// Waits before the next attempt; the failure, if there is none.
    pub(crate) async fn again(&mut self, permit: Permit, failure: Failure) -> Result<(), Failure> {
        self.made += 1;
        let (attempts, wait) = match failure.again() {
            Again::Never => (0, Duration::ZERO),
            Again::Rarely => (
                self.retry.attempts.min(RARE_ATTEMPTS),
                self.delay(self.retry.delay),
            ),
            Again::Later => (self.retry.attempts, self.delay(self.retry.delay)),
            Again::SlowDown(asked) => {
                let wait = match asked {
                    Some(wait) => wait.min(self.retry.max_delay) + self.delay(self.retry.delay) / 4,
                    None => self.delay(self.retry.delay_rate_limited),
                };
                // Everybody waits as long as the server asks for, this one a bit longer.
                permit.slow_down(asked.unwrap_or(wait / 2).min(self.retry.max_delay));
                (self.retry.attempts, wait)
            }
        };
        if self.made >= attempts {
            return Err(failure);
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// It goes on since the last failure: from now on the count starts again.
    pub(crate) fn progressed(&mut self) {
        self.made = 0;
    }

    /// Doubles with each attempt, and is between half of that and all of it, so that those who
    /// failed together do not come back together.
    fn delay(&self, first: Duration) -> Duration {
        let doubled = first.saturating_mul(1 << (self.made - 1).min(16));
        let chance = RandomState::new().build_hasher().finish() as u32;
        let part = 0.5 + f64::from(chance) / f64::from(u32::MAX) / 2.0;
        doubled.min(self.retry.max_delay).mul_f64(part)
    }
}

/// Attempts where there is no connection at all.
const RARE_ATTEMPTS: u32 = 3;
