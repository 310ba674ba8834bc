//! Connections to a server of the serve protocol.
//!
//! An operation that does not end cleanly leaves its connection unclean, for good: the protocol has
//! no way to get over an error.

use super::ServeConfig;
use crate::{
    client::{
        ClientProtocol, Connection, ConnectionInput, ConnectionOutput, ConnectionPool, Transport,
        in_time,
    },
    serve::{LATEST, Serve, handshake},
    ssh::SshGuard,
    wire::{Decode, Request},
    worker::handshake::ServerHello,
};
use futures::{FutureExt, future::try_join};
use tk_store::{
    Result,
    log::{Level, LogEvent, LogSink},
};
use tokio::sync::broadcast;

pub(super) type ServePool = ConnectionPool<Serve>;
pub(super) type ServeConnection = Connection<Serve>;
pub(super) type ServeOutput = ConnectionOutput<Serve>;

impl ClientProtocol for Serve {
    type Config = ServeConfig;

    async fn connect(transport: &dyn Transport, config: &ServeConfig) -> Result<Connection<Self>> {
        in_time(&config.uri, config.connect_timeout, async {
            let newest = Serve::new(config.dir.clone(), LATEST);
            let mut connection = Connection::connect(transport, &config.uri, newest).await?;
            let (reader, sink) = (&mut connection.input.reader, &mut connection.output.sink);
            let shaken = handshake::client(reader, sink, LATEST).await;
            let hello = shaken.map(|()| ServerHello::default());
            connection.shaken(hello, config.timeout).await?;
            connection.input.patience.set(config.timeout);
            Ok(connection)
        })
        .await
    }
}

impl Connection<Serve> {
    /// Sends one request and waits for its reply.
    pub async fn call<Q: Request<Serve>>(&mut self, request: &Q) -> Result<Q::Reply> {
        let mut replies = self.call_all(std::slice::from_ref(request)).await?;
        replies.pop().ok_or_else(|| self.input.peer.nothing())
    }

    /// Asks several things at once: written without waiting for the answers.
    pub async fn call_all<Q: Request<Serve>>(&mut self, requests: &[Q]) -> Result<Vec<Q::Reply>> {
        self.flight.begin();
        let (input, output) = (&mut self.input, &mut self.output);
        let write = async {
            for request in requests {
                output.request(request)?;
                output.flush_some().await?;
            }
            output.flush().await
        };
        let read = async {
            let mut replies = Vec::with_capacity(requests.len());
            for _ in requests {
                replies.push(input.reply().await?);
            }
            Ok(replies)
        };
        // Both at once: a server whose replies nobody takes would stop reading requests, and both ends
        // hang.
        let ((), replies) = try_join(write, read).await?;
        self.flight.end();
        Ok(replies)
    }

    /// As [`Connection::call`], for what may take as long as it wants; `log` gets what the far end
    /// writes to stderr meanwhile, if that is collected.
    pub async fn call_long<Q: Request<Serve>>(
        &mut self,
        request: &Q,
        log: &dyn LogSink,
    ) -> Result<Q::Reply> {
        let patience = self.input.patience.clone();
        let limit = patience.get();
        // Before the request goes out, so that no line about it is missed.
        let mut lines = self.ssh().map(SshGuard::lines);
        patience.set(None);
        let reply = {
            let mut call = Box::pin(self.call(request));
            loop {
                tokio::select! {
                    biased;
                    reply = &mut call => break reply,
                    line = next_line(&mut lines) => log.event(line),
                }
            }
        };
        patience.set(limit);
        // Stderr has a way of its own: lines that were written before the reply may arrive after it.
        if let Some(guard) = self.ssh() {
            guard.caught_up().await;
        }
        while let Some(line) = next_line(&mut lines).now_or_never() {
            log.event(line);
        }
        reply
    }

    fn ssh(&self) -> Option<&SshGuard> {
        self.guard()?.downcast_ref()
    }
}

/// Waits for ever where there are none.
async fn next_line(lines: &mut Option<broadcast::Receiver<String>>) -> LogEvent {
    use broadcast::error::RecvError;
    while let Some(receiver) = lines {
        match receiver.recv().await {
            Ok(line) => return LogEvent::message(Level::Info, line),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => *lines = None,
        }
    }
    std::future::pending().await
}

impl ConnectionInput<Serve> {
    pub async fn reply<T: Decode<Serve>>(&mut self) -> Result<T> {
        self.reader.message().await.map_err(|e| self.peer.failed(e))
    }
}
