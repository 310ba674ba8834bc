use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};
use tk_path::StoreDir;
use tk_store::{StoreReference, StoreVariant};

/// Where a local store lies, and how it is used.
///
/// Made by [`LocalConfig::chroot`] or [`LocalConfig::system`]; every field may be overridden
/// after. `Display` is the store's URI, as Nix 2.34 prints it: `local`, or `local://?root=/abs`,
/// with those parameters that differ from their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalConfig {
    /// The directory that the store paths name (URI parameter `store`).
    pub dir: StoreDir,
    /// The folder that the store lies in, for the URI and for Nix's defaults; `None` for the
    /// system's own store.
    pub root: Option<PathBuf>,
    /// The folder of the database, locks and roots (`state`).
    pub state: PathBuf,
    /// The folder in which the content of `dir` really lies (`real`).
    pub real: PathBuf,
    /// The folder of build logs (`log`).
    pub log: PathBuf,
    /// Nothing is written, not even lock files; the store must exist. For stores on media that
    /// cannot be written, and that nobody else writes either.
    pub read_only: bool,
    /// What must have reached the disk before a path is registered.
    pub durability: Durability,
    /// Whether paths that come into this store need a trusted signature (`require-sigs`), where the store
    /// differs from nix.conf. For whoever decides about it: each addition says what it demands, whatever
    /// stands here.
    pub require_signatures: Option<bool>,
    /// Whether a collection keeps the outputs of live derivations (`keep-outputs`).
    pub keep_outputs: bool,
    /// Whether a collection keeps the derivers of live paths (`keep-derivations`).
    pub keep_derivations: bool,
    /// How many paths are unpacked at once; fewer if the process may not have enough files open.
    pub jobs: NonZeroUsize,
}

/// What must have reached the disk before a path is registered, for the case of a power failure.
/// A killed process loses nothing with any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Nothing: the database itself may be damaged by a power failure (Nix without
    /// `fsync-metadata`).
    Nothing,
    /// The database keeps its order of writes; new content may be lost although it is registered
    /// (Nix's default).
    #[default]
    Database,
    /// The content of a path before its registration (Nix's `fsync-store-paths`).
    Content,
}

impl LocalConfig {
    /// The store for paths of `/nix/store` in the folder `root`: `<root>/nix/store` and
    /// `<root>/nix/var/nix`. Nix calls it a chroot store.
    pub fn chroot(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        LocalConfig {
            dir: StoreDir::default(),
            state: root.join(ROOT_STATE),
            real: root.join(ROOT_REAL),
            log: root.join(ROOT_LOG),
            root: Some(root),
            read_only: false,
            durability: Durability::default(),
            require_signatures: None,
            keep_outputs: false,
            keep_derivations: true,
            jobs: jobs(),
        }
    }

    /// The system's own store: `/nix/store` and `/nix/var`.
    pub fn system() -> Self {
        LocalConfig {
            dir: StoreDir::default(),
            root: None,
            state: SYSTEM_STATE.into(),
            real: SYSTEM_REAL.into(),
            log: SYSTEM_LOG.into(),
            read_only: false,
            durability: Durability::default(),
            require_signatures: None,
            keep_outputs: false,
            keep_derivations: true,
            jobs: jobs(),
        }
    }

    /// The file of the database.
    pub fn database(&self) -> PathBuf {
        self.state.join("db/db.sqlite")
    }

    /// The reference that opens this store again: the parameters that differ from the defaults.
    pub fn reference(&self) -> StoreReference {
        let mut params = BTreeMap::new();
        let mut add = |key: &str, path: &Path, default: PathBuf| {
            if path != default {
                params.insert(key.to_owned(), path.to_string_lossy().into_owned());
            }
        };
        match &self.root {
            Some(root) => {
                add("root", root, PathBuf::new());
                add("state", &self.state, root.join(ROOT_STATE));
                add("real", &self.real, root.join(ROOT_REAL));
                add("log", &self.log, root.join(ROOT_LOG));
            }
            None => {
                add("state", &self.state, SYSTEM_STATE.into());
                add("real", &self.real, self.dir.as_str().into());
                add("log", &self.log, SYSTEM_LOG.into());
            }
        }
        add("store", self.dir.as_str().as_ref(), SYSTEM_REAL.into());
        if self.read_only {
            params.insert("read-only".to_owned(), "true".to_owned());
        }
        if let Some(required) = self.require_signatures {
            params.insert("require-sigs".to_owned(), required.to_string());
        }
        StoreReference::new(StoreVariant::Local, params)
    }
}

impl fmt::Display for LocalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference().fmt(f)
    }
}

fn jobs() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

const ROOT_STATE: &str = "nix/var/nix";
const ROOT_REAL: &str = "nix/store";
const ROOT_LOG: &str = "nix/var/log/nix";
const SYSTEM_REAL: &str = "/nix/store";
const SYSTEM_STATE: &str = "/nix/var/nix";
const SYSTEM_LOG: &str = "/nix/var/log/nix";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        let chroot = LocalConfig::chroot("/tmp/a b");
        let mut moved = LocalConfig::chroot("/r");
        moved.real = "/elsewhere".into();
        moved.dir = StoreDir::new("/gnu/store").unwrap();
        let mut state = LocalConfig::system();
        state.state = "/var/nix".into();
        let mut open = LocalConfig::chroot("/r");
        open.require_signatures = Some(false);
        for (config, uri) in [
            (LocalConfig::system(), "local"),
            (LocalConfig::chroot("/r"), "local://?root=/r"),
            (chroot, "local://?root=/tmp/a%20b"),
            (moved, "local://?real=/elsewhere&root=/r&store=/gnu/store"),
            (state, "local://?state=/var/nix"),
            (open, "local://?require-sigs=false&root=/r"),
        ] {
            assert_eq!(config.to_string(), uri);
        }
    }

    #[test]
    fn chroot_places() {
        let config = LocalConfig::chroot("/r");
        assert_eq!(config.real, Path::new("/r/nix/store"));
        assert_eq!(config.database(), Path::new("/r/nix/var/nix/db/db.sqlite"));
    }
}
