//! Opening stores behind a daemon's socket or over ssh.

use super::{OpenOptions, Result, STORE_SETTINGS, skip, take_store_dir};
use crate::{OpenError, OpenMessage, OpenSettings, OpenStore, error::InContext};
use std::{num::NonZeroUsize, sync::Arc, time::Duration};
use tk_daemon::{
    DaemonConfig, DaemonStore, UnixTransport,
    serve::{ServeConfig, ServeStore},
    ssh::{HostKey, SshConfig, SshHost, SshStderr, SshTransport, split_options},
};
use tk_store::{
    StoreReference, StoreVariant,
    log::{Level, LogEvent, strip_ansi},
    reference::Settings,
};

/// The daemon that listens at the socket of `reference`, or at the default one.
pub fn daemon(
    settings: &OpenSettings,
    reference: &StoreReference,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let environment = &settings.environment;
    let root = params.take_path("root")?;
    let below = |place: &str| root.as_ref().map(|root| root.join(place));
    let state = params.take_path("state")?.or(below("nix/var/nix"));
    let state = state.unwrap_or_else(|| environment.nix_state());
    let socket = match reference.path()? {
        Some(socket) => socket,
        None => environment.daemon_socket(&state),
    };
    let mut config = config(settings, reference.to_string(), params, wish)?;
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    config.upload_connections = processors.min(config.max_connections);
    let real = params.take_path("real")?.or(below("nix/store"));
    config.real = Some(real.unwrap_or_else(|| config.dir.as_str().into()));
    let log = params.take_path("log")?.or(below("nix/var/log/nix"));
    let log = log.or_else(|| environment.path("NIX_LOG_DIR"));
    config.log_dir = Some(log.unwrap_or_else(|| "/nix/var/log/nix".into()));
    skip(params, STORE_SETTINGS);
    skip(params, REMOTE_SETTINGS);
    let transport = Arc::new(UnixTransport::new(socket));
    Ok(DaemonStore::new(transport, config).into())
}

/// The daemon at the other end of ssh.
pub fn ssh_ng(
    settings: &OpenSettings,
    reference: &StoreReference,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let transport = ssh(settings, SshConfig::worker(host(reference)?), params)?;
    let config = config(settings, reference.to_string(), params, wish)?;
    skip(params, STORE_SETTINGS);
    skip(params, REMOTE_SETTINGS);
    Ok(DaemonStore::new(Arc::new(transport), config).into())
}

/// The serve protocol at the other end of ssh.
pub fn ssh_serve(
    settings: &OpenSettings,
    reference: &StoreReference,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let transport = ssh(settings, SshConfig::serve(host(reference)?), params)?;
    let mut config = ServeConfig::new(reference.to_string());
    config.dir = take_store_dir(settings, params)?;
    if let Some(connections) = connections(params)? {
        config.max_connections = connections;
    }
    config.build = wish.serve.clone();
    skip(params, STORE_SETTINGS);
    skip(params, REMOTE_SETTINGS);
    skip(params, &["log-fd"]);
    Ok(ServeStore::new(Arc::new(transport), config).into())
}

fn host(reference: &StoreReference) -> Result<SshHost> {
    let text = match &reference.variant {
        StoreVariant::Specified { authority, .. } => authority.as_str(),
        _ => "",
    };
    SshHost::parse(text).map_err(|error| OpenError::invalid(error.to_string()))
}

fn ssh(
    settings: &OpenSettings,
    mut config: SshConfig,
    params: &mut Settings,
) -> Result<SshTransport> {
    if let Some(options) = settings.environment.text("NIX_SSHOPTS") {
        config.options = split_options(options).in_context(|| "NIX_SSHOPTS".into())?;
    }
    config.key = params.take_path("ssh-key")?;
    if let Some(key) = params
        .take("base64-ssh-public-host-key")
        .filter(|key| !key.is_empty())
    {
        config.host_key =
            Some(HostKey::from_base64(&key).in_context(|| "base64-ssh-public-host-key".into())?);
    }
    config.compress = params.take_bool("compress")?.unwrap_or(false);
    if let Some(program) = params.take("remote-program") {
        config.program = program;
    }
    config.remote_store = params.take("remote-store").filter(|uri| !uri.is_empty());
    let tell = settings.tell.clone();
    config.stderr = SshStderr::Log(Arc::new(move |event: LogEvent| {
        if let LogEvent::Message { text, .. } = event {
            tell(OpenMessage::Said(strip_ansi(&text).into()));
        }
    }));
    Ok(SshTransport::new(config))
}

fn config(
    settings: &OpenSettings,
    uri: String,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<DaemonConfig> {
    let mut config = DaemonConfig::new(uri);
    config.dir = take_store_dir(settings, params)?;
    if let Some(connections) = connections(params)? {
        config.max_connections = connections;
    }
    if let Some(seconds) = params.take_u64("max-connection-age")? {
        config.max_connection_age = Duration::from_secs(seconds);
    }
    config.settings = wish.daemon.clone();
    let tell = settings.tell.clone();
    config.log = Arc::new(move |event: LogEvent| {
        if let LogEvent::Message { level, text } = event
            && level <= Level::Notice
        {
            tell(OpenMessage::Said(strip_ansi(&text).into()));
        }
    });
    Ok(config)
}

fn connections(params: &mut Settings) -> Result<Option<usize>> {
    let fault = "a whole number from 1 to 64";
    let number = params.take_with("max-connections", fault, |text| {
        text.parse().ok().filter(|n| (1..=64).contains(n))
    })?;
    Ok(number)
}

/// Settings that are known, and that make no difference here.
const REMOTE_SETTINGS: &[&str] = &["priority", "want-mass-query"];
