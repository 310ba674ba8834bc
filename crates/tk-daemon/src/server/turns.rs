use super::SocketPeer;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns at something of which there is little, such as memory: one user gets a part of them, and those who
/// are trusted do not wait for the others.
#[derive(Debug)]
pub(super) struct Turns {
    trusted: Arc<Semaphore>,
    others: Arc<Semaphore>,
    /// By user; those of users who are not here are not kept.
    users: Mutex<HashMap<Option<u32>, Weak<Semaphore>>>,
    most: usize,
    each: usize,
    waiting: AtomicUsize,
}

/// Whose turn it would be.
#[derive(Debug, Clone)]
pub(super) struct TurnQueue {
    turns: Arc<Turns>,
    user: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _user: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Turns {
    /// So many turns at once, half of them for one user.
    pub fn new(most: usize) -> Arc<Self> {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Turns {
            trusted: Arc::new(Semaphore::new(most)),
            others: Arc::new(Semaphore::new(most)),
            users: Mutex::default(),
            most,
            each: most.div_ceil(2),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Where a client of this user waits.
    pub fn queue(self: &Arc<Self>, peer: Option<&SocketPeer>, trusted: bool) -> TurnQueue {
        let (user, all) = if trusted {
            // The second is free for whoever has the first.
            (self.trusted.clone(), Arc::new(Semaphore::new(self.most)))
        } else {
            (self.user(peer.map(|peer| peer.uid)), self.others.clone())
        };
        TurnQueue {
            turns: self.clone(),
            user,
            all,
        }
    }

    fn user(&self, uid: Option<u32>) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(there) = users.get(&uid).and_then(Weak::upgrade) {
            return there;
        }
        users.retain(|_, user| user.strong_count() > 0);
        let user = Arc::new(Semaphore::new(self.each));
        users.insert(uid, Arc::downgrade(&user));
        user
    }
}

impl TurnQueue {
    /// The next turn. Who comes first gets one first.
    pub async fn turn(&self) -> Turn {
        let _waiting = WaitingTurn::new(&self.turns.waiting);
        let take = |from: &Arc<Semaphore>| from.clone().acquire_owned();
        let closed = "nobody closes it";
        Turn {
            _user: take(&self.user).await.expect(closed),
            _all: take(&self.all).await.expect(closed),
        }
    }

    /// Returns whether anybody waits for a turn, in this queue or in another one of the same turns.
    pub fn is_long(&self) -> bool {
        self.turns.waiting.load(Ordering::Relaxed) > 0
    }
}

struct WaitingTurn<'a>(&'a AtomicUsize);

impl<'a> WaitingTurn<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        WaitingTurn(count)
    }
}

impl Drop for WaitingTurn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn one_user_gets_a_half_and_the_trusted_wait_for_nobody() {
        let turns = Turns::new(4);
        let peer = |uid| SocketPeer {
            uid,
            gid: 0,
            pid: None,
        };
        let queue = |uid, trusted| turns.queue(Some(&peer(uid)), trusted);
        let now = |queue: &TurnQueue| queue.turn().now_or_never();
        let (one, two, three) = (queue(1, false), queue(2, false), queue(3, false));
        let held = [now(&one), now(&one), now(&two), now(&two)].map(Option::unwrap);
        assert!(now(&queue(1, false)).is_none() && now(&three).is_none());
        assert!(!one.is_long(), "nobody waits any more");
        let trusted: Vec<_> = (0..4).filter_map(|_| now(&queue(0, true))).collect();
        assert_eq!(trusted.len(), 4);
        assert!(now(&queue(0, true)).is_none());
        drop(held);
        assert!(now(&three).is_some());
    }
}
