use crate::{Nix, process::ProcessGroup};
use async_trait::async_trait;
use std::{
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
};
use tk_daemon::client::{Channel, Transport};
use tk_store::{Error, Result};
use tokio::{
    io::AsyncReadExt,
    process::{ChildStderr, Command},
};

/// A daemon of this nix for one connection, for a store that has no daemon: `nix-daemon --stdio`.
///
/// So builds give typed results here too. The process ends with the connection.
#[derive(Clone)]
pub struct StdioTransport {
    nix: Nix,
    program: PathBuf,
    store: String,
}

impl StdioTransport {
    /// A daemon for the store `uri`, by the nix-daemon that lies beside `nix`.
    pub fn new(nix: Nix, uri: impl Into<String>) -> Self {
        let beside = nix
            .config()
            .program
            .parent()
            .filter(|p| !p.as_os_str().is_empty());
        let program = beside.map_or_else(|| NAME.into(), |folder| folder.join(NAME));
        StdioTransport {
            nix,
            program,
            store: uri.into(),
        }
    }

    /// The program that is run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self) -> Command {
        let mut command = self.nix.program(&self.program);
        command
            .arg("--stdio")
            .env("NIX_REMOTE", &self.store)
            .stdin(Stdio::piped());
        for (name, value) in &self.nix.config().options {
            command.args(["--option", name, value]);
        }
        command
    }
}

#[async_trait]
impl Transport for StdioTransport {
    async fn connect(&self) -> Result<Channel> {
        let doing = || format!("starting {}", self.program.display());
        let started = ProcessGroup::start(&mut self.command());
        let mut group = started.map_err(|e| Error::io(doing(), e))?;
        let child = &mut group.child;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else {
            let error = std::io::Error::other("it has no pipes");
            return Err(Error::io(doing(), error));
        };
        // What it has to say comes over the connection; a full pipe would stop it.
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(drain(stderr));
        }
        Ok(Channel::new(stdout, stdin).with_guard(group))
    }
}

async fn drain(mut pipe: ChildStderr) {
    let mut bytes = [0; 4096];
    while let Ok(1..) = pipe.read(&mut bytes).await {}
}

impl fmt::Display for StdioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} --stdio", self.program.display())
    }
}

impl fmt::Debug for StdioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdioTransport")
            .field("program", &self.program)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

const NAME: &str = "nix-daemon";
