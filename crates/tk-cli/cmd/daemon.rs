use crate::{
    CommandContext, ExitStatus, keys,
    open::{OpenOptions, OpenStore, open},
    output::of_client,
};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use listenfd::ListenFd;
use nix::unistd::{Group, User};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeSet,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::SystemTime,
};
use tk_daemon::{
    server::{Observer, Server, ServerConfig, ServerEvent, TrustRule, bind},
    worker::Trust,
};
use tk_nar::fs::{descriptors, trees_at_once};
use tk_store::{SigCheck, log::escape_controls};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};

/// Serve a store to Nix and all other clients of its daemon
///
/// Every store can be served, a binary cache too. Clients name the socket, as in
/// --store unix:///run/my.socket or NIX_REMOTE, or reach the server as ssh-ng://HOST (with
/// remote-program, and --stdio here). What is not there is not built: that is refused. A store on disk
/// fetches what clients ask for from the substituters that nix.conf sets.
///
/// A trusted client can add paths without signatures: only the user who runs the server is
/// trusted, unless others are named.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Daemon {
    /// Serve one client, at stdin and stdout; it is trusted
    #[arg(long, conflicts_with = "socket")]
    stdio: bool,
    /// Listen at PATH [default: the sockets that systemd passes]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Permissions of the new socket: who may connect [default: 0666 if everybody can read the store
    /// anyhow, else 0600]
    #[arg(long, value_name = "OCTAL", value_parser = octal, requires = "socket")]
    socket_mode: Option<u32>,
    /// Trust the user NAME, the members of @GROUP, or everybody (*) (may be repeated)
    #[arg(long, value_name = "NAME")]
    trusted_user: Vec<String>,
    /// Trust everybody who connects
    #[arg(long, conflicts_with_all = ["force_untrusted", "trusted_user"])]
    force_trusted: bool,
    /// Trust nobody
    #[arg(long, conflicts_with = "trusted_user")]
    force_untrusted: bool,
    /// Paths need a signature of the public key, name:base64 or a file (may be repeated)
    /// [default: trusted-public-keys of nix.conf]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    /// How many trusted keys must have signed each path
    #[arg(long, value_name = "N", default_value_t = 1)]
    sigs_needed: usize,
    /// Connections at once of those who are trusted, and as many of others; more wait. One user who
    /// is not trusted gets three quarters of them
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_connections: usize,
    /// Tell about connections and refusals (text), or about every operation (json, one object a
    /// line), on stderr [default: text; nothing with --stdio]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Daemon {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        // First of all: who opens files might get the numbers of passed sockets.
        let passed = passed_sockets()?;
        if !self.stdio && self.socket.is_none() && passed.is_empty() {
            bail!("say where to listen: --socket PATH, --stdio, or a socket passed by systemd");
        }
        raise_descriptors();
        let wish = OpenOptions::to_write();
        let store = open(cx, &cx.store_uri(), &wish).await?;
        let config = self.config(cx, &store)?;
        let abilities = tk_open::served(
            &cx.settings,
            &store,
            SigCheck::Require(config.policy.clone()),
        );
        let server = Server::new(abilities, config);
        if self.stdio {
            self.serve_stdio(&server).await
        } else {
            let mode = self.socket_mode.unwrap_or_else(|| default_mode(&store));
            self.listen(cx, &server, passed, mode).await
        }
    }

    fn config(&self, cx: &CommandContext, store: &OpenStore) -> Result<ServerConfig> {
        let mut policy = keys::policy(cx, &self.trusted_key, self.sigs_needed)?;
        if !keys::are_required(cx, &self.trusted_key, store) {
            policy.threshold = 0;
        }
        let mut config = ServerConfig::default();
        config.trust = self.rule()?;
        config.policy = Arc::new(policy);
        config.max_connections = self.max_connections.min(descriptors() / SHARE).max(1);
        config.max_nars = trees_at_once().get().min(MOST_NARS);
        config.spool = std::env::temp_dir();
        config.observer = match self.log_format {
            Some(format) => Arc::new(DaemonLog(format)),
            None if self.stdio => Arc::new(()),
            None => Arc::new(DaemonLog(LogFormat::Text)),
        };
        Ok(config)
    }

    fn rule(&self) -> Result<TrustRule> {
        match (self.force_trusted, self.force_untrusted) {
            (true, _) => Ok(TrustRule::Everybody),
            (_, true) => Ok(TrustRule::Nobody),
            _ => trust_rule(&self.trusted_user),
        }
    }

    /// Who runs this has the rights of the caller anyhow, as with Nix.
    async fn serve_stdio(&self, server: &Server) -> Result<ExitStatus> {
        let trust = if self.force_untrusted {
            Trust::NotTrusted
        } else {
            Trust::Trusted
        };
        let served = server.serve(tokio::io::stdin(), tokio::io::stdout(), trust);
        served.await.map_err(of_client)?;
        Ok(ExitStatus::Yes)
    }

    async fn listen(
        &self,
        cx: &CommandContext,
        server: &Server,
        mut listeners: Vec<UnixListener>,
        mode: u32,
    ) -> Result<ExitStatus> {
        // Its name goes with it.
        let mut _file = None;
        if let Some(path) = &self.socket {
            let (listener, file) = bind(path, mode).await?;
            listeners.push(listener);
            _file = Some(file);
            let (store, path) = (cx.store_uri(), path.display());
            let who = match mode & 0o077 {
                0 => "this user only",
                0o066 => "everybody on this machine",
                _ => "some users",
            };
            cx.ui
                .say(format_args!("serving {store} at {path}, for {who}"));
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Without systemd there is nobody to notify.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = sd_notify::notify(&[NotifyState::Stopping]);
        };
        server.listen(listeners, stop).await;
        Ok(ExitStatus::Yes)
    }
}

