//! Opening stores behind a daemon's socket or over ssh.

use super::{OpenOptions, OpenStore, STORE_SETTINGS, skip, take_store_dir};
use crate::{CommandContext, settings::path_var};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    env,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tk_daemon::{
    DaemonConfig, DaemonStore, UnixTransport,
    serve::{self, ServeConfig, ServeStore},
    ssh::{HostKey, SshConfig, SshHost, SshStderr, SshTransport, split_options},
    worker::ops::SetOptions,
};
use tk_store::{
    StoreReference, StoreVariant,
    log::{Level, LogEvent, strip_ansi},
    reference::Settings,
};

/// How a daemon is to build, in the words of Nix.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct BuildArgs {
    /// Go on with other builds when one fails
    #[arg(long, short)]
    keep_going: bool,
    /// Keep the folder of a build that failed
    #[arg(long, short = 'K')]
    keep_failed: bool,
    /// Build what cannot be fetched
    #[arg(long)]
    fallback: bool,
    /// Builds at once [default: the daemon's]
    #[arg(long, short = 'j', value_name = "N")]
    max_jobs: Option<u32>,
    /// Processors for each build, 0 for all of them [default: the daemon's]
    #[arg(long, value_name = "N")]
    cores: Option<u32>,
    /// End a build that runs longer [default: the daemon's]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// End a build that says nothing for longer [default: the daemon's]
    #[arg(long, value_name = "SECONDS")]
    max_silent_time: Option<u32>,
    /// Do not fetch from substituters
    #[arg(long)]
    no_substitute: bool,
    /// Any other setting of the daemon, as in nix.conf
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"])]
    option: Vec<String>,
}

impl BuildArgs {
    /// What a daemon is told. Nothing, so that it works by its own configuration, unless something
    /// was asked for; then, as the message has no blanks, the rest is nix.conf's.
    pub fn to_settings(&self, cx: &CommandContext) -> Result<Option<SetOptions>> {
        if *self == BuildArgs::default() {
            return Ok(None);
        }
        let configured = |key: &str| cx.settings.get(key);
        let number = |key: &str| configured(key).and_then(|text| text.parse().ok());
        let yes = |key: &str| cx.settings.is_on(key) == Some(true);
        let jobs = match configured("max-jobs") {
            Some("auto") => std::thread::available_parallelism()
                .ok()
                .map(|n| n.get() as u32),
            _ => number("max-jobs"),
        };
        let mut overrides: BTreeMap<String, String> = BTreeMap::new();
        for pair in self.option.chunks_exact(2) {
            overrides.insert(pair[0].clone(), pair[1].clone());
        }
        if let Some(seconds) = self.timeout {
            overrides.insert("timeout".into(), seconds.to_string());
        }
        let silent = self.max_silent_time.or(number("max-silent-time"));
        let mut options = SetOptions::default();
        options.keep_failed = self.keep_failed || yes("keep-failed");
        options.keep_going = self.keep_going || yes("keep-going");
        options.try_fallback = self.fallback || yes("fallback");
        options.max_build_jobs = self.max_jobs.or(jobs).unwrap_or(1);
        options.max_silent_time = silent.unwrap_or(0).into();
        options.build_cores = self.cores.or(number("cores")).unwrap_or(0);
        options.use_substitutes =
            !self.no_substitute && cx.settings.is_on("substitute") != Some(false);
        options.overrides = overrides;
        Ok(Some(options))
    }
}

impl BuildArgs {
    /// Whether other builds go on when one fails.
    pub fn keep_going(&self) -> bool {
        self.keep_going
    }

    /// The same, with what a build that failed or differed has left kept.
    pub fn keeping_failed(&self) -> BuildArgs {
        BuildArgs {
            keep_failed: true,
            ..self.clone()
        }
    }

    /// The same as settings for nix's command line, for what it builds while it evaluates.
    pub fn options(&self) -> Vec<(String, String)> {
        let number = |name: &str, value: Option<u32>| Some((name.into(), value?.to_string()));
        let yes = |name: &str, given: bool| given.then(|| (name.into(), "true".into()));
        let own = [
            yes("keep-going", self.keep_going),
            yes("keep-failed", self.keep_failed),
            yes("fallback", self.fallback),
            number("max-jobs", self.max_jobs),
            number("cores", self.cores),
            number("timeout", self.timeout),
            number("max-silent-time", self.max_silent_time),
            self.no_substitute
                .then(|| ("substitute".into(), "false".into())),
        ];
        let pairs = self.option.chunks_exact(2);
        let given = pairs.map(|pair| (pair[0].clone(), pair[1].clone()));
        own.into_iter().flatten().chain(given).collect()
    }

    /// The few that the serve protocol has.
    fn to_serve(&self) -> serve::ServeBuildOptions {
        let seconds = |given: Option<u32>| given.unwrap_or(0).into();
        let mut options = serve::ServeBuildOptions::default();
        options.max_silent_time = seconds(self.max_silent_time);
        options.build_timeout = seconds(self.timeout);
        options.keep_failed = self.keep_failed;
        options
    }
}

