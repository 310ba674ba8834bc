//! What the user's machine says: nix.conf, environment, folders. The libraries read none of it.

use ::nix::unistd::{Uid, User};
use anyhow::{Context as _, Result};
use std::{env, fs, io, os::unix::fs::MetadataExt, path::PathBuf};
use tk_nix::nix_conf::{ConfPlaces, NixConf};
use tk_path::StoreDir;

/// The settings of Nix, from the same files that Nix reads.
pub fn load() -> Result<NixConf> {
    Ok(NixConf::load(&places())?)
}

fn places() -> ConfPlaces {
    ConfPlaces::of_environment(|name| env::var_os(name), home().ok().as_deref())
}

/// Nix's data folder of the user: `$NIX_DATA_HOME`, `$XDG_DATA_HOME/nix` or `~/.local/share/nix`.
pub fn data_folder() -> Result<PathBuf> {
    if let Some(folder) = path_var("NIX_DATA_HOME") {
        return Ok(folder);
    }
    if let Some(folder) = path_var("XDG_DATA_HOME") {
        return Ok(folder.join("nix"));
    }
    Ok(home()?.join(".local/share/nix"))
}

/// The user's folder for what can be made again: `$XDG_CACHE_HOME` or `~/.cache`.
pub fn cache_folder() -> Result<PathBuf> {
    match path_var("XDG_CACHE_HOME") {
        Some(folder) => Ok(folder),
        None => Ok(home()?.join(".cache")),
    }
}

/// This program's folder for what it was in the midst of: `$XDG_STATE_HOME/tk-store` or
/// `~/.local/state/tk-store`.
pub fn state_folder() -> Result<PathBuf> {
    let folder = match path_var("XDG_STATE_HOME") {
        Some(folder) => folder,
        None => home()?.join(".local/state"),
    };
    Ok(folder.join("tk-store"))
}

/// An environment variable that holds a path; empty counts as unset.
pub fn path_var(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// The directory that the paths of stores name, unless their URIs say otherwise: `$NIX_STORE_DIR` or
/// `/nix/store`.
pub fn default_store_dir() -> Result<StoreDir> {
    for name in ["NIX_STORE_DIR", "NIX_STORE"] {
        if let Some(dir) = path_var(name) {
            return StoreDir::new(&dir.to_string_lossy()).context(name);
        }
    }
    Ok(StoreDir::default())
}

/// `HOME`, unless that is somebody else's, as after `sudo` without `-H`: then the one that the system
/// knows of. So Nix finds it.
fn home() -> Result<PathBuf> {
    let named = path_var("HOME");
    let is_own = |home: &PathBuf| match fs::metadata(home) {
        Ok(folder) => folder.uid() == Uid::effective().as_raw(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if let Some(home) = named.as_ref().filter(|home| is_own(home)) {
        return Ok(home.clone());
    }
    let user = User::from_uid(Uid::effective()).ok().flatten();
    let known = user.map(|user| user.dir).filter(|dir| dir.is_absolute());
    known
        .or(named)
        .context("HOME is not set; set it, or name the store with --store")
}

/// The user's own nix.conf, the one that wins over the others.
pub fn user_conf() -> Result<PathBuf> {
    let first = places().user.into_iter().next();
    first.context("there is no place for a nix.conf of yours; name one with --conf")
}
