//! Who is connected, who waits for a place, and who has to make one.
//!
//! Those who are trusted have places of their own, as many as all the others together, of whom one user gets
//! three quarters at most. Nobody is sent away for being silent as long as nobody wants the place.

use super::{SocketPeer, activity::Activity};
use std::{
    collections::{BTreeMap, VecDeque},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::Notify;

/// All connections of one server.
pub(super) struct Clients {
    state: Mutex<ClientsState>,
    /// Is notified when a connection has ended, so that its place is free.
    pub left: Notify,
    most: usize,
    each: usize,
    /// Who was silent for so long makes room for those who wait.
    patience: Duration,
}

#[derive(Default)]
struct ClientsState {
    open: BTreeMap<u64, OpenConnection>,
    waiting: VecDeque<NewClient>,
    number: u64,
    stopping: bool,
}

struct OpenConnection {
    who: Who,
    stream: Arc<UnixStream>,
    activity: Arc<Activity>,
}

/// Somebody who has connected.
pub(super) struct NewClient {
    pub stream: UnixStream,
    pub peer: Option<SocketPeer>,
    pub trusted: bool,
}

/// Somebody who has a place, until this is dropped.
pub(super) struct AdmittedClient {
    pub number: u64,
    pub stream: Arc<UnixStream>,
    pub peer: Option<SocketPeer>,
    pub trusted: bool,
    pub activity: Arc<Activity>,
    clients: Arc<Clients>,
}

/// Those who share places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Trusted,
    User(Option<u32>),
}

impl Clients {
    /// Places for `most` clients who are trusted, and as many others.
    pub fn new(most: usize, patience: Duration) -> Arc<Self> {
        let most = most.max(1);
        Arc::new(Clients {
            state: Mutex::default(),
            left: Notify::new(),
            most,
            each: most - most / 4,
            patience,
        })
    }

    /// Lets `arrived` wait for a place; false if too many of its user do already.
    pub fn arrive(&self, arrived: NewClient) -> bool {
        let mut state = self.lock();
        let who = arrived.who();
        let waiting = state.waiting.iter().filter(|other| other.who() == who);
        if waiting.count() >= self.each || state.waiting.len() >= 2 * self.most {
            return false;
        }
        state.waiting.push_back(arrived);
        true
    }

    /// The next one who has a place now.
    pub fn admit(self: &Arc<Self>) -> Option<AdmittedClient> {
        let mut state = self.lock();
        // Not simply the first one: a user at its limit must not keep others waiting.
        let next =
            (0..state.waiting.len()).find(|i| self.has_place(&state, state.waiting[*i].who()));
        let arrived = state.waiting.remove(next?)?;
        state.number += 1;
        let number = state.number;
        let (stream, activity) = (Arc::new(arrived.stream), Arc::<Activity>::default());
        let open = OpenConnection {
            who: Who::of(arrived.peer.as_ref(), arrived.trusted),
            stream: stream.clone(),
            activity: activity.clone(),
        };
        state.open.insert(number, open);
        Some(AdmittedClient {
            number,
            stream,
            peer: arrived.peer,
            trusted: arrived.trusted,
            activity,
            clients: self.clone(),
        })
    }

    /// Whether somebody waits; ends the connection that has kept the server waiting longest, if it has done so for
    /// long enough.
    pub fn make_room(&self) -> bool {
        let state = self.lock();
        let Some(first) = state.waiting.front().map(NewClient::who) else {
            return false;
        };
        let mut held = BTreeMap::new();
        for open in state.open.values() {
            *held.entry(open.who).or_insert(0) += 1;
        }
        let own = held.get(&first).copied().unwrap_or(0);
        // At its own limit a user makes room for itself; otherwise those do who have the most.
        let (whose, patience) = if first == Who::Trusted || own >= self.each {
            (first, self.patience)
        } else {
            let others = held.iter().filter(|(who, _)| **who != Who::Trusted);
            let (most, count) = others
                .max_by_key(|(_, count)| **count)
                .unwrap_or((&first, &own));
            // Fair only if the other still has as many as the one who waits, after one place changed
            // hands.
            let fair = *count > own + 1;
            (
                *most,
                if fair {
                    SHORT.min(self.patience)
                } else {
                    self.patience
                },
            )
        };
        let silent = state.open.values().filter(|open| open.who == whose);
        let silent = silent.filter_map(|open| Some((open.activity.silence()?, open)));
        if let Some((silence, open)) = silent.max_by_key(|(silence, _)| *silence)
            && silence >= patience
        {
            // Its thread sees the end.
            let _ = open.stream.shutdown(Shutdown::Both);
        }
        true
    }