/// As many files open as the system lets this process have: by default it is far fewer, for programs that are
/// older than such numbers.
fn raise_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    // With what there is, less is done at once.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// The socket is as private as the store: open to all if everybody can read that on this machine anyhow.
fn default_mode(store: &OpenStore) -> u32 {
    let folder = match store.cache() {
        Some(cache) => cache.folder(),
        None => store.real_dir(),
    };
    if folder.is_some_and(everybody_can_read) {
        0o666
    } else {
        0o600
    }
}

fn everybody_can_read(folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else {
        return false;
    };
    let allows = |path: &Path, bits: u32| {
        let meta = path.metadata();
        meta.is_ok_and(|meta| meta.mode() & bits == bits)
    };
    allows(&folder, 0o005) && folder.ancestors().all(|above| allows(above, 0o001))
}

/// The listening sockets of systemd's socket activation.
fn passed_sockets() -> Result<Vec<UnixListener>> {
    let mut passed = ListenFd::from_env();
    let mut listeners = Vec::new();
    for i in 0..passed.len() {
        let doing = "taking the socket that systemd passes";
        if let Some(listener) = passed.take_unix_listener(i).context(doing)? {
            listener.set_nonblocking(true).context(doing)?;
            listeners.push(UnixListener::from_std(listener).context(doing)?);
        }
    }
    Ok(listeners)
}

/// The user who runs this, and those who are named. Groups are looked up once.
fn trust_rule(names: &[String]) -> Result<TrustRule> {
    let TrustRule::Users { mut uids, .. } = TrustRule::owner() else {
        return Ok(TrustRule::owner());
    };
    let mut gids = BTreeSet::new();
    for name in names {
        if name == "*" {
            return Ok(TrustRule::Everybody);
        }
        match name.strip_prefix('@') {
            None => {
                uids.insert(uid(name)?.with_context(|| format!("there is no user '{name}'"))?);
            }
            Some(group) => {
                let found = Group::from_name(group).context("looking up a group")?;
                let group = found.with_context(|| format!("there is no group '{group}'"))?;
                gids.insert(group.gid.as_raw());
                for member in &group.mem {
                    uids.extend(uid(member)?);
                }
            }
        }
    }
    Ok(TrustRule::Users { uids, gids })
}

