//! Threads that work for one caller only, and so may wait.
//!
//! Whoever serves many tasks must not wait for a disk: stores answer on other threads, and the way there and
//! back takes longer than a short question to a database. On a thread of its own a caller loses nothing by
//! waiting.

use crate::{Error, Result};
use std::{cell::Cell, io, panic};

/// Runs `work` on a thread of the runtime that may wait; a panic in it goes on in the caller.
///
/// # Errors
/// Those of `work`; and when the runtime ends before the work begins.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|failure| match failure.try_into_panic() {
        Ok(panic) => panic::resume_unwind(panic),
        Err(ended) => Err(Error::io("waiting for a thread", io::Error::other(ended))),
    })
}

/// Runs `work`: stores that it asks short questions answer on this thread.
///
/// Futures are to be run on it by [`Handle::block_on`](tokio::runtime::Handle::block_on), and one at a time.
pub fn enter<T>(work: impl FnOnce() -> T) -> T {
    struct Leave(bool);
    impl Drop for Leave {
        fn drop(&mut self) {
            OWN.set(self.0);
        }
    }
    let _leave = Leave(OWN.replace(true));
    work()
}

/// Whether this thread may wait.
pub fn is_entered() -> bool {
    OWN.get()
}

thread_local! {
    static OWN: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_the_work_also_if_that_panics() {
        assert!(!is_entered());
        // An inner one ends, and the outer one goes on.
        assert!(enter(|| enter(is_entered) && is_entered()));
        assert!(std::panic::catch_unwind(|| enter(|| panic!("as wanted"))).is_err());
        assert!(!is_entered());
    }
}