    /// Ends the connections on which nothing is under way, and those that get idle from now on.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.waiting.clear();
        for open in state.open.values().filter(|open| open.activity.is_idle()) {
            let _ = open.stream.shutdown(Shutdown::Both);
        }
    }

    /// Shuts down every open connection, also those on which a request is under way.
    pub fn end(&self) {
        for open in self.lock().open.values() {
            let _ = open.stream.shutdown(Shutdown::Both);
        }
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    fn has_place(&self, state: &ClientsState, who: Who) -> bool {
        let trusted = |other: &Who| *other == Who::Trusted;
        let held = state.open.values().map(|open| open.who);
        let (of_kind, own) = held.fold((0, 0), |(of_kind, own), other| {
            let same_kind = trusted(&other) == trusted(&who);
            (
                of_kind + usize::from(same_kind),
                own + usize::from(other == who),
            )
        });
        of_kind < self.most && (trusted(&who) || own < self.each)
    }

    fn lock(&self) -> MutexGuard<'_, ClientsState> {
        // Each change is a whole one.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl AdmittedClient {
    /// Whether this server stops: then nothing new is to be begun. Whoever gets no yes here is found idle by
    /// [`Clients::stop`].
    pub fn goes_idle(&self) -> bool {
        let state = self.clients.lock();
        self.activity.set_idle(true);
        !state.stopping
    }
}

impl Drop for AdmittedClient {
    fn drop(&mut self) {
        self.clients.lock().open.remove(&self.number);
        self.clients.left.notify_one();
    }
}

impl NewClient {
    fn who(&self) -> Who {
        Who::of(self.peer.as_ref(), self.trusted)
    }
}

impl Who {
    fn of(peer: Option<&SocketPeer>, trusted: bool) -> Self {
        if trusted {
            return Who::Trusted;
        }
        Who::User(peer.map(|peer| peer.uid))
    }
}

/// So long may those be silent who have more than others.
const SHORT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn arrived(stream: UnixStream, uid: u32, trusted: bool) -> NewClient {
        let peer = SocketPeer {
            uid,
            gid: 0,
            pid: None,
        };
        NewClient {
            stream,
            peer: Some(peer),
            trusted,
        }
    }

    fn arrive(clients: &Arc<Clients>, uid: u32, trusted: bool) -> Option<AdmittedClient> {
        let (stream, _) = UnixStream::pair().unwrap();
        assert!(clients.arrive(arrived(stream, uid, trusted)));
        clients.admit()
    }

    #[test]
    fn nobody_takes_all_places() {
        let clients = Clients::new(8, Duration::from_secs(3600));
        let mut greedy: Vec<_> = (0..6).map(|_| arrive(&clients, 1, false)).collect();
        assert!(greedy.iter().all(Option::is_some));
        greedy.push(arrive(&clients, 1, false));
        assert!(greedy[6].is_none());
        let other = arrive(&clients, 2, false);
        assert_eq!(other.as_ref().unwrap().peer.unwrap().uid, 2);
        let owner: Vec<_> = (0..8).map(|_| arrive(&clients, 0, true)).collect();
        assert!(owner.iter().all(Option::is_some));
        // Nobody has been silent for an hour.
        assert!(clients.make_room());
        assert_eq!(clients.count(), 15);
        drop(greedy.remove(0));
        let next = clients.admit().unwrap();
        assert_eq!((next.number, next.peer.unwrap().uid), (16, 1));
        assert!(!clients.make_room(), "nobody waits");
    }

    #[test]
    fn who_is_silent_makes_room_for_those_who_have_less() {
        let clients = Clients::new(4, Duration::ZERO);
        let (mut peers, mut held) = (Vec::new(), Vec::new());
        for (i, uid) in [1, 1, 1, 2].into_iter().enumerate() {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            peers.push(theirs);
            assert!(clients.arrive(arrived(ours, uid, false)));
            let admitted = clients.admit().unwrap();
            // The first is worked for.
            admitted.activity.set_waiting(i != 0);
            held.push(admitted);
        }
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert!(clients.arrive(arrived(stream, 3, false)));
        assert!(clients.admit().is_none());
        assert!(clients.make_room());
        let ended = |mut peer: &UnixStream| matches!(peer.read(&mut [0]), Ok(0));
        let ended: Vec<_> = peers.iter().map(ended).collect();
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
        assert!(ended[1] || ended[2], "{ended:?}");
    }
}
