//! Any store of ours behind the serve protocol: the server's side.

mod adding;
mod builds;

use super::{
    Command, LATEST, Serve, ServeBuildOptions,
    commands::{
        AddToStoreNar, BuildDerivation, BuildPaths, DumpStorePath, PathInfos, QueryClosure,
        QueryPathInfos, QueryValidPaths,
    },
    handshake,
};
use crate::{
    values::Done,
    wire::{Encode, HandshakeError, Request, WireError, WireReader, Writer},
};
use bytes::Bytes;
use futures::TryStreamExt;
use std::{collections::BTreeSet, fmt, io, sync::Arc};
use tk_path::StorePath;
use tk_store::{
    Abilities, ClientSettings, Error, Result, StoreExt, closure,
    log::{Level, LogEvent, LogSink},
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter};

/// Serves a store to clients of `ssh://`, as `nix-store --serve` does.
///
/// | Command | |
/// |---|---|
/// | QueryValidPaths | `lock` makes temporary roots where the store has them, and is ignored without writing; `substitute` fetches what is missing if the store can and writing is allowed |
/// | ImportPaths, AddToStoreNar | need writing |
/// | BuildPaths, BuildDerivation | by the store if it builds; else they succeed if the outputs are there already, and fail with a sentence if not |
///
/// # Security
/// As with Nix, who may write is trusted: signatures are not asked for. Contents are checked against
/// their hashes all the same, and that the store has built a path itself is not believed.
#[derive(Clone)]
pub struct ServeServer {
    abilities: Abilities,
    write: bool,
    log: Arc<dyn LogSink>,
}

impl ServeServer {
    /// Serves `abilities` for reading only.
    pub fn new(abilities: Abilities) -> Self {
        ServeServer {
            abilities,
            write: false,
            log: Arc::new(()),
        }
    }

    /// The same, where clients may also add paths and build.
    pub fn writable(mut self) -> Self {
        self.write = true;
        self
    }

    /// The same with somebody who takes the logs of builds. The client gets none: over ssh it sees
    /// what this process writes to stderr.
    pub fn with_log(mut self, log: Arc<dyn LogSink>) -> Self {
        self.log = log;
        self
    }

    /// The same, where builds are done as `options` say by a store that can be told.
    fn building(&self, options: &ServeBuildOptions) -> Self {
        let mut settings = ClientSettings::default();
        settings.keep_failed = options.keep_failed;
        settings.max_silent_time = options.max_silent_time;
        for (name, limit) in [
            ("timeout", options.build_timeout),
            ("max-build-log-size", options.max_log_size),
        ] {
            if limit > 0 {
                settings
                    .overrides
                    .insert(name.to_owned(), limit.to_string());
            }
        }
        let mut server = self.clone();
        // Who wants nothing in particular leaves the store to its own settings.
        if settings == ClientSettings::default() {
            return server;
        }
        let session = self.abilities.session(self.log.clone());
        let sessions = session.sessions.as_ref();
        // Messages come without their level, so only what is wrong is asked for: where a build that failed
        // is kept is among it.
        settings.verbosity = Level::Error;
        if let Some(told) = sessions.and_then(|sessions| sessions.with_settings(&settings)) {
            server.abilities = told;
            let log = self.log.clone();
            server.log = Arc::new(move |event: LogEvent| match event {
                LogEvent::Message { text, .. } => log.event(LogEvent::message(Level::Error, text)),
                event => log.event(event),
            });
        }
        server
    }

    /// Serves one client until it closes its end.
    ///
    /// # Errors
    /// What ended the session before that. The protocol cannot tell the client more than that it has
    /// ended: write the error to stderr, which ssh brings there.
    pub async fn serve<R, W>(&self, reader: R, writer: W) -> Result<()>
    where
        R: AsyncRead + Send + Unpin,
        W: AsyncWrite + Send + Unpin,
    {
        let dir = self.abilities.store.dir().clone();
        let mut reader = WireReader::new(reader, Serve::new(dir, LATEST));
        let mut sink = BufWriter::with_capacity(BUFFER, writer);
        handshake::server(&mut reader, &mut sink, LATEST)
            .await
            .map_err(no_handshake)?;
        let mut session = ServeSession {
            server: self,
            writer: Writer::new(reader.protocol().clone()),
            reader,
            sink,
        };
        while !session.reader.at_end().await.map_err(failed)? {
            session.command().await?;
            session.flush().await?;
        }
        Ok(())
    }
}

impl fmt::Debug for ServeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeServer")
            .field("abilities", &self.abilities)
            .field("write", &self.write)
            .finish_non_exhaustive()
    }
}

/// The session of one client, after the handshake.
struct ServeSession<'a, R, W> {
    server: &'a ServeServer,
    reader: WireReader<R, Serve>,
    writer: Writer<Serve>,
    sink: BufWriter<W>,
}