fn uid(name: &str) -> Result<Option<u32>> {
    let user = User::from_name(name).context("looking up a user")?;
    Ok(user.map(|user| user.uid.as_raw()))
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permissions are up to three octal digits, such as 0660".into()),
    }
}

/// Tells on stderr what happens.
struct DaemonLog(LogFormat);

impl Observer for DaemonLog {
    fn event(&self, connection: u64, event: ServerEvent<'_>) {
        let line = match self.0 {
            // What clients say stands in there.
            LogFormat::Text => {
                text(connection, &event).map(|line| escape_controls(&line).into_owned())
            }
            LogFormat::Json => Some(json(connection, &event).to_string()),
        };
        if let Some(line) = line {
            // One write a line: connections must not mix theirs. Nobody to tell is no error.
            let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
        }
    }
}

fn text(connection: u64, event: &ServerEvent<'_>) -> Option<String> {
    Some(match event {
        ServerEvent::Connected { peer: Some(peer) } => {
            let pid = peer.pid.map_or_else(|| "?".into(), |pid| pid.to_string());
            format!("[{connection}] connected: user {}, process {pid}", peer.uid)
        }
        ServerEvent::Ready {
            version, trusted, ..
        } => {
            let trust = if *trusted { "trusted" } else { "not trusted" };
            format!("[{connection}] speaks {version}, {trust}")
        }
        ServerEvent::Operation {
            name,
            error: Some(error),
            ..
        } => format!("[{connection}] {name}: {error}"),
        ServerEvent::Closed {
            operations, error, ..
        } => match error {
            None => format!("[{connection}] closed after {operations} operations"),
            Some(error) => format!("[{connection}] broken off: {error}"),
        },
        ServerEvent::NotAccepted { error } => format!("cannot take a connection: {error}"),
        _ => return None,
    })
}

