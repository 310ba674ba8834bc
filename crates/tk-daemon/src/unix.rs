use crate::client::{Channel, Transport};
use async_trait::async_trait;
use std::{
    fmt,
    path::{Path, PathBuf},
};
use tk_store::{Error, Result, SocketName};
use tokio::net::UnixStream;

/// A daemon on this machine, behind a socket (`unix://`).
#[derive(Debug, Clone)]
pub struct UnixTransport {
    socket: PathBuf,
}

impl UnixTransport {
    /// The daemon that listens at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        UnixTransport {
            socket: socket.into(),
        }
    }

    /// Returns the path of the socket at which the daemon listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

#[async_trait]
impl Transport for UnixTransport {
    async fn connect(&self) -> Result<Channel> {
        let connecting = |error| Error::io(format!("connecting to {self}"), error);
        let name = SocketName::of(&self.socket).map_err(connecting)?;
        let stream = UnixStream::connect(name.as_path()).await;
        let stream = stream.map_err(connecting)?;
        let (reader, writer) = stream.into_split();
        Ok(Channel::new(reader, writer))
    }
}

impl fmt::Display for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the daemon at {}", self.socket.display())
    }
}
