//! Threads that work for one caller only, and so may wait.
//!
//! Whoever serves many tasks must not wait for a disk: stores answer on other threads, and the way there and
//! back takes longer than a short question to a database. On a thread of its own a caller loses nothing by
//! waiting.

use std::cell::Cell;

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