/// The daemon that listens at the socket of `reference`, or at the default one.
pub fn daemon(
    cx: &CommandContext,
    reference: &StoreReference,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let root = settings.take_path("root")?;
    let below = |place: &str| root.as_ref().map(|root| root.join(place));
    let state = settings.take_path("state")?.or(below("nix/var/nix"));
    let state = state.or_else(|| path_var("NIX_STATE_DIR"));
    let state = state.unwrap_or_else(|| "/nix/var/nix".into());
    let socket = match reference.path()? {
        Some(socket) => socket,
        None => default_socket(&state),
    };
    let mut config = config(cx, reference.to_string(), settings, wish)?;
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    config.upload_connections = processors.min(config.max_connections);
    let real = settings.take_path("real")?.or(below("nix/store"));
    config.real = Some(real.unwrap_or_else(|| config.dir.as_str().into()));
    let log = settings.take_path("log")?.or(below("nix/var/log/nix"));
    let log = log.or_else(|| path_var("NIX_LOG_DIR"));
    config.log_dir = Some(log.unwrap_or_else(|| "/nix/var/log/nix".into()));
    skip(settings, STORE_SETTINGS);
    skip(settings, REMOTE_SETTINGS);
    let transport = Arc::new(UnixTransport::new(socket));
    Ok(DaemonStore::new(transport, config).into())
}

/// Where a daemon with the state folder `state` listens, unless the user says otherwise.
pub fn default_socket(state: &Path) -> PathBuf {
    path_var("NIX_DAEMON_SOCKET_PATH").unwrap_or_else(|| state.join("daemon-socket/socket"))
}

/// The daemon at the other end of ssh.
pub fn ssh_ng(
    cx: &CommandContext,
    reference: &StoreReference,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let transport = ssh(cx, SshConfig::worker(host(reference)?), settings)?;
    let config = config(cx, reference.to_string(), settings, wish)?;
    skip(settings, STORE_SETTINGS);
    skip(settings, REMOTE_SETTINGS);
    Ok(DaemonStore::new(Arc::new(transport), config).into())
}

/// The serve protocol at the other end of ssh.
pub fn ssh_serve(
    cx: &CommandContext,
    reference: &StoreReference,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let transport = ssh(cx, SshConfig::serve(host(reference)?), settings)?;
    let mut config = ServeConfig::new(reference.to_string());
    config.dir = take_store_dir(settings)?;
    if let Some(connections) = connections(settings)? {
        config.max_connections = connections;
    }
    config.build = wish.build.to_serve();
    skip(settings, STORE_SETTINGS);
    skip(settings, REMOTE_SETTINGS);
    skip(settings, &["log-fd"]);
    Ok(ServeStore::new(Arc::new(transport), config).into())
}

fn host(reference: &StoreReference) -> Result<SshHost> {
    let text = match &reference.variant {
        StoreVariant::Specified { authority, .. } => authority.as_str(),
        _ => "",
    };
    Ok(SshHost::parse(text)?)
}

fn ssh(
    cx: &CommandContext,
    mut config: SshConfig,
    settings: &mut Settings,
) -> Result<SshTransport> {
    if let Some(options) = env::var("NIX_SSHOPTS").ok().filter(|text| !text.is_empty()) {
        config.options = split_options(&options).context("NIX_SSHOPTS")?;
    }
    config.key = settings.take_path("ssh-key")?;
    if let Some(key) = settings
        .take("base64-ssh-public-host-key")
        .filter(|key| !key.is_empty())
    {
        config.host_key = Some(HostKey::from_base64(&key).context("base64-ssh-public-host-key")?);
    }
    config.compress = settings.take_bool("compress")?.unwrap_or(false);
    if let Some(program) = settings.take("remote-program") {
        config.program = program;
    }
    config.remote_store = settings.take("remote-store").filter(|uri| !uri.is_empty());
    let ui = cx.ui;
    config.stderr = SshStderr::Log(Arc::new(move |event: LogEvent| {
        if let LogEvent::Message { text, .. } = event {
            ui.say(strip_ansi(&text));
        }
    }));
    Ok(SshTransport::new(config))
}

fn config(
    cx: &CommandContext,
    uri: String,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<DaemonConfig> {
    let mut config = DaemonConfig::new(uri);
    config.dir = take_store_dir(settings)?;
    if let Some(connections) = connections(settings)? {
        config.max_connections = connections;
    }
    if let Some(seconds) = settings.take_u64("max-connection-age")? {
        config.max_connection_age = Duration::from_secs(seconds);
    }
    config.settings = wish.build.to_settings(cx)?;
    let ui = cx.ui;
    config.log = Arc::new(move |event: LogEvent| {
        if let LogEvent::Message { level, text } = event
            && level <= Level::Notice
        {
            ui.say(strip_ansi(&text));
        }
    });
    Ok(config)
}

fn connections(settings: &mut Settings) -> Result<Option<usize>> {
    let fault = "a whole number from 1 to 64";
    let number = settings.take_with("max-connections", fault, |text| {
        text.parse().ok().filter(|n| (1..=64).contains(n))
    })?;
    Ok(number)
}

/// Settings that are known, and that make no difference here.
const REMOTE_SETTINGS: &[&str] = &["priority", "want-mass-query"];
