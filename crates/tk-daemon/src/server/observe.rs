use super::SocketPeer;
use std::time::Duration;

/// What a server tells its operator.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ServerEvent<'a> {
    /// A client has connected; the handshake has not begun yet.
    Connected {
        /// Who; `None` for a connection that is no socket.
        peer: Option<&'a SocketPeer>,
    },
    /// Both agreed on how to speak.
    Ready {
        /// The version of the protocol: `1.38`.
        version: &'a str,
        /// The features of the protocol, as in `a,b`.
        features: &'a str,
        /// Whether the client is trusted.
        trusted: bool,
    },
    /// An operation has ended.
    Operation {
        /// Its name, as `QueryPathInfo`.
        name: &'a str,
        /// From the request's first byte to the reply's last.
        took: Duration,
        /// Why it was refused or broken off; `None`: it was not.
        error: Option<&'a str>,
    },
    /// The connection has ended.
    Closed {
        /// Operations that were asked for.
        operations: u64,
        /// What broke it off; `None`: the client closed it between two operations.
        error: Option<&'a str>,
    },
    /// No connection could be taken; the server tries again.
    NotAccepted {
        /// The reason, as a text for people.
        error: &'a str,
    },
}

/// Takes what a server tells its operator. It is called often and must not block.
pub trait Observer: Send + Sync {
    /// Takes one event. Connections are numbered from 1; 0 is the server itself.
    fn event(&self, connection: u64, event: ServerEvent<'_>);
}

/// Drops every event: the observer of a server whose operator wants to know nothing.
impl Observer for () {
    fn event(&self, _: u64, _: ServerEvent<'_>) {}
}

impl<F: Fn(u64, ServerEvent<'_>) + Send + Sync> Observer for F {
    fn event(&self, connection: u64, event: ServerEvent<'_>) {
        self(connection, event);
    }
}
