use super::{FROM_AFAR, OpenOptions, Result, STORE_SETTINGS, skip, take_store_dir};
use crate::{Environment, OpenSettings, OpenStore};
use std::{num::NonZeroUsize, path::PathBuf};
use tk_local::{LocalConfig, LocalStore};
use tk_store::{MemoryStore, reference::Settings};

/// The store on disk below `root`, or that of this machine.
pub async fn local(
    settings: &OpenSettings,
    root: Option<PathBuf>,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let config = local_config(settings, root, params, wish)?;
    if wish.dry_run && is_still_to_make(&config) {
        let store = MemoryStore::named(config.dir.clone(), config.to_string());
        return Ok(store.into());
    }
    let store = if wish.write {
        LocalStore::open(config).await?
    } else {
        // A slip in a name must not leave an empty store behind.
        LocalStore::open_existing(config).await?
    };
    Ok(store.into())
}

/// Whether there is no store, and nothing in the way of one.
fn is_still_to_make(config: &LocalConfig) -> bool {
    let place = config.root.as_ref().unwrap_or(&config.state);
    let existing = place.ancestors().find_map(|folder| folder.metadata().ok());
    !config.database().exists() && existing.is_some_and(|metadata| metadata.is_dir())
}

/// Where the store on disk below `root` is, as the params of its URI say; without `root`, that of this
/// machine.
///
/// # Errors
/// When a setting has a value that it cannot have.
pub fn local_config(
    settings: &OpenSettings,
    root: Option<PathBuf>,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<LocalConfig> {
    let root = params.take_path("root")?.or(root);
    let mut config = match &root {
        Some(root) => LocalConfig::chroot(root),
        None => system(&settings.environment),
    };
    config.dir = take_store_dir(settings, params)?;
    if root.is_none() {
        config.real = config.dir.as_str().into();
    }
    for (name, field) in [
        ("state", &mut config.state),
        ("real", &mut config.real),
        ("log", &mut config.log),
    ] {
        if let Some(path) = params.take_path(name)? {
            *field = path;
        }
    }
    config.read_only = params.take_bool("read-only")?.unwrap_or(false);
    config.require_signatures = params.take_bool("require-sigs")?;
    if let Some(keep) = settings.nix_conf.is_on("keep-outputs") {
        config.keep_outputs = keep;
    }
    if let Some(keep) = settings.nix_conf.is_on("keep-derivations") {
        config.keep_derivations = keep;
    }
    let afar = NonZeroUsize::new(FROM_AFAR).filter(|_| wish.from_afar);
    config.jobs = match (wish.jobs, afar) {
        (Some(jobs), _) => jobs,
        (None, Some(afar)) => config.jobs.max(afar),
        (None, None) => config.jobs,
    };
    skip(params, STORE_SETTINGS);
    skip(params, LOCAL_SETTINGS);
    Ok(config)
}

/// The store that is in use on this machine, as Nix's environment variables have it.
fn system(environment: &Environment) -> LocalConfig {
    let mut config = LocalConfig::system();
    if let Some(state) = environment.path("NIX_STATE_DIR") {
        config.state = state;
    }
    if let Some(log) = environment.path("NIX_LOG_DIR") {
        config.log = log;
    }
    config
}

const LOCAL_SETTINGS: &[&str] = &[
    "priority",
    "want-mass-query",
    "build-dir",
    "ignore-gc-delete-failure",
    "use-roots-daemon",
];
