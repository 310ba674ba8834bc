//! How many requests a server is given at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::{sync::Semaphore, time::Instant};

/// A bound on the requests under way that adapts to the server: each full round of successes
/// allows one more, a "slow down" halves it. Below [`FLOOR`] it goes only where most of the
/// requests are refused: a server that refuses every third, however many there are, is not served
/// better by fewer. Who was refused waits before it tries again; the others do not.
///
/// A clone is the same limit.
#[derive(Debug, Clone)]
pub(crate) struct Limit(Arc<LimitInner>);

#[derive(Debug)]
struct LimitInner {
    free: Semaphore,
    most: usize,
    state: Mutex<LimitState>,
}

#[derive(Debug)]
struct LimitState {
    allowed: usize,
    /// Permits to take away from those who give theirs back.
    owed: usize,
    /// Answers since `allowed` changed: as they should be, and "slow down".
    successes: usize,
    refusals: usize,
    halved: Option<Instant>,
}

impl Limit {
    /// Starts with `start` requests at once and never allows more than `most`.
    pub(crate) fn new(start: usize, most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let allowed = start.clamp(1, most);
        Limit(Arc::new(LimitInner {
            free: Semaphore::new(allowed),
            most,
            state: Mutex::new(LimitState {
                allowed,
                owed: 0,
                successes: 0,
                refusals: 0,
                halved: None,
            }),
        }))
    }

    /// Waits until one more request may be sent. First come, first served.
    pub(crate) async fn acquire(&self) -> Permit {
        if let Ok(permit) = self.0.free.acquire().await {
            permit.forget();
        }
        Permit {
            limit: self.0.clone(),
            started: Instant::now(),
            given_back: false,
        }
    }

    /// How many requests are allowed at the moment.
    #[cfg(test)]
    fn allowed(&self) -> usize {
        self.0.state().allowed
    }
}

/// The right to have one request under way, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: Arc<LimitInner>,
    started: Instant,
    given_back: bool,
}

impl Permit {
    /// Lets somebody else begin while this request goes on: for bodies of any length.
    pub(crate) fn give_back(&mut self) {
        if !self.given_back {
            self.given_back = true;
            self.limit.give_back();
        }
    }

    /// The request was answered as it should be.
    pub(crate) fn succeeded(self) {
        let mut state = self.limit.state();
        state.successes += 1;
        if state.successes < state.allowed || state.allowed >= self.limit.most {
            return;
        }
        state.changed();
        state.allowed += 1;
        match state.owed {
            0 => self.limit.free.add_permits(1),
            _ => state.owed -= 1,
        }
    }

    /// The server has too much to do.
    pub(crate) fn slow_down(self) {
        let mut state = self.limit.state();
        state.refusals += 1;
        // Requests that were under way together say the same thing once.
        if state.halved.is_some_and(|halved| self.started <= halved) {
            return;
        }
        let half = state.allowed / 2;
        let allowed = if state.allowed > FLOOR {
            half.max(FLOOR)
        } else if state.most_are_refused() {
            half.max(1)
        } else {
            return;
        };
        state.halved = Some(Instant::now());
        state.changed();
        let fewer = state.allowed - allowed;
        state.allowed = allowed;
        // Permits in use cannot be taken away: those are kept back when they are returned.
        state.owed += fewer - self.limit.free.forget_permits(fewer);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl LimitInner {
    fn give_back(&self) {
        let mut state = self.state();
        match state.owed {
            0 => self.free.add_permits(1),
            _ => state.owed -= 1,
        }
    }

    fn state(&self) -> MutexGuard<'_, LimitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LimitState {
    fn changed(&mut self) {
        self.successes = 0;
        self.refusals = 0;
    }

    /// Of a round of answers, or of enough to tell it from chance.
    fn most_are_refused(&self) -> bool {
        let enough = self.successes + self.refusals >= self.allowed.max(ENOUGH);
        enough && self.refusals > self.successes
    }
}

/// Requests at once that a server gets which refuses no more than every second.
const FLOOR: usize = 16;

/// Answers that tell a busy server from bad luck.
const ENOUGH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn free(limit: &Limit) -> Vec<Permit> {
        // Otherwise the runtime has even what is free wait, once a task has taken a lot.
        let acquire = || tokio::task::unconstrained(limit.acquire());
        std::iter::from_fn(|| acquire().now_or_never()).collect()
    }

    #[tokio::test]
    async fn no_more_than_allowed() {
        let limit = Limit::new(3, 8);
        let permits = free(&limit);
        assert_eq!(permits.len(), 3);
        drop(permits);
        let mut permits = free(&limit);
        assert_eq!(permits.len(), 3);
        permits[0].give_back();
        permits[0].give_back();
        assert_eq!(free(&limit).len(), 1, "given back once");
    }

    #[tokio::test]
    async fn a_round_of_successes_allows_one_more() {
        let limit = Limit::new(2, 4);
        for _ in 0..100 {
            free(&limit).into_iter().for_each(Permit::succeeded);
        }
        assert_eq!(limit.allowed(), 4);
        assert_eq!(free(&limit).len(), 4);
    }

    #[tokio::test]
    async fn slowing_down_halves_once_for_all_that_were_under_way() {
        let limit = Limit::new(64, 64);
        for permit in free(&limit) {
            permit.slow_down();
        }
        assert_eq!((limit.allowed(), free(&limit).len()), (32, 32));
        // Now that most are refused it goes below what a server gets otherwise.
        for allowed in [16, 8, 4] {
            for permit in free(&limit) {
                permit.slow_down();
            }
            assert_eq!((limit.allowed(), free(&limit).len()), (allowed, allowed));
        }
        for _ in 0..100 {
            limit.acquire().await.slow_down();
        }
        assert_eq!(limit.allowed(), 1);
        limit.acquire().await.succeeded();
        assert_eq!(limit.allowed(), 2, "it recovers");
    }

    #[tokio::test]
    async fn a_server_that_refuses_every_third_keeps_the_floor_and_nobody_waits() {
        let limit = Limit::new(32, 64);
        for n in 0..3000 {
            let acquire = tokio::task::unconstrained(limit.acquire());
            let permit = acquire.now_or_never().expect("it is free");
            match n % 3 {
                0 => permit.slow_down(),
                _ => permit.succeeded(),
            }
            assert!(limit.allowed() >= FLOOR, "{} after {n}", limit.allowed());
        }
    }
}
