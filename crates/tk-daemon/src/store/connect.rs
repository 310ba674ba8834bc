use super::DaemonConfig;
use crate::{
    client::{ClientProtocol, Connection, Transport, in_time},
    wire::{HandshakeError, WireError},
    worker::{Capabilities, Version, WorkerProtocol, features, handshake},
};
use std::io;
use tk_store::Result;

impl ClientProtocol for WorkerProtocol {
    type Config = DaemonConfig;

    /// Connects, agrees on a version, and sets the options.
    async fn connect(transport: &dyn Transport, config: &DaemonConfig) -> Result<Connection> {
        in_time(&config.uri, config.connect_timeout, async {
            let blank = WorkerProtocol::new(config.dir.clone(), Version::minor(0));
            let mut connection = Connection::connect(transport, &config.uri, blank).await?;
            let offered = Capabilities {
                version: config.version,
                features: config.features.clone(),
            };
            let (reader, sink) = (&mut connection.input.reader, &mut connection.output.sink);
            let hello = handshake::client(reader, sink, &offered, &*config.log).await;
            let hello = hello.map_err(greeted);
            connection.shaken(hello, config.timeout).await?;
            let wanted = !connection.protocol().has(features::DISABLE_SET_OPTIONS);
            if let Some(options) = config.settings.as_ref().filter(|_| wanted) {
                // Written ahead: the answer is read with that of the first operation.
                connection.output.request(options)?;
                connection.input.greeting = true;
            }
            Ok(connection)
        })
        .await
    }
}

/// The same, with what is known of a daemon that hangs up before it has said anything.
fn greeted(error: HandshakeError) -> HandshakeError {
    match error {
        HandshakeError::Wire(error) if error.is_bare_end() => {
            WireError::from(io::Error::new(io::ErrorKind::UnexpectedEof, NOT_GREETED)).into()
        }
        error => error,
    }
}

const NOT_GREETED: &str = "it closed the connection at once; a nix-daemon does so to users whom its \
                           allowed-users leaves out";
