//! How a connection begins: the client sends `0x390c9deb` and its version, the server `0x5452eecb` and
//! its version. The lower one holds. A version is `2 << 8 | minor`; other majors are refused, and
//! minors below 5.

use super::{MINIMUM, Serve};
use crate::wire::{
    HandshakeError, Protocol, Version, WireReader, Writer,
    handshake::{agree, expect_magic, send},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Begins a connection as a client that can speak up to 2.`latest`. Afterwards the reader has the
/// version agreed on.
pub async fn client<R, W>(
    from: &mut WireReader<R, Serve>,
    to: &mut W,
    latest: u8,
) -> Result<(), HandshakeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    greet(from.protocol(), to, latest, CLIENT_MAGIC).await?;
    expect_magic(from, Serve::SERVER_MAGIC).await?;
    read_version(from, latest).await
}

/// Begins a connection as a server that can speak up to 2.`latest`. Afterwards the reader has the
/// version agreed on.
pub async fn server<R, W>(
    from: &mut WireReader<R, Serve>,
    to: &mut W,
    latest: u8,
) -> Result<(), HandshakeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    // A client may wait for an answer to this before it says its version.
    expect_magic(from, CLIENT_MAGIC).await?;
    greet(from.protocol(), to, latest, Serve::SERVER_MAGIC).await?;
    read_version(from, latest).await
}

async fn greet<W>(
    protocol: &Serve,
    to: &mut W,
    latest: u8,
    magic: u64,
) -> Result<(), HandshakeError>
where
    W: AsyncWrite + Unpin + Send,
{
    let mut out = Writer::new(protocol.clone());
    out.u64(magic);
    out.u64(version(latest).word());
    Ok(send(to, &mut out).await?)
}

async fn read_version<R: AsyncRead + Unpin + Send>(
    from: &mut WireReader<R, Serve>,
    latest: u8,
) -> Result<(), HandshakeError> {
    let agreed = agree(from, version(latest), version(MINIMUM)).await?;
    let dir = from.dir().clone();
    from.set_protocol(Serve::new(dir, agreed.minor));
    Ok(())
}

const fn version(minor: u8) -> Version {
    Version { major: 2, minor }
}

const CLIENT_MAGIC: u64 = 0x390c_9deb;
