mod caches;
#[cfg(feature = "daemon")]
mod daemon;
#[cfg(all(feature = "disk-cache", feature = "http"))]
mod disk_cache;
#[cfg(feature = "local")]
mod local;
#[cfg(feature = "http")]
mod network;

#[cfg(feature = "local")]
pub use local::local_config;
#[cfg(feature = "http")]
pub use network::http_client;

use crate::{OpenError, OpenMessage, OpenSettings, OpenStore, error::InContext};
use futures::future::join_all;
use rustix::fs::{Access, access};
use std::{
    borrow::Cow,
    collections::BTreeSet,
    num::NonZeroUsize,
    path::Path,
    sync::{Mutex, PoisonError},
};
use tk_narinfo::Compression;
use tk_path::StoreDir;
use tk_store::{SeveralStores, StoreReference, StoreVariant, reference::Settings};

type Result<T, E = OpenError> = std::result::Result<T, E>;

/// What is wanted of a store, beyond what its URI says. The default is to read.
#[derive(Debug, Default, Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The store will be written to: make it if it is not there.
    pub write: bool,
    /// Compression of a cache's new NARs.
    pub compression: Option<Compression>,
    /// Level of that compression.
    pub level: Option<i32>,
    /// Paths worked on at once.
    pub jobs: Option<NonZeroUsize>,
    /// Paths may be written whose references are not in the cache.
    pub incomplete: bool,
    /// What `nix-cache-info` of a new cache says.
    pub priority: Option<i32>,
    /// The same, for mass queries.
    pub want_mass_query: Option<bool>,
    /// Write a listing beside each NAR.
    pub listing: bool,
    /// What is written comes from far away: more paths are worked on at once than there are
    /// processors, since each waits for a round trip.
    pub from_afar: bool,
    /// What caches said before is not believed.
    pub refresh: bool,
    /// How a daemon is to build; without it, by its own configuration.
    #[cfg(feature = "daemon")]
    pub daemon: Option<tk_daemon::worker::ops::SetOptions>,
    /// The few of these that the serve protocol has.
    #[cfg(feature = "daemon")]
    pub serve: tk_daemon::serve::ServeBuildOptions,
    /// Nothing will be written: a store that writing would make is taken for an empty one.
    pub dry_run: bool,
}

impl OpenOptions {
    /// To write, into a store that is made if it is not there.
    pub fn to_write() -> Self {
        OpenOptions {
            write: true,
            ..OpenOptions::default()
        }
    }
}

/// Opens the store that `uri` names, to read from it.
///
/// The URI is one that Nix knows: `auto`, `daemon`, `local?root=DIR`, a folder, `unix://`, `ssh-ng://`,
/// `ssh://`, `file://`, `http://`, `https://`, `s3://`, and also `gs://` and `az://`. A store on disk that
/// is not there is an error; [`open_with`] makes one.
///
/// # Errors
/// When the URI names no store, when this build has no such kind (see the features), or when the store
/// cannot be opened. A server is asked only where opening needs an answer.
pub async fn open(uri: &str, settings: &OpenSettings) -> Result<OpenStore> {
    open_with(uri, settings, &OpenOptions::default()).await
}

/// Opens the store that `uri` names, as `wish` wants it.
///
/// # Errors
/// As [`open`].
pub async fn open_with(
    uri: &str,
    settings: &OpenSettings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let reference = store_reference(uri)?;
    opened(settings, &reference, wish)
        .await
        .map_err(OpenError::into_boxed)
        .in_context(|| format!("cannot open the store {}", without_password(uri)))
}

/// What `uri` says, where a folder that holds a binary cache is that cache.
///
/// # Errors
/// When it names no store, or a folder that is both.
pub fn store_reference(uri: &str) -> Result<StoreReference> {
    let cwd = std::env::current_dir().in_context(|| "finding the current directory".into())?;
    let reference = StoreReference::parse(uri, &cwd)?;
    let StoreVariant::Specified { scheme, authority } = &reference.variant else {
        return Ok(reference);
    };
    if scheme != "local" || uri.starts_with("local:") {
        return Ok(reference);
    }
    let Some(folder) = reference.path()? else {
        return Ok(reference);
    };
    if !folder.join("nix-cache-info").is_file() {
        return Ok(reference);
    }
    if folder.join("nix/var/nix/db/db.sqlite").exists() {
        return Err(OpenError::Invalid(format!(
            "{0} holds a binary cache and a store; say which is meant: file://{0} is the cache, \
         local://{0} the store",
            folder.display()
        )));
    }
    let variant = StoreVariant::Specified {
        scheme: "file".into(),
        authority: authority.clone(),
    };
    Ok(StoreReference::new(variant, reference.params.clone()))
}

