use std::collections::BTreeSet;
use std::io;
use tokio::net::UnixStream;

/// Who is at the other end of a unix socket, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketPeer {
    /// Its user, when it connected.
    pub uid: u32,
    /// Its group, when it connected.
    pub gid: u32,
    /// Its process; `None` where the system does not say, or it lives in another namespace.
    pub pid: Option<i32>,
}

impl SocketPeer {
    /// The peer of `stream`.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(SocketPeer {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid().filter(|pid| *pid > 0),
        })
    }
}

/// Whom the server trusts: to add paths without signatures, and with facts that it cannot check.
///
/// # Security
/// A trusted client can make every user of the store run what it likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustRule {
    /// Everybody who can connect.
    Everybody,
    /// No client is trusted, not even the user that the server runs as.
    Nobody,
    /// A client is trusted if its user or its group is listed here.
    Users {
        /// The numbers of the users that are trusted.
        uids: BTreeSet<u32>,
        /// Groups by number: clients that run with one as their own group.
        gids: BTreeSet<u32>,
    },
}

impl TrustRule {
    /// The user that the server runs as, and nobody else.
    pub fn owner() -> Self {
        TrustRule::Users {
            uids: BTreeSet::from([rustix::process::geteuid().as_raw()]),
            gids: BTreeSet::new(),
        }
    }

    /// Whether `peer` is trusted.
    pub fn trusts(&self, peer: &SocketPeer) -> bool {
        match self {
            TrustRule::Everybody => true,
            TrustRule::Nobody => false,
            TrustRule::Users { uids, gids } => uids.contains(&peer.uid) || gids.contains(&peer.gid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_is_trusted_unless_others_are_named() {
        let peer = |uid, gid| SocketPeer {
            uid,
            gid,
            pid: None,
        };
        let own = rustix::process::geteuid().as_raw();
        let rule = TrustRule::owner();
        assert!(rule.trusts(&peer(own, 7)));
        assert!(!rule.trusts(&peer(own + 1, 7)));
        let rule = TrustRule::Users {
            uids: BTreeSet::from([3]),
            gids: BTreeSet::from([7]),
        };
        for (uid, gid, trusted) in [(3, 1, true), (4, 7, true), (7, 3, false), (0, 0, false)] {
            assert_eq!(rule.trusts(&peer(uid, gid)), trusted, "{uid} {gid}");
        }
        assert!(TrustRule::Everybody.trusts(&peer(9, 9)));
        assert!(!TrustRule::Nobody.trusts(&peer(own, 0)));
    }

    #[tokio::test]
    async fn the_kernel_tells_who_connects() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = SocketPeer::of(&a).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert_eq!(peer.pid, Some(std::process::id() as i32));
    }
}
