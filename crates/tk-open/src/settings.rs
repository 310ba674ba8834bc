use crate::{
    error::{InContext, OpenError},
    keys::{read_public_key, read_secret_key, refuse_secret},
    nix_conf::{DEFAULT_TRUSTED_KEY, NixConf},
};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_cache::observer::NetworkObserver;
use tk_narinfo::TrustedKeys;
use tk_path::StoreDir;

/// What a program knows of its machine and its user when it opens stores.
///
/// [`OpenSettings::default`] knows nothing, so that an URI alone says what is opened: no login, no proxy,
/// nothing that is remembered between two runs. `OpenSettings::from_environment` knows what Nix would
/// know.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenSettings {
    /// What nix.conf sets.
    pub nix_conf: NixConf,
    /// Variables and folders.
    pub environment: Environment,
    /// What caches said before is not believed.
    pub refresh: bool,
    /// Who sees the requests to servers.
    pub observer: Arc<dyn NetworkObserver>,
    /// Who hears what people should know, though the store could be opened. Called from any thread.
    pub tell: Arc<dyn Fn(OpenMessage) + Send + Sync>,
    #[cfg(feature = "disk-cache")]
    pub(crate) disk_cache: Arc<std::sync::OnceLock<Option<Arc<tk_cache::disk_cache::DiskCache>>>>,
}

/// Something that people should hear about a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenMessage {
    /// Something is wrong, and the work goes on.
    Warning(String),
    /// What a daemon or ssh said.
    Said(String),
}

impl Default for OpenSettings {
    fn default() -> Self {
        OpenSettings {
            nix_conf: NixConf::default(),
            environment: Environment::default(),
            refresh: false,
            observer: Arc::new(()),
            tell: Arc::new(drop),
            #[cfg(feature = "disk-cache")]
            disk_cache: Arc::default(),
        }
    }
}

impl fmt::Debug for OpenSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Both show names alone.
        f.debug_struct("OpenSettings")
            .field("nix_conf", &self.nix_conf)
            .field("environment", &self.environment)
            .field("refresh", &self.refresh)
            .finish_non_exhaustive()
    }
}

impl OpenSettings {
    /// Reads the environment of this process, the home of its user, and the files of nix.conf, as Nix
    /// does.
    ///
    /// # Errors
    /// When a nix.conf cannot be understood.
    #[cfg(feature = "environment")]
    pub fn from_environment() -> tk_store::Result<Self> {
        let environment = Environment::of_process();
        Ok(OpenSettings {
            nix_conf: NixConf::load(&environment.conf_places())?,
            environment,
            ..OpenSettings::default()
        })
    }

    /// The URI of the store to work on: nix.conf's `store`, `NIX_REMOTE`, or `auto`.
    pub fn store_uri(&self) -> String {
        let remote = || self.environment.text("NIX_REMOTE");
        let uri = self.nix_conf.get("store").or_else(remote);
        uri.unwrap_or("auto").to_owned()
    }

    /// The directory that the paths of stores name, unless their URIs say otherwise: `NIX_STORE_DIR` or
    /// `/nix/store`.
    ///
    /// # Errors
    /// When the variable names no such directory.
    pub fn store_dir(&self) -> Result<StoreDir, OpenError> {
        for name in ["NIX_STORE_DIR", "NIX_STORE"] {
            if let Some(dir) = self.environment.path(name) {
                return StoreDir::new(&dir.to_string_lossy()).in_context(|| name.into());
            }
        }
        Ok(StoreDir::default())
    }

    /// The keys that nix.conf trusts, or Nix's default: also what this machine signs with is trusted, as
    /// far as this user may read it.
    ///
    /// # Errors
    /// When what nix.conf names is not a key. No error shows a secret one.
    pub fn trusted_keys(&self) -> Result<TrustedKeys, OpenError> {
        let named = self.nix_conf.list("trusted-public-keys");
        let named = named.unwrap_or_else(|| vec![DEFAULT_TRUSTED_KEY]);
        let keys = named.into_iter().map(read_public_key);
        let mut keys: TrustedKeys = keys.collect::<Result<_, _>>()?;
        for file in self.nix_conf.paths("secret-key-files") {
            refuse_secret(&file)?;
            if File::open(&file).is_ok() {
                keys.insert(read_secret_key(&file)?.public());
            }
        }
        Ok(keys)
    }

