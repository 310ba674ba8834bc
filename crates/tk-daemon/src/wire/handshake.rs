//! How connections of both protocols begin: a number that names the protocol and the end, and a version.

use super::{Protocol, WireError, WireReader, Writer};
use std::fmt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// The number of a version of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 1 for the worker protocol, 2 for the serve protocol.
    pub major: u8,
    /// What is counted up.
    pub minor: u8,
}

impl Version {
    /// Version 1 with this minor, of the worker protocol.
    pub const fn minor(minor: u8) -> Self {
        Version { major: 1, minor }
    }

    /// The number on the wire.
    pub const fn word(self) -> u64 {
        (self.major as u64) << 8 | self.minor as u64
    }

    /// Reads a number of the wire, of which only the low 16 bits count.
    pub const fn from_word(word: u32) -> Self {
        Version {
            major: (word >> 8) as u8,
            minor: word as u8,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The connection failed, or what came is not this protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other side does not begin as it should.
    #[error("the other side does not speak the {protocol} protocol: it begins with {number:#x}")]
    Magic {
        /// The name of the protocol that it should speak.
        protocol: &'static str,
        /// What it begins with.
        number: u64,
    },
    /// The other side is too old, or from another world.
    #[error(
        "the other side speaks {protocol} protocol {version}, but {minimum} or later is needed"
    )]
    Version {
        /// The name of the protocol.
        protocol: &'static str,
        /// The version that the other side sent.
        version: Version,
        /// The oldest version that is accepted.
        minimum: Version,
    },
    /// The server started, and then refused to go on, with these words.
    #[error("{0}")]
    Refused(String),
}

/// Reads the number that the other side must begin with.
pub(crate) async fn expect_magic<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
    expected: u64,
) -> Result<(), HandshakeError> {
    match from.u64().await? {
        magic if magic == expected => Ok(()),
        number => Err(HandshakeError::Magic {
            protocol: P::NAME,
            number,
        }),
    }
}

/// Reads the version of the other side, and returns the one that both speak.
pub(crate) async fn agree<R: AsyncRead + Unpin + Send, P: Protocol>(
    from: &mut WireReader<R, P>,
    own: Version,
    minimum: Version,
) -> Result<Version, HandshakeError> {
    let version = Version::from_word(from.int("a version").await?);
    let agreed = version.min(own);
    if version.major == own.major && agreed >= minimum {
        Ok(agreed)
    } else {
        Err(HandshakeError::Version {
            protocol: P::NAME,
            version,
            minimum,
        })
    }
}

/// Sends what was written.
pub(crate) async fn send<W: AsyncWrite + Unpin, P>(
    to: &mut W,
    out: &mut Writer<P>,
) -> Result<(), WireError> {
    to.write_all(&out.take()).await?;
    Ok(to.flush().await?)
}
