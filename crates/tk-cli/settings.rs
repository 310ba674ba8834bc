//! What the user's machine says: nix.conf, environment, folders. The libraries read none of it.

use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

/// The settings of Nix that concern this program, from the same files that Nix reads.
#[derive(Debug, Default, Clone)]
pub struct Settings {
    values: BTreeMap<String, String>,
}

impl Settings {
    /// Reads the system's nix.conf, the users', and `NIX_CONFIG`, later ones winning. Files that
    /// are not there are no error.
    pub fn load() -> Result<Self> {
        let mut settings = Settings::default();
        let system = env::var_os("NIX_CONF_DIR").map_or_else(|| "/etc/nix".into(), PathBuf::from);
        settings.file(&system.join("nix.conf"), 0)?;
        for file in user_files().iter().rev() {
            settings.file(file, 0)?;
        }
        if let Ok(text) = env::var("NIX_CONFIG") {
            settings.text(&text, Path::new("/"), 0)?;
        }
        Ok(settings)
    }

    /// The words of a list setting, with those of its `extra-` form.
    pub fn list(&self, key: &str) -> Option<Vec<&str>> {
        Some(self.values.get(key)?.split_whitespace().collect())
    }

    /// The text of a setting.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    fn file(&mut self, path: &Path, depth: usize) -> Result<()> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        self.text(&text, folder, depth)
            .with_context(|| format!("in {}", path.display()))
    }

    fn text(&mut self, text: &str, folder: &Path, depth: usize) -> Result<()> {
        anyhow::ensure!(depth < MAX_INCLUDES, "includes are nested too deeply");
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let Some((key, value)) = line.split_once(char::is_whitespace) else {
                continue;
            };
            let value = value.trim();
            match key {
                "include" | "!include" => {
                    let path = folder.join(value);
                    anyhow::ensure!(
                        key == "!include" || path.exists(),
                        "the included file {} does not exist",
                        path.display()
                    );
                    self.file(&path, depth + 1)?;
                }
                _ => {
                    let value = value.strip_prefix('=').unwrap_or(value).trim();
                    self.set(key, value);
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) {
        match key.strip_prefix("extra-") {
            None => drop(self.values.insert(key.into(), value.into())),
            Some(key) => {
                let old = self.values.entry(key.into()).or_insert_with(|| {
                    let default = DEFAULTS.iter().find(|(k, _)| *k == key);
                    default.map(|(_, v)| v.to_string()).unwrap_or_default()
                });
                old.push(' ');
                old.push_str(value);
            }
        }
    }
}

/// The key that Nix trusts when nothing else is configured.
pub const DEFAULT_TRUSTED_KEY: &str =
    "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

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

fn home() -> Result<PathBuf> {
    path_var("HOME").context("HOME is not set; set it, or name the store with --store")
}

/// The user's own nix.conf, the one that wins over the others.
pub fn user_conf() -> Result<PathBuf> {
    let first = user_files().into_iter().next();
    first.context("there is no place for a nix.conf of yours; name one with --conf")
}

/// The users' configuration files, the one that wins first.
fn user_files() -> Vec<PathBuf> {
    if let Some(files) = env::var_os("NIX_USER_CONF_FILES") {
        let files = env::split_paths(&files).filter(|f| !f.as_os_str().is_empty());
        return files.collect();
    }
    let mut folders = Vec::new();
    if let Some(folder) = path_var("NIX_CONFIG_HOME") {
        folders.push(folder);
    } else if let Some(folder) = path_var("XDG_CONFIG_HOME") {
        folders.push(folder.join("nix"));
    } else if let Ok(home) = home() {
        folders.push(home.join(".config/nix"));
    }
    if let Some(more) = env::var_os("XDG_CONFIG_DIRS") {
        folders.extend(env::split_paths(&more).map(|f| f.join("nix")));
    }
    folders.into_iter().map(|f| f.join("nix.conf")).collect()
}

const DEFAULTS: &[(&str, &str)] = &[("trusted-public-keys", DEFAULT_TRUSTED_KEY)];
const MAX_INCLUDES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_lines_win_and_extra_adds() {
        let mut settings = Settings::default();
        let text = "# comment\nstore = daemon # why\nstore=nothing\nstore = auto\nextra-trusted-public-keys = a:b\n\
                    extra-trusted-public-keys = c:d\n";
        settings.text(text, Path::new("/"), 0).unwrap();
        assert_eq!(settings.get("store"), Some("auto"));
        let keys = settings.list("trusted-public-keys").unwrap();
        assert_eq!(keys, [DEFAULT_TRUSTED_KEY, "a:b", "c:d"]);
    }

    #[test]
    fn includes_are_relative_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a", "include b\n!include nothing\n");
        write("b", "store = /x\n");
        write("loop", "include loop\n");
        let mut settings = Settings::default();
        settings.file(&folder.path().join("a"), 0).unwrap();
        assert_eq!(settings.get("store"), Some("/x"));
        assert!(settings.file(&folder.path().join("loop"), 0).is_err());
        write("c", "include nothing\n");
        assert!(settings.file(&folder.path().join("c"), 0).is_err());
    }
}