/// Opens the stores that `uris` name, as one to read from: each path comes from the first that has
/// it, by priority and then in this order. One of several that cannot be opened is told and passed
/// over, and what the others lack counts as unknown.
///
/// # Errors
/// When none of them can be opened, and when none is named.
pub async fn open_several(
    uris: &[String],
    settings: &OpenSettings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    if let [uri] = uris {
        return open_with(uri, settings, wish).await;
    }
    let opening = uris.iter().map(|uri| async move {
        let named = store_reference(uri)?.params.get("priority").cloned();
        let store = open_with(uri, settings, wish).await?;
        let named = named.and_then(|priority| priority.parse().ok());
        let priority = match named {
            Some(priority) => priority,
            None => store.priority().await?,
        };
        Ok::<_, OpenError>((priority, store))
    });
    let (mut seen, mut stores, mut lost) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (uri, opened) in uris.iter().zip(join_all(opening).await) {
        match opened {
            Ok((priority, store)) if seen.insert(store.store().to_string()) => {
                stores.push((priority, store));
            }
            Ok(_) => {}
            Err(error) => lost.push((uri, error)),
        }
    }
    if stores.is_empty() {
        return Err(lost.into_iter().next().map_or_else(
            || OpenError::invalid("there is no store to read from; name one with --from"),
            |(_, error)| error,
        ));
    }
    for (_, error) in &lost {
        settings.warn(format_args!("{}; it is passed over", error.to_line()));
    }
    stores.sort_by_key(|(priority, _)| *priority);
    let stores: Vec<_> = stores.into_iter().map(|(_, store)| store).collect();
    if let ([_], true) = (&stores[..], lost.is_empty()) {
        return Ok(stores.into_iter().next().expect("just one"));
    }
    let told = Mutex::new(BTreeSet::new());
    let tell = settings.tell.clone();
    let mut several = SeveralStores::new(stores.iter().map(OpenStore::abilities))?;
    for (uri, error) in lost {
        several = several.without(without_password(uri), error.to_line());
    }
    let several = several.on_failure(move |store, error| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(store.to_string()) {
            let line = format!("{store} cannot be asked: {}", error.to_line());
            tell(OpenMessage::Warning(line));
        }
    });
    Ok(OpenStore::several(several, stores))
}

async fn opened(
    settings: &OpenSettings,
    reference: &StoreReference,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let mut params = reference.settings();
    let store = match reference.scheme() {
        None => auto(settings, reference, &mut params, wish).await?,
        #[cfg(feature = "local")]
        Some("local") => local::local(settings, reference.path()?, &mut params, wish).await?,
        Some("file") => {
            let folder = reference.path()?.ok_or_else(|| {
                OpenError::invalid("it names no folder; write file:///the/folder")
            })?;
            caches::folder(settings, folder, &mut params, wish).await?
        }
        #[cfg(feature = "daemon")]
        Some("unix") => daemon::daemon(settings, reference, &mut params, wish)?,
        #[cfg(feature = "daemon")]
        Some("ssh-ng") => daemon::ssh_ng(settings, reference, &mut params, wish)?,
        #[cfg(feature = "daemon")]
        Some("ssh") => daemon::ssh_serve(settings, reference, &mut params, wish)?,
        #[cfg(feature = "http")]
        Some("http" | "https") => network::http(settings, reference, &mut params, wish).await?,
        #[cfg(feature = "bucket")]
        Some(scheme @ ("s3" | "gs" | "az")) => {
            network::bucket(settings, scheme, reference, &mut params, wish).await?
        }
        Some(scheme) => return Err(no_such_kind(scheme)),
    };
    for name in params.unknown() {
        settings.warn(format_args!(
            "the store {} has no parameter '{name}'; it is ignored",
            without_password(&reference.to_string())
        ));
    }
    Ok(store)
}

fn no_such_kind(scheme: &str) -> OpenError {
    OpenError::Invalid(match scheme {
        "local" | "unix" | "ssh-ng" | "ssh" | "http" | "https" | "s3" | "gs" | "az" => {
            format!("this program was built without stores of '{scheme}://'")
        }
        _ => format!("there is no kind of store '{scheme}://'; {KINDS}"),
    })
}

/// `uri` without the password that it may hold, to be shown to people.
pub fn without_password(uri: &str) -> Cow<'_, str> {
    let hidden = || {
        let (scheme, rest) = uri.split_once("://")?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let at = rest[..end].rfind('@')?;
        let colon = rest[..at].find(':')?;
        Some(format!("{scheme}://{}:…{}", &rest[..colon], &rest[at..]))
    };
    hidden().map_or(Cow::Borrowed(uri), Cow::Owned)
}