impl<R, W> ServeSession<'_, R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    async fn command(&mut self) -> Result<()> {
        self.reader.begin_message();
        let number = self.reader.u64().await.map_err(failed)?;
        match Command::from_u64(number) {
            Some(Command::QueryValidPaths) => self.valid_paths().await,
            Some(Command::QueryPathInfos) => self.path_infos().await,
            Some(Command::DumpStorePath) => self.dump().await,
            Some(Command::ImportPaths) => {
                self.require_write()?;
                self.import().await
            }
            Some(Command::BuildPaths) => {
                let BuildPaths { paths, options } = self.request().await?;
                self.require_write()?;
                let server = self.server.building(&options);
                let outcome = builds::paths(&server, &paths).await?;
                self.reply(&outcome)
            }
            Some(Command::QueryClosure) => self.closure().await,
            Some(Command::BuildDerivation) => {
                let BuildDerivation {
                    path,
                    derivation,
                    options,
                } = self.request().await?;
                self.require_write()?;
                let server = self.server.building(&options);
                let result = builds::derivation(&server, &path, &derivation).await?;
                self.reply(&result)
            }
            Some(Command::AddToStoreNar) => {
                let AddToStoreNar { info } = self.request().await?;
                self.require_write()?;
                self.add(info).await?;
                self.reply(&Done)
            }
            None => Err(malformed(format!("there is no command {number}"))),
        }
    }

    async fn valid_paths(&mut self) -> Result<()> {
        let request: QueryValidPaths = self.request().await?;
        if let Some(roots) = &self.server.abilities.roots
            && request.lock
            && self.server.write
        {
            // Before the question, so that nothing is collected after the answer.
            roots.add_temp_roots(&request.paths).await?;
        }
        let ServeServer { abilities, log, .. } = self.server;
        let valid = match &abilities.substitutes {
            Some(store) if request.substitute && self.server.write => {
                store.valid_or_fetched(&request.paths, log).await?
            }
            _ => abilities.store.valid(&request.paths).await?,
        };
        self.reply(&valid)
    }

    async fn path_infos(&mut self) -> Result<()> {
        let QueryPathInfos { paths } = self.request().await?;
        let store = self.server.abilities.store.clone();
        let mut infos = store.infos_of(paths);
        while let Some((path, info)) = infos.try_next().await? {
            if let Some(info) = info {
                self.reply(&PathInfoItem(path, info.into()))?;
                self.flush_some().await?;
            }
        }
        // The end of the list.
        self.reply(&PathInfos::default())
    }

    async fn dump(&mut self) -> Result<()> {
        let DumpStorePath { path } = self.request().await?;
        let mut nar = self.server.abilities.store.nar(&path).await?;
        while let Some(chunk) = nar.try_next().await? {
            self.send(chunk).await?;
        }
        Ok(())
    }

    async fn closure(&mut self) -> Result<()> {
        let request: QueryClosure = self.request().await?;
        let store = &*self.server.abilities.store;
        // Outputs have closures of their own, with derivations in them perhaps: again until nothing is
        // new.
        let mut roots = request.paths;
        loop {
            let found = closure(store, roots.iter().cloned()).await?;
            found.require_complete(store)?;
            let paths: BTreeSet<_> = found.infos.into_keys().collect();
            if request.include_outputs {
                let mut outputs = BTreeSet::new();
                for drv in paths.iter().filter(|path| path.is_derivation()) {
                    let known = self.server.abilities.output_map(drv).await?;
                    outputs.extend(known.into_values().flatten());
                }
                let new: BTreeSet<StorePath> = outputs.difference(&paths).cloned().collect();
                let new = store.valid(&new).await?;
                if !new.is_empty() {
                    roots.extend(new);
                    continue;
                }
            }
            return self.reply(&paths);
        }
    }

    fn require_write(&self) -> Result<()> {
        if self.server.write {
            Ok(())
        } else {
            Err(Error::Unsupported {
                store: self.server.abilities.store.to_string(),
                what: "is served for reading only".to_owned(),
            })
        }
    }

    async fn request<Q: Request<Serve>>(&mut self) -> Result<Q> {
        self.reader.value().await.map_err(failed)
    }

    fn reply<T: Encode<Serve>>(&mut self, reply: &T) -> Result<()> {
        self.writer.value(reply).map_err(failed)
    }

    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        let sent = self.sink.write_all(&bytes).await;
        sent.map_err(|e| failed(e.into()))
    }

    async fn flush_some(&mut self) -> Result<()> {
        match self.writer.len() {
            0..BUFFER => Ok(()),
            _ => {
                let bytes = self.writer.take().freeze();
                self.send(bytes).await
            }
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let bytes = self.writer.take().freeze();
        self.send(bytes).await?;
        self.sink.flush().await.map_err(|e| failed(e.into()))
    }
}

/// One item of [`PathInfos`], without the end of the list.
struct PathInfoItem(StorePath, super::ServePathInfo);

impl Encode<Serve> for PathInfoItem {
    fn encode(&self, to: &mut Writer<Serve>) -> Result<(), WireError> {
        to.path(&self.0);
        to.value(&self.1)
    }
}

fn no_handshake(error: HandshakeError) -> Error {
    match error {
        HandshakeError::Wire(error) => failed(error),
        error => malformed(error),
    }
}

fn failed(error: WireError) -> Error {
    match error {
        WireError::Io(error) => Error::io(TALKING, error),
        WireError::End { .. } => {
            Error::io(TALKING, io::Error::new(io::ErrorKind::UnexpectedEof, error))
        }
        error => malformed(error),
    }
}

fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::malformed("what the client says", error)
}

const TALKING: &str = "talking to the client";

/// Bytes that are collected before they are sent.
const BUFFER: usize = 64 << 10;
