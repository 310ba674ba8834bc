//! Stores behind ssh: the system's own `ssh` runs the program at the far end.
//!
//! ```text
//! ssh -x -T [NIX_SSHOPTS] [ALIVE] [-i KEY] [HOSTKEY] [-C] [-pPORT] [USER@]HOST -- COMMAND
//! ALIVE   = -oServerAliveInterval=SECONDS
//! HOSTKEY = -oUserKnownHostsFile=FILE -oHostKeyAlias=HOST -oStrictHostKeyChecking=yes
//! COMMAND = PROGRAM --stdio [--store URI]             ; ssh-ng://, see SshConfig::worker
//!         | PROGRAM --serve --write [--store URI]     ; ssh://, see SshConfig::serve
//! ```
//! At `localhost`, without user and port, COMMAND runs without ssh, as with Nix: `/bin/sh -c COMMAND`.
//!
//! Everything of the user's configuration of ssh counts: keys, agents, jump hosts, shared
//! connections (`ControlMaster`); only how often ssh asks a silent host for a sign of life is said here
//! (see [`SshConfig::alive_interval`]). Passwords are asked for by ssh itself, at the terminal.
//!
//! Where real Nix does otherwise: the URI of the far end's store is quoted for the shell there (2.26 and
//! later do not); a host key that was given is the only one that is taken, at any port;
//! `max-connections` are so many processes of ssh.

mod command;
mod host;
mod options;
mod process;

pub use host::{SshHost, SshHostError};
pub use options::{UnfinishedWord, split_options};
pub(crate) use process::SshGuard;

use crate::client::{Channel, Transport};
use async_trait::async_trait;
use data_encoding::{BASE64, BASE64_NOPAD};
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
use tk_store::{Result, log::LogSink};

/// How to reach the far end, and what to run there.
#[derive(Clone)]
#[non_exhaustive]
pub struct SshConfig {
    /// The host to connect to, with a user and a port where those are not ssh's own choice.
    pub host: SshHost,
    /// Further options for ssh, word by word (`NIX_SSHOPTS`).
    pub options: Vec<String>,
    /// The file of the private key to use (`ssh-key`).
    pub key: Option<PathBuf>,
    /// The key that the host must have (`base64-ssh-public-host-key`); `None`: one that ssh knows.
    pub host_key: Option<HostKey>,
    /// How often ssh asks the host for a sign of life while it says nothing (`ServerAliveInterval`, in
    /// whole seconds); after three without an answer ssh ends, so that nobody waits for a host whose
    /// network is gone or that began anew. `None`: as the user's configuration of ssh has it. What
    /// stands in `options` counts before this.
    pub alive_interval: Option<Duration>,
    /// Compress what goes over the line (`compress`).
    pub compress: bool,
    /// The program at the far end and its first arguments (`remote-program`), in the words of the
    /// shell there, which may have a home folder or variables in them.
    pub program: String,
    /// What makes the program speak the protocol. Not quoted.
    pub arguments: Vec<&'static str>,
    /// The store that the program is to open (`remote-store`).
    pub remote_store: Option<String>,
    /// The program ssh; looked for in `PATH` if it is a mere name.
    pub ssh: PathBuf,
    /// What becomes of ssh's stderr, which is also that of the far end.
    pub stderr: SshStderr,
}

/// What becomes of what ssh, and the program at the far end, write to stderr.
#[derive(Clone, Default)]
pub enum SshStderr {
    /// The last of it is told in the error when the connection ends; nothing is shown.
    #[default]
    Collect,
    /// The same, and each line goes to the sink as it comes, as a message of level `Info`.
    Log(Arc<dyn LogSink>),
    /// It goes to this process's own stderr, as with Nix. Errors then only tell ssh's status.
    Inherit,
}

/// The public key of a host, as in a file of known hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey(String);

/// Why a text is no [`HostKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a public host key is the base64 of a line such as 'ssh-ed25519 AAAA...'")]
pub struct HostKeyError;

impl SshConfig {
    /// The worker protocol (`ssh-ng://`), from `nix-daemon`.
    pub fn worker(host: SshHost) -> Self {
        Self::new(host, "nix-daemon", &["--stdio"])
    }

    /// The serve protocol (`ssh://`), from `nix-store`.
    pub fn serve(host: SshHost) -> Self {
        Self::new(host, "nix-store", &["--serve", "--write"])
    }

    fn new(host: SshHost, program: &str, arguments: &[&'static str]) -> Self {
        SshConfig {
            host,
            options: Vec::new(),
            key: None,
            host_key: None,
            alive_interval: Some(ALIVE_INTERVAL),
            compress: false,
            program: program.to_owned(),
            arguments: arguments.to_vec(),
            remote_store: None,
            ssh: "ssh".into(),
            stderr: SshStderr::default(),
        }
    }
}

/// A process of ssh for each connection. It is killed when its connection is dropped.
#[derive(Debug, Clone)]
pub struct SshTransport {
    config: Arc<SshConfig>,
}

impl SshTransport {
    /// Connections as `config` has it. Nothing is started yet.
    pub fn new(config: SshConfig) -> Self {
        SshTransport {
            config: Arc::new(config),
        }
    }
}

#[async_trait]
impl Transport for SshTransport {
    /// Starts ssh. That it cannot reach the far end shows when the connection is read from: the
    /// error then tells what ssh said.
    async fn connect(&self) -> Result<Channel> {
        process::start(&self.config).await
    }
}

impl fmt::Display for SshTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh to {}", self.config.host)
    }
}

impl HostKey {
    /// The key from the form that it has in the URI of a store.
    pub fn from_base64(text: &str) -> Result<Self, HostKeyError> {
        let text = text.trim_end_matches('=').as_bytes();
        let bytes = BASE64_NOPAD.decode(text).map_err(|_| HostKeyError)?;
        let line = String::from_utf8(bytes).map_err(|_| HostKeyError)?;
        let line = line.trim_end();
        // A second line would be another host's key.
        let fields = line.split(' ').filter(|field| !field.is_empty()).count();
        if fields < 2 || line.contains(|c: char| c.is_control()) {
            Err(HostKeyError)
        } else {
            Ok(HostKey(line.to_owned()))
        }
    }

    /// The form that it has in the URI of a store.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0.as_bytes())
    }

    /// The content of a file in which `host` has this key.
    fn known_hosts(&self, host: &SshHost) -> String {
        format!("{} {}\n", host.name(), self.0)
    }
}

impl fmt::Debug for SshConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("SshConfig");
        f.field("ssh", &self.ssh);
        f.field("arguments", &command::to_start(self, None).1);
        f.finish_non_exhaustive()
    }
}

/// The default of [`SshConfig::alive_interval`].
const ALIVE_INTERVAL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys() {
        let key = HostKey::from_base64("c3NoLWVkMjU1MTkgQUFBQQo=").unwrap();
        let host = SshHost::parse("u@[::1]:22").unwrap();
        assert_eq!(key.known_hosts(&host), "::1 ssh-ed25519 AAAA\n");
        assert_eq!(HostKey::from_base64(&key.to_base64()), Ok(key));
        let two_lines = BASE64.encode(b"ssh-ed25519 AAAA\n* ssh-rsa BBBB");
        for text in ["", "!", "AAAA", "c3No", "/////w==", &two_lines] {
            assert_eq!(HostKey::from_base64(text), Err(HostKeyError), "{text}");
        }
    }
}