/// What Nix would pick, see [`AutoStore`].
async fn auto(
    settings: &OpenSettings,
    reference: &StoreReference,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    match AutoStore::of(&settings.environment) {
        #[cfg(feature = "local")]
        AutoStore::System => local::local(settings, None, params, wish).await,
        #[cfg(feature = "daemon")]
        AutoStore::Daemon => {
            let daemon = StoreReference::new(StoreVariant::Daemon, reference.params.clone());
            daemon::daemon(settings, &daemon, params, wish)
        }
        #[cfg(feature = "local")]
        AutoStore::Own => {
            // The user's own store is there as soon as somebody asks for it.
            let wish = OpenOptions {
                write: !wish.dry_run,
                ..wish.clone()
            };
            let root = settings.environment.data_folder()?.join("root");
            local::local(settings, Some(root), params, &wish).await
        }
        #[cfg(not(all(feature = "local", feature = "daemon")))]
        _ => {
            let _ = (reference, params, wish);
            Err(no_such_kind("local"))
        }
    }
}

/// The store of a machine that nobody named: the system's if it may be written, the daemon if there is one,
/// and a store in the user's data folder where there is neither. The last also for root, whom Nix gives a
/// new /nix: a folder in / should not appear because somebody copied a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoStore {
    /// The store of the system, on disk.
    System,
    /// The daemon of the system.
    Daemon,
    /// `root` in the user's data folder ([`Environment::data_folder`](crate::Environment::data_folder)).
    Own,
}

impl AutoStore {
    /// The store that Nix would pick in `environment`.
    pub fn of(environment: &crate::Environment) -> Self {
        let is_set = |name| environment.path(name).is_some();
        let state = environment.nix_state();
        let socket = environment.daemon_socket(&state);
        Self::pick(
            &state,
            &socket,
            is_set("NIX_STATE_DIR") || is_set("NIX_STORE_DIR"),
        )
    }

    fn pick(state: &Path, socket: &Path, configured: bool) -> Self {
        if access(state, Access::READ_OK | Access::WRITE_OK).is_ok() {
            AutoStore::System
        } else if socket.exists() {
            AutoStore::Daemon
        } else if configured || state.exists() {
            AutoStore::System
        } else {
            AutoStore::Own
        }
    }
}

/// The directory that the paths of a store name: the setting of its URI, or that of all stores.
///
/// # Errors
/// When it is not an absolute path.
pub fn take_store_dir(settings: &OpenSettings, params: &mut Settings) -> Result<StoreDir> {
    params
        .take_store_dir()?
        .map_or_else(|| settings.store_dir(), Ok)
}

/// Leaves out settings that are known, and that make no difference here.
fn skip(params: &mut Settings, names: &[&str]) {
    for name in names {
        params.take(name);
    }
}

/// Paths that are fetched at once. Each takes the window of a decoder, 8 MiB with Nix's xz.
const FROM_AFAR: usize = 8;

const STORE_SETTINGS: &[&str] = &["trusted", "path-info-cache-size", "system-features"];
const KINDS: &str = "this version opens auto, daemon, local?root=DIR, /a/folder, unix:///a/socket, \
                     ssh-ng://host, ssh://host, file:///a/cache, http://, https://, s3://bucket, \
                     gs://bucket and az://container";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (uri, expected) in [
            ("http://u:secret@h:80/c?x=1", "http://u:…@h:80/c?x=1"),
            ("https://u:s@e@h", "https://u:…@h"),
            ("http://h:80/a@b:c", "http://h:80/a@b:c"),
            ("ssh://user@host", "ssh://user@host"),
            ("daemon", "daemon"),
        ] {
            assert_eq!(without_password(uri), expected);
        }
    }

    #[test]
    fn auto_is_what_nix_would_pick() {
        let folder = tempfile::tempdir().unwrap();
        let (state, socket) = (folder.path().join("state"), folder.path().join("socket"));
        assert_eq!(AutoStore::pick(&state, &socket, false), AutoStore::Own);
        assert_eq!(AutoStore::pick(&state, &socket, true), AutoStore::System);
        std::fs::write(&socket, "").unwrap();
        assert_eq!(AutoStore::pick(&state, &socket, false), AutoStore::Daemon);
        assert_eq!(AutoStore::pick(&state, &socket, true), AutoStore::Daemon);
        std::fs::create_dir(&state).unwrap();
        assert_eq!(
            AutoStore::pick(&state, &socket, false),
            AutoStore::System,
            "it can be written"
        );
    }
}
