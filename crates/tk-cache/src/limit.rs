//! How many requests a server is given at once.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

/// A bound on the requests under way that adapts to the server: each full round of successes
/// allows one more, a "slow down" halves it, and what the server asks to wait everybody waits.
///
/// A clone is the same limit.
#[derive(Debug, Clone)]
pub(crate) struct Limit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Semaphore,
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    allowed: usize,
    /// Permits to take away from those who give theirs back.
    owed: usize,
    /// Successes since `allowed` changed.
    successes: usize,
    halved: Option<Instant>,
    paused_until: Option<Instant>,
}

impl Limit {
    /// Starts with `start` requests at once and never allows more than `most`.
    pub(crate) fn new(start: usize, most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let allowed = start.clamp(1, most);
        Limit(Arc::new(Inner {
            free: Semaphore::new(allowed),
            most,
            state: Mutex::new(State {
                allowed,
                owed: 0,
                successes: 0,
                halved: None,
                paused_until: None,
            }),
        }))
    }

    /// Waits until one more request may be sent. First come, first served.
    pub(crate) async fn acquire(&self) -> Permit {
        if let Ok(permit) = self.0.free.acquire().await {
            permit.forget();
        }
        let mut permit = Permit {
            limit: self.0.clone(),
            started: Instant::now(),
            given_back: false,
        };
        // Another "slow down" may come while waiting for the end of the first.
        loop {
            let paused = self.0.state().paused();
            match paused {
                Some(until) => sleep_until(until).await,
                None => break,
            }
        }
        permit.started = Instant::now();
        permit
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
    limit: Arc<Inner>,
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
        state.successes = 0;
        state.allowed += 1;
        match state.owed {
            0 => self.limit.free.add_permits(1),
            _ => state.owed -= 1,
        }
    }

    /// The server has too much to do. Half as many requests from now on, and none before `wait` has
    /// passed.
    pub(crate) fn slow_down(self, wait: Duration) {
        let now = Instant::now();
        let mut state = self.limit.state();
        state.paused_until = state.paused_until.max(Some(now + wait));
        // Requests that were under way together say the same thing once.
        if state.halved.is_some_and(|halved| self.started <= halved) {
            return;
        }
        state.halved = Some(now);
        state.successes = 0;
        let fewer = state.allowed / 2;
        if fewer > 0 {
            state.allowed -= fewer;
            state.owed += fewer - self.limit.free.forget_permits(fewer);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Inner {
    fn give_back(&self) {
        let mut state = self.state();
        match state.owed {
            0 => self.free.add_permits(1),
            _ => state.owed -= 1,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn paused(&mut self) -> Option<Instant> {
        self.paused_until = self.paused_until.filter(|until| *until > Instant::now());
        self.paused_until
    }
}

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
        let limit = Limit::new(16, 16);
        for permit in free(&limit) {
            permit.slow_down(Duration::ZERO);
        }
        assert_eq!(limit.allowed(), 8);
        assert_eq!(free(&limit).len(), 8);
        for allowed in [4, 2, 1, 1] {
            limit.acquire().await.slow_down(Duration::ZERO);
            assert_eq!((limit.allowed(), free(&limit).len()), (allowed, allowed));
        }
        limit.acquire().await.succeeded();
        assert_eq!(limit.allowed(), 2, "it recovers");
    }

    #[tokio::test]
    async fn everybody_waits_as_asked() {
        let limit = Limit::new(4, 4);
        let start = Instant::now();
        limit.acquire().await.slow_down(Duration::from_millis(50));
        assert!(limit.acquire().now_or_never().is_none());
        limit.acquire().await;
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
}
