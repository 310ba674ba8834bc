//! Trying again.

use super::{
    Retry,
    failure::{RequestFailure, RetryClass},
};
use crate::{
    limit::{Limit, Permit},
    observer::{NetworkObserver, RetriedRequest},
};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

/// The attempts of one request.
pub(crate) struct RetryState {
    retry: Retry,
    limit: Limit,
    made: u32,
    /// The URL for people, and who is told of what goes wrong there.
    observed: (String, Arc<dyn NetworkObserver>),
}

impl RetryState {
    pub(crate) fn new(
        retry: Retry,
        limit: Limit,
        observed: (String, Arc<dyn NetworkObserver>),
    ) -> Self {
        RetryState {
            retry,
            limit,
            made: 0,
            observed,
        }
    }

    /// Waits for the turn of the next attempt.
    pub(crate) async fn start(&self) -> Permit {
        self.limit.acquire().await
    }

    /// Waits before the next attempt; the failure, if there is none.
    pub(crate) async fn again(
        &mut self,
        permit: Permit,
        failure: RequestFailure,
    ) -> Result<(), RequestFailure> {
        let (again, reason) = (failure.again(), failure.reason());
        if self.another(permit, again, &reason).await {
            Ok(())
        } else {
            Err(failure)
        }
    }

    /// The same, of a failure of which only this is known; false if there is no other attempt.
    pub(crate) async fn another(
        &mut self,
        mut permit: Permit,
        again: RetryClass,
        reason: &str,
    ) -> bool {
        // Before the wait: others need not wait as well.
        permit.give_back();
        self.made += 1;
        let Retry {
            attempts, delay, ..
        } = self.retry;
        let (attempts, wait) = match again {
            RetryClass::Never => (0, Duration::ZERO),
            RetryClass::Rarely => (attempts.min(RARE_ATTEMPTS), self.delay(delay)),
            RetryClass::Once => (attempts.min(2), self.delay(delay)),
            RetryClass::Later => (attempts, self.delay(delay)),
            RetryClass::SlowDown(asked) => {
                permit.slow_down();
                let wait = match asked {
                    // A varying part on top, so that those who were told the same do not come
                    // back together.
                    Some(wait) => wait.min(self.retry.max_delay) + self.delay(delay) / 4,
                    None => self.delay(self.retry.delay_rate_limited),
                };
                (self.retry.attempts_rate_limited(), wait)
            }
        };
        if self.made >= attempts {
            return false;
        }
        let (url, observer) = &self.observed;
        observer.retrying(&RetriedRequest {
            url,
            reason,
            wait,
            attempt: self.made,
            attempts,
        });
        tokio::time::sleep(wait).await;
        true
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
