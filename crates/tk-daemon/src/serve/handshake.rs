//! How a connection begins: the client sends `0x390c9deb` and its version, the server `0x5452eecb` and
//! its version. The lower one holds. A version is `2 << 8 | minor`; other majors are refused, and
//! minors below [`MINIMUM`].

use super::{MINIMUM, Serve};
use crate::wire::{WireError, WireReader, Writer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeHandshakeError {
    /// The connection failed, or what came is not this protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other side does not begin as it should.
    #[error("the other side does not speak the serve protocol: it begins with {0:#x}")]
    Magic(u64),
    /// The other side is too old, or from another world.
    #[error(
        "the other side speaks serve protocol {major}.{minor}, but 2.{MINIMUM} or later is needed"
    )]
    Version {
        /// The major version that the other side sent; only 2 is accepted.
        major: u8,
        /// The minor version that the other side sent; the oldest that is accepted is [`MINIMUM`].
        minor: u8,
    },
}

/// Begins a connection as a client that can speak up to 2.`latest`. Afterwards the reader has the
/// version agreed on.
pub async fn client<R, W>(
    from: &mut WireReader<R, Serve>,
    to: &mut W,
    latest: u8,
) -> Result<(), ServeHandshakeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    greet(from.protocol().clone(), to, latest, CLIENT_MAGIC).await?;
    expect(from, latest, SERVER_MAGIC).await
}

/// Begins a connection as a server that can speak up to 2.`latest`. Afterwards the reader has the
/// version agreed on.
pub async fn server<R, W>(
    from: &mut WireReader<R, Serve>,
    to: &mut W,
    latest: u8,
) -> Result<(), ServeHandshakeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    // A client may wait for this before it says its version.
    match from.u64().await? {
        CLIENT_MAGIC => greet(from.protocol().clone(), to, latest, SERVER_MAGIC).await?,
        other => return Err(ServeHandshakeError::Magic(other)),
    }
    read_version(from, latest).await
}

async fn greet<W>(
    protocol: Serve,
    to: &mut W,
    latest: u8,
    magic: u64,
) -> Result<(), ServeHandshakeError>
where
    W: AsyncWrite + Unpin + Send,
{
    let mut out = Writer::new(protocol);
    out.u64(magic);
    out.u64(MAJOR << 8 | u64::from(latest));
    to.write_all(&out.take()).await.map_err(WireError::from)?;
    Ok(to.flush().await.map_err(WireError::from)?)
}

async fn expect<R: AsyncRead + Unpin + Send>(
    from: &mut WireReader<R, Serve>,
    latest: u8,
    magic: u64,
) -> Result<(), ServeHandshakeError> {
    match from.u64().await? {
        found if found == magic => read_version(from, latest).await,
        other => Err(ServeHandshakeError::Magic(other)),
    }
}

async fn read_version<R: AsyncRead + Unpin + Send>(
    from: &mut WireReader<R, Serve>,
    latest: u8,
) -> Result<(), ServeHandshakeError> {
    let word: u32 = from.int("a version").await?;
    let (major, minor) = ((word >> 8) as u8, word as u8);
    if u64::from(major) != MAJOR || minor < MINIMUM {
        return Err(ServeHandshakeError::Version { major, minor });
    }
    let dir = from.dir().clone();
    from.set_protocol(Serve::new(dir, minor.min(latest)));
    Ok(())
}

const CLIENT_MAGIC: u64 = 0x390c_9deb;
/// What a server begins with.
pub(crate) const SERVER_MAGIC: u64 = 0x5452_eecb;
const MAJOR: u64 = 2;