    pub(crate) fn warn(&self, line: impl fmt::Display) {
        (self.tell)(OpenMessage::Warning(line.to_string()));
    }
}

/// Variables of the environment, and the user's home.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Environment {
    /// The variables, which may hold secrets.
    pub variables: BTreeMap<OsString, OsString>,
    /// The user's home folder.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process, and the home of its user.
    #[cfg(feature = "environment")]
    pub fn of_process() -> Self {
        let mut environment = Environment {
            variables: std::env::vars_os().collect(),
            home: None,
        };
        environment.home = home(environment.path("HOME"));
        environment
    }

    /// A variable that holds a path; an empty one counts as unset, here and below.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.variables.get(OsStr::new(name))?;
        Some(PathBuf::from(value)).filter(|value| !value.as_os_str().is_empty())
    }

    /// A variable that holds text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(OsStr::new(name))?.to_str()?;
        Some(value).filter(|value| !value.is_empty())
    }

    /// The files from which Nix reads its settings.
    pub fn conf_places(&self) -> crate::nix_conf::ConfPlaces {
        let variable = |name: &str| self.variables.get(OsStr::new(name)).cloned();
        crate::nix_conf::ConfPlaces::of_environment(variable, self.home.as_deref())
    }

    /// Nix's data folder of the user: `$NIX_DATA_HOME`, `$XDG_DATA_HOME/nix` or `~/.local/share/nix`.
    ///
    /// # Errors
    /// When the user has no home, here and below.
    pub fn data_folder(&self) -> tk_store::Result<PathBuf> {
        let xdg = || Some(self.path("XDG_DATA_HOME")?.join("nix"));
        let set = self.path("NIX_DATA_HOME").or_else(xdg);
        set.map_or_else(|| self.in_home(".local/share/nix"), Ok)
    }

    /// The user's folder for what can be made again: `$XDG_CACHE_HOME` or `~/.cache`.
    pub fn cache_folder(&self) -> tk_store::Result<PathBuf> {
        let set = self.path("XDG_CACHE_HOME");
        set.map_or_else(|| self.in_home(".cache"), Ok)
    }

    /// The folder of tk-store for what it was in the midst of: `$XDG_STATE_HOME/tk-store` or
    /// `~/.local/state/tk-store`.
    pub fn state_folder(&self) -> tk_store::Result<PathBuf> {
        let set = self.path("XDG_STATE_HOME");
        let folder = set.map_or_else(|| self.in_home(".local/state"), Ok)?;
        Ok(folder.join("tk-store"))
    }

    /// The state folder of the Nix of this machine: `$NIX_STATE_DIR` or `/nix/var/nix`.
    pub fn nix_state(&self) -> PathBuf {
        let set = self.path("NIX_STATE_DIR");
        set.unwrap_or_else(|| "/nix/var/nix".into())
    }

    /// Where a daemon with the state folder `state` listens, unless the user says otherwise.
    pub fn daemon_socket(&self, state: &Path) -> PathBuf {
        let set = self.path("NIX_DAEMON_SOCKET_PATH");
        set.unwrap_or_else(|| state.join("daemon-socket/socket"))
    }

    fn in_home(&self, place: &str) -> tk_store::Result<PathBuf> {
        let home = self.home.as_ref().ok_or_else(|| {
            tk_store::Error::invalid("HOME is not set; set it, or name the store with --store")
        })?;
        Ok(home.join(place))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("variables", &self.variables.keys())
            .field("home", &self.home)
            .finish()
    }
}

/// `HOME`, unless that is somebody else's, as after `sudo` without `-H`: then the one that the system
/// knows of. So Nix finds it.
#[cfg(feature = "environment")]
fn home(named: Option<PathBuf>) -> Option<PathBuf> {
    use nix::unistd::{Uid, User};
    use std::{fs, io, os::unix::fs::MetadataExt};
    let is_own = |home: &PathBuf| match fs::metadata(home) {
        Ok(folder) => folder.uid() == Uid::effective().as_raw(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if let Some(home) = named.as_ref().filter(|home| is_own(home)) {
        return Some(home.clone());
    }
    let user = User::from_uid(Uid::effective()).ok().flatten();
    let known = user.map(|user| user.dir).filter(|dir| dir.is_absolute());
    known.or(named)
}
