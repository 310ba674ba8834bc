//! How a connection begins, and what both ends then know.
//!
//! | Step | Who | Sent |
//! |---|---|---|
//! | 1 | client | `0x6e697863`, own version |
//! | 2 | server | `0x6478696f`, own version; before it reads the client's |
//! | 3 | both | the version is the lower one |
//! | 4 (1.38) | client | set of features |
//! | 5 (1.38) | server | set of features; those of both hold |
//! | 6 (1.14) | client | 0; otherwise the server takes one more integer (processor affinity) |
//! | 7 (1.11) | client | 0 (reserved space) |
//! | 8 (1.33) | server | string: version of Nix |
//! | 9 (1.35) | server | whether it trusts the client: 0 unknown, 1 yes, 2 no |
//! | 10 | server | [`log`](super::log) up to the last message or an error |
//!
//! A version is `major << 8 | minor`; the major must be 1. Neither end waits more than it must: a
//! client sends 4, 6 and 7 at once, so that a handshake takes two round trips.

use super::{Capabilities, MINIMUM, OLDEST, Trust, Version, WorkerProtocol, log::Message};
pub use crate::wire::HandshakeError;

use crate::wire::{
    Decode, Encode, Protocol, WireError, WireReader, Writer,
    handshake::{agree, expect_magic, send},
};
use tk_store::log::LogSink;
use tokio::io::{AsyncRead, AsyncWrite};

/// What a server says about itself (Nix's `ClientHandshakeInfo`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerHello {
    /// The version of Nix, or whatever the server wants to be called; unknown before 1.33.
    pub nix_version: Option<String>,
    /// Whether it trusts the client; unknown before 1.35, and where it does not say.
    pub trust: Option<Trust>,
}

impl Encode<WorkerProtocol> for ServerHello {
    fn encode(&self, to: &mut Writer<WorkerProtocol>) -> Result<(), WireError> {
        if to.protocol().at_least(33) {
            to.string(self.nix_version.as_deref().unwrap_or_default());
        }
        if to.protocol().at_least(35) {
            to.value(&self.trust)?;
        }
        Ok(())
    }
}

impl Decode<WorkerProtocol> for ServerHello {
    async fn decode<R: AsyncRead + Unpin + Send>(
        from: &mut WireReader<R, WorkerProtocol>,
    ) -> Result<Self, WireError> {
        let mut hello = ServerHello::default();
        if from.protocol().at_least(33) {
            let text = |text: &str| Ok::<_, &str>(text.to_owned());
            let version = from
                .parse("the version of Nix", MAX_NIX_VERSION, text)
                .await?;
            hello.nix_version = Some(version);
        }
        if from.protocol().at_least(35) {
            hello.trust = from.value().await?;
        }
        Ok(hello)
    }
}

/// Begins a connection as a client that can do `offered`. Afterwards the reader has the protocol
/// agreed on, and the connection waits for the first request. What the server logs goes to `log`.
///
/// # Errors
/// Also for a version below [`MINIMUM`].
pub async fn client<R, W>(
    from: &mut WireReader<R, WorkerProtocol>,
    to: &mut W,
    offered: &Capabilities,
    log: &dyn LogSink,
) -> Result<ServerHello, HandshakeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    greet(from, to, offered, MINIMUM).await?;
    let hello = from.message().await?;
    loop {
        match from.message().await? {
            Message::Log(event) => log.event(event),
            Message::Last => return Ok(hello),
            Message::Error(error) => return Err(HandshakeError::Refused(error.plain())),
            Message::Read(_) | Message::Write(_) => {
                return Err(from.malformed("data during the handshake").into());
            }
        }
    }
}

/// Steps 1 to 7 of a client: whoever the server is, and from `minimum` on, but at least [`OLDEST`].
/// The reader then has the protocol agreed on.
pub async fn greet<R, W>(
    from: &mut WireReader<R, WorkerProtocol>,
    to: &mut W,
    offered: &Capabilities,
    minimum: Version,
) -> Result<(), HandshakeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let mut out = Writer::new(from.protocol().clone());
    out.u64(CLIENT_MAGIC);
    out.u64(offered.version.word());
    send(to, &mut out).await?;
    expect_magic(from, WorkerProtocol::SERVER_MAGIC).await?;
    let version = agree(from, offered.version, minimum.max(OLDEST)).await?;
    let mut agreed = Capabilities {
        version,
        features: Default::default(),
    };
    if version >= FEATURES {
        out.value(&offered.features)?;
    }
    if version >= AFFINITY {
        out.u64(0);
    }
    if version >= RESERVED {
        out.u64(0);
    }
    send(to, &mut out).await?;
    if version >= FEATURES {
        agreed.features = offered.features.common(&from.message().await?);
    }
    from.set_protocol(from.protocol().with(agreed));
    Ok(())
}

/// Begins a connection as a server that can do `offered`: steps 1 to 9. Afterwards the reader has the
/// protocol agreed on, and the client waits for [`Message::Last`] or [`Message::Error`].
///
/// # Errors
/// Also for a version below [`MINIMUM`]; the client then sees the connection close.
pub async fn server<R, W>(
    from: &mut WireReader<R, WorkerProtocol>,
    to: &mut W,
    offered: &Capabilities,
    hello: &ServerHello,
) -> Result<(), HandshakeError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    expect_magic(from, CLIENT_MAGIC).await?;
    let mut out = Writer::new(from.protocol().clone());
    out.u64(WorkerProtocol::SERVER_MAGIC);
    out.u64(offered.version.word());
    send(to, &mut out).await?;
    let version = agree(from, offered.version, MINIMUM).await?;
    let mut agreed = Capabilities {
        version,
        features: Default::default(),
    };
    if version >= FEATURES {
        agreed.features = offered.features.common(&from.message().await?);
        out.value(&offered.features)?;
        send(to, &mut out).await?;
    }
    if version >= AFFINITY && from.bool().await? {
        from.u64().await?;
    }
    if version >= RESERVED {
        from.bool().await?;
    }
    from.set_protocol(from.protocol().with(agreed));
    out.set_protocol(from.protocol().clone());
    out.value(hello)?;
    Ok(send(to, &mut out).await?)
}

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const FEATURES: Version = Version::minor(38);
const AFFINITY: Version = Version::minor(14);
const RESERVED: Version = Version::minor(11);
const MAX_NIX_VERSION: u64 = 4096;