fn json(connection: u64, event: &ServerEvent<'_>) -> Value {
    let (name, fields) = match event {
        ServerEvent::Connected { peer } => {
            let peer = peer.map(|p| json!({ "pid": p.pid, "uid": p.uid, "gid": p.gid }));
            ("connected", peer.unwrap_or_else(|| json!({})))
        }
        ServerEvent::Ready {
            version,
            features,
            trusted,
        } => {
            let features: Vec<_> = features.split(',').filter(|f| !f.is_empty()).collect();
            let fields = json!({ "version": version, "features": features, "trusted": trusted });
            ("ready", fields)
        }
        ServerEvent::Operation { name, took, error } => {
            let outcome = if error.is_none() { "done" } else { "failed" };
            let ms = took.as_micros() as f64 / 1000.0;
            let fields = json!({
                "operation": name, "duration_ms": ms, "outcome": outcome, "error": error,
            });
            ("operation", fields)
        }
        ServerEvent::Closed { operations, error } => (
            "closed",
            json!({ "operations": operations, "error": error }),
        ),
        ServerEvent::NotAccepted { error } => ("not-accepted", json!({ "error": error })),
        _ => ("unknown", json!({})),
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut object = Map::new();
    object.insert(
        "time".into(),
        now.map_or(0.0, |now| now.as_secs_f64()).into(),
    );
    object.insert("event".into(), name.into());
    object.insert("server_pid".into(), process::id().into());
    object.insert("connection".into(), connection.into());
    if let Value::Object(fields) = fields {
        object.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Value::Object(object)
}

/// One connection of this many descriptors: those who are trusted, the others and those who wait each have
/// their number, many of them with a file of temporary roots, and a half is for the store.
const SHARE: usize = 10;
/// NARs that are read at once. It is the disk and the processors that set the pace.
const MOST_NARS: usize = 8;

const EXAMPLES: &str = "\
Examples:
  tk-store daemon --store /srv/store --socket /run/my-store.socket
  nix path-info --store 'unix:///run/my-store.socket?root=/srv/store' --all

  tk-store daemon --store file:///srv/cache --socket /run/cache.socket --trusted-user @builders
  nix copy --to 'ssh-ng://host?remote-program=tk-store daemon --store file:///srv/cache' \\
    --no-check-sigs ./result";

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tk_daemon::server::SocketPeer;

    #[test]
    fn users_and_groups_are_looked_up() {
        assert_eq!(trust_rule(&[]).unwrap(), TrustRule::owner());
        let all = trust_rule(&["root".into(), "*".into()]).unwrap();
        assert_eq!(all, TrustRule::Everybody);
        let rule = trust_rule(&["root".into(), "@root".into()]).unwrap();
        let peer = |uid, gid| SocketPeer {
            uid,
            gid,
            pid: None,
        };
        assert!(rule.trusts(&peer(0, 77)) && rule.trusts(&peer(12345, 0)));
        assert!(!rule.trusts(&peer(12345, 77)));
        for name in ["no-such-user-1", "@no-such-group-1", ""] {
            let error = trust_rule(&[name.into()]).unwrap_err();
            assert!(error.to_string().starts_with("there is no"), "{error}");
        }
    }

    #[test]
    fn a_closed_folder_makes_a_closed_socket() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        for (outer, own, open) in [
            (0o755, 0o755, true),
            (0o711, 0o755, true),
            (0o700, 0o755, false),
            (0o750, 0o755, false),
            (0o755, 0o711, false),
            (0o755, 0o700, false),
        ] {
            let set = |path: &Path, mode| {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            };
            set(folder.path(), outer);
            set(&inner, own);
            assert_eq!(everybody_can_read(&inner), open, "{outer:o} {own:o}");
        }
        assert!(!everybody_can_read(Path::new("/no/such/folder")));
    }

    #[test]
    fn lines_of_the_log() {
        let peer = SocketPeer {
            uid: 7,
            gid: 8,
            pid: Some(9),
        };
        let events = [
            ServerEvent::Connected { peer: Some(&peer) },
            ServerEvent::Ready {
                version: "1.38",
                features: "a,b",
                trusted: false,
            },
            ServerEvent::Operation {
                name: "IsValidPath",
                took: Duration::from_micros(1500),
                error: None,
            },
            ServerEvent::Operation {
                name: "OptimiseStore",
                took: Duration::ZERO,
                error: Some("no"),
            },
            ServerEvent::Closed {
                operations: 2,
                error: None,
            },
        ];
        let lines: Vec<_> = events.iter().filter_map(|event| text(3, event)).collect();
        let expected = [
            "[3] connected: user 7, process 9",
            "[3] speaks 1.38, not trusted",
            "[3] OptimiseStore: no",
            "[3] closed after 2 operations",
        ];
        assert_eq!(lines, expected);
        let fields = |i: usize| {
            let mut object = json(3, &events[i]);
            let map = object.as_object_mut().unwrap();
            map.remove("time").unwrap();
            map.remove("server_pid").unwrap();
            object
        };
        assert_eq!(
            fields(0),
            json!({ "event": "connected", "connection": 3, "pid": 9, "uid": 7, "gid": 8 })
        );
        assert_eq!(
            fields(1),
            json!({ "event": "ready", "connection": 3, "version": "1.38", "features": ["a", "b"], "trusted": false })
        );
        assert_eq!(
            fields(2),
            json!({ "event": "operation", "connection": 3, "operation": "IsValidPath", "duration_ms": 1.5, "outcome": "done" })
        );
        assert_eq!(
            fields(3),
            json!({ "event": "operation", "connection": 3, "operation": "OptimiseStore", "duration_ms": 0.0, "outcome": "failed", "error": "no" })
        );
    }
}
