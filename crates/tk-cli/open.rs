//! Opening stores by the URIs that people know from Nix.

mod builders;
mod caches;
mod network;
mod nix;
mod remote;

pub use builders::{MachineOpener as OpenMachine, RemoteArgs, slots};
pub use nix::{NixOptions, store_dir};
pub use remote::BuildArgs;

use crate::{
    CommandContext, ExitStatus,
    paths::root_of_all,
    settings::{data_folder, default_store_dir, path_var},
};
use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use futures::{StreamExt, future::join_all, stream::BoxStream};
use rustix::fs::{Access, access};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tk_cache::{
    BinaryCache,
    checker::{CacheAnswer, Checker, StoreInfos},
    objects::NarInfos,
};
use tk_daemon::{DaemonStore, serve::ServeStore};
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::{Compression, NarInfo, SecretKey};
use tk_path::{StoreDir, StorePath};
use tk_store::{
    Abilities, AddContent, AddSignatures, Closure, Fetching, MemoryStore, Roots, SeveralStores,
    SigCheck, Sources, Store, StoreDescription, StoreReference, StoreVariant, reference::Settings,
};

/// An opened store: what it can do, and what this program has to know of it beyond that.
#[derive(Clone)]
pub struct OpenStore {
    abilities: Abilities,
    /// It, where it is a binary cache.
    cache: Option<Arc<BinaryCache>>,
    /// It, where it is a store on disk.
    local: Option<Arc<LocalStore>>,
    /// It, where it is several as one, to read from; and these, in the same order.
    several: Option<(Arc<SeveralStores>, Vec<OpenStore>)>,
    instead: Instead,
}

/// What to do instead, where a store cannot do something. `STORE` stands for its name.
#[derive(Clone, Copy)]
struct Instead {
    content: &'static str,
    signatures: &'static str,
    list: &'static str,
}

impl Default for Instead {
    fn default() -> Self {
        Instead {
            content: "STORE takes no files",
            signatures: "STORE takes no signatures",
            list: "STORE cannot list its paths",
        }
    }
}

impl From<Abilities> for OpenStore {
    fn from(abilities: Abilities) -> Self {
        OpenStore {
            abilities,
            cache: None,
            local: None,
            several: None,
            instead: Instead::default(),
        }
    }
}

impl From<BinaryCache> for OpenStore {
    fn from(cache: BinaryCache) -> Self {
        OpenStore {
            cache: Some(Arc::new(cache.clone())),
            instead: Instead {
                content: "STORE is a binary cache, to which files go with \
                          tk-store push FILE --to STORE",
                ..Instead::default()
            },
            ..cache.abilities().into()
        }
    }
}

impl From<LocalStore> for OpenStore {
    fn from(store: LocalStore) -> Self {
        OpenStore {
            local: Some(Arc::new(store.clone())),
            ..store.abilities().into()
        }
    }
}

impl From<DaemonStore> for OpenStore {
    fn from(store: DaemonStore) -> Self {
        Arc::new(store).abilities().into()
    }
}

impl From<ServeStore> for OpenStore {
    fn from(store: ServeStore) -> Self {
        OpenStore {
            instead: Instead {
                content: "STORE takes store paths only; add files to a local store first \
                          (tk-store add FILE), or use ssh-ng://",
                signatures: "STORE takes no signatures; use ssh-ng://",
                list: "STORE cannot list its paths; use ssh-ng://",
            },
            ..Arc::new(store).abilities().into()
        }
    }
}

/// A store that is not there yet, in a dry run: it has nothing.
impl From<MemoryStore> for OpenStore {
    fn from(store: MemoryStore) -> Self {
        let store = Arc::new(store);
        OpenStore::from(Abilities {
            content: Some(store.clone()),
            signatures: Some(store.clone()),
            graph: Some(store.clone()),
            ..Abilities::of(store)
        })
    }
}

impl OpenStore {
    fn several(store: SeveralStores, stores: Vec<OpenStore>) -> Self {
        let store = Arc::new(store);
        OpenStore {
            several: Some((store.clone(), stores)),
            instead: Instead {
                content: "STORE are several stores; name one to add to",
                signatures: "STORE are several stores; name one to sign in",
                list: "STORE are several stores; name one to list",
            },
            ..store.abilities().into()
        }
    }

    /// The store as every store.
    pub fn store(&self) -> Arc<dyn Store> {
        self.abilities.store.clone()
    }

    /// The store with all that it can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities.clone()
    }

    /// The store as a binary cache, if it is one: it takes what it is given, and those who read it ask
    /// for signatures. A store asks when it is given something.
    pub fn cache(&self) -> Option<&Arc<BinaryCache>> {
        self.cache.as_ref()
    }

    /// The store as one on disk, if it is one.
    pub fn local(&self) -> Option<&Arc<LocalStore>> {
        self.local.as_ref()
    }

    /// The stores that are read from as one.
    pub fn members(&self) -> Option<(&Arc<SeveralStores>, &[OpenStore])> {
        let (store, stores) = self.several.as_ref()?;
        Some((store, stores))
    }

    /// The store, if content can be added to it.
    pub fn add_content(&self) -> Result<&dyn AddContent> {
        self.able(self.abilities.content.as_deref(), self.instead.content)
    }

    /// The store, if signatures can be added to its paths.
    pub fn add_signatures(&self) -> Result<&dyn AddSignatures> {
        let signatures = self.abilities.signatures.as_deref();
        self.able(signatures, self.instead.signatures)
    }

    fn able<'a, T: ?Sized>(&self, ability: Option<&'a T>, instead: &str) -> Result<&'a T> {
        ability.ok_or_else(|| anyhow::anyhow!(instead.replace("STORE", &self.store().to_string())))
    }

    /// Everything that the store has, as far as it can be read. Each narinfo of a cache is read once.
    pub async fn all(&self) -> Result<ListedPaths> {
        let mut listed = ListedPaths::default();
        if let Some(cache) = &self.cache {
            return listed.take(cache.all_narinfos().await?).await;
        }
        if let Some((_, stores)) = &self.several {
            for store in stores {
                let all = Box::pin(store.all()).await?;
                listed.unreadable.extend(all.unreadable);
                for (path, narinfo) in all.narinfos {
                    listed.narinfos.entry(path).or_insert(narinfo);
                }
            }
            return Ok(listed);
        }
        let graph = self.able(self.abilities.graph.as_deref(), self.instead.list)?;
        let (paths, bad) = graph.all_readable().await?;
        listed.unreadable.extend(bad);
        let store = self.store();
        let mut infos = StoreInfos::ask(&*store, futures::stream::iter(paths).boxed());
        while let Some((path, found)) = infos.next().await {
            match found {
                // It may be gone since it was listed.
                Ok(None) => {}
                Ok(Some(narinfo)) => listed.add(narinfo),
                Err(error) => listed.unreadable.push((path.to_string(), error)),
            }
        }
        Ok(listed)
    }

    /// What the store says of `paths`, and of all they refer to if `closure`. What cannot be read
    /// does not end the others.
    pub async fn look(&self, paths: &[StorePath], closure: bool) -> Looked {
        let checker = Checker::new(vec![self.narinfos()]).closure(closure);
        let mut looked = Looked::default();
        let paths = paths.to_vec();
        let mut answers = checker.check(futures::stream::iter(paths));
        while let Some(checked) = answers.next().await {
            for answer in checked.answers {
                match answer {
                    CacheAnswer::Present(narinfo, _) => looked.listed.add(*narinfo),
                    CacheAnswer::Absent => looked.absent.push(checked.path.clone()),
                    CacheAnswer::NotAsked(error) => {
                        let name = checked.path.to_string();
                        looked.listed.unreadable.push((name, error));
                    }
                }
            }
        }
        looked
    }

    /// Asks the store what it is.
    pub async fn describe(&self) -> Result<StoreDescription> {
        match &self.abilities.description {
            Some(description) => Ok(description.describe().await?),
            None => Ok(StoreDescription::of("store")),
        }
    }

    /// The store, if it keeps roots.
    pub fn roots(&self) -> Option<&dyn Roots> {
        self.abilities.roots.as_deref()
    }

    /// The keys that a cache signs with by itself.
    pub fn signing_keys(&self) -> &[Arc<SecretKey>] {
        self.cache.as_deref().map_or(&[], BinaryCache::signing_keys)
    }

    /// Where the files of its paths lie on this machine, if they do.
    pub fn real_dir(&self) -> Option<&Path> {
        self.abilities.real_dir.as_deref()
    }

    /// Whether each of its paths costs a round trip over a network.
    pub fn is_far(&self) -> bool {
        match &self.several {
            Some((_, stores)) => stores.iter().any(OpenStore::is_far),
            None => self
                .cache
                .as_ref()
                .is_some_and(|cache| cache.folder().is_none()),
        }
    }

    /// Paths that are worth reading at once: more than there are processors where each waits for a
    /// round trip.
    pub fn at_once(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        if self.is_far() {
            processors.max(FROM_AFAR)
        } else {
            processors
        }
    }

    /// The store, where one of several whose metadata of a path satisfies `check` is preferred.
    pub fn preferring(self, check: &SigCheck) -> Self {
        let Some((store, stores)) = self.several else {
            return self;
        };
        // The abilities are the same store.
        drop(self.abilities);
        match Arc::try_unwrap(store) {
            Ok(store) => OpenStore::several(store.prefer(check.clone()), stores),
            Err(shared) => OpenStore {
                abilities: shared.clone().abilities(),
                cache: None,
                local: None,
                several: Some((shared, stores)),
                instead: self.instead,
            },
        }
    }

    /// How late it is asked where there are several: the lower, the earlier. As Nix has it.
    async fn priority(&self) -> Result<i32> {
        let Some(cache) = &self.cache else {
            return Ok(0);
        };
        Ok(cache
            .cache_info()
            .await?
            .priority
            .unwrap_or(PRIORITY_OF_CACHES))
    }

    /// The store as a cache that answers with narinfos; other stores say what they know.
    pub fn narinfos(&self) -> Arc<dyn NarInfos> {
        match &self.cache {
            Some(cache) => cache.clone(),
            None => Arc::new(StoreInfos::new(self.store())),
        }
    }
}

/// What a store has.
#[derive(Default)]
pub struct ListedPaths {
    /// What it says of each path.
    pub narinfos: BTreeMap<StorePath, NarInfo>,
    /// What could not be read, by its name, and why.
    pub unreadable: Vec<(String, tk_store::Error)>,
}

impl ListedPaths {
    async fn take(
        mut self,
        mut all: BoxStream<'_, (String, tk_store::Result<NarInfo>)>,
    ) -> Result<ListedPaths> {
        while let Some((name, narinfo)) = all.next().await {
            match narinfo {
                Ok(narinfo) => self.add(narinfo),
                Err(error) => self.unreadable.push((name, error)),
            }
        }
        Ok(self)
    }

    fn add(&mut self, narinfo: NarInfo) {
        self.narinfos.insert(narinfo.info.path.clone(), narinfo);
    }

    /// Says what could not be read; the answer that follows.
    pub fn tell_unreadable(&self, cx: &CommandContext) -> ExitStatus {
        for (_, error) in &self.unreadable {
            cx.ui.error(error.to_line());
        }
        ExitStatus::after(self.unreadable.iter().map(|(_, error)| error))
    }

    /// The same as a closure, in which nothing is absent.
    pub fn closure(&self) -> Closure {
        let infos = self.narinfos.iter();
        let infos = infos.map(|(path, narinfo)| (path.clone(), narinfo.info.clone()));
        Closure {
            infos: infos.collect(),
            ..Closure::default()
        }
    }
}

/// What a store says of some paths.
#[derive(Default)]
pub struct Looked {
    /// What it has.
    pub listed: ListedPaths,
    /// What it has not.
    pub absent: Vec<StorePath>,
}

/// What a command wants of a store, beyond what its URI says.
#[derive(Debug, Default, Clone)]
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
    /// How a daemon is to build.
    pub build: BuildArgs,
    /// Nothing will be written: a store that writing would make is taken for an empty one.
    pub dry_run: bool,
}

/// Opens the store that `uri` names.
pub async fn open(cx: &CommandContext, uri: &str, wish: &OpenOptions) -> Result<OpenStore> {
    let reference = reference(uri)?;
    let wish = OpenOptions {
        jobs: cx.threads.jobs(wish.jobs),
        ..wish.clone()
    };
    opened(cx, &reference, &wish)
        .await
        .with_context(|| format!("cannot open the store {}", shown(uri)))
}

/// What `uri` says, where a folder that holds a binary cache is that cache.
fn reference(uri: &str) -> Result<StoreReference> {
    let cwd = std::env::current_dir().context("finding the current directory")?;
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
    anyhow::ensure!(
        !folder.join("nix/var/nix/db/db.sqlite").exists(),
        "{0} holds a binary cache and a store; say which is meant: file://{0} is the cache, \
         local://{0} the store",
        folder.display()
    );
    let variant = StoreVariant::Specified {
        scheme: "file".into(),
        authority: authority.clone(),
    };
    Ok(StoreReference::new(variant, reference.params.clone()))
}

/// Opens the stores that `uris` name, as one to read from: each path comes from the first that has
/// it, by priority and then in this order. One of several that cannot be opened is told and passed
/// over, and what the others lack counts as unknown.
pub async fn open_several(
    cx: &CommandContext,
    uris: &[String],
    wish: &OpenOptions,
) -> Result<OpenStore> {
    if let [uri] = uris {
        return open(cx, uri, wish).await;
    }
    let opening = uris.iter().map(|uri| async move {
        let named = reference(uri)?.params.get("priority").cloned();
        let store = open(cx, uri, wish).await?;
        let named = named.and_then(|priority| priority.parse().ok());
        let priority = match named {
            Some(priority) => priority,
            None => store.priority().await?,
        };
        Ok::<_, anyhow::Error>((priority, store))
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
            || anyhow::anyhow!("there is no store to read from; name one with --from"),
            |(_, error)| error,
        ));
    }
    for (_, error) in &lost {
        cx.ui.warn(format_args!("{error:#}; it is passed over"));
    }
    stores.sort_by_key(|(priority, _)| *priority);
    let stores: Vec<_> = stores.into_iter().map(|(_, store)| store).collect();
    if let ([_], true) = (&stores[..], lost.is_empty()) {
        return Ok(stores.into_iter().next().expect("just one"));
    }
    let told = Mutex::new(BTreeSet::new());
    let ui = cx.ui;
    let mut several = SeveralStores::new(stores.iter().map(OpenStore::abilities))?;
    for (uri, error) in lost {
        several = several.without(shown(uri), format!("{error:#}"));
    }
    let several = several.on_failure(move |store, error| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(store.to_string()) {
            ui.warn(format_args!("{store} cannot be asked: {}", error.to_line()));
        }
    });
    Ok(OpenStore::several(several, stores))
}

/// Where a command reads from.
#[derive(Debug, Default, clap::Args)]
pub struct FromArgs {
    /// Read from the store at URI, instead of --store (may be repeated: each path comes from the
    /// first that has it, by the priority of the caches and then in this order)
    #[arg(long, value_name = "URI")]
    from: Vec<String>,
}

impl FromArgs {
    /// Opens the store to read from, in which `texts` are.
    pub async fn open(&self, cx: &CommandContext, texts: &[OsString]) -> Result<OpenStore> {
        let uris = sources_of(cx, &self.from, texts);
        open_several(cx, &uris, &OpenOptions::default()).await
    }

    /// The same, where what counts is what is there now, not what is remembered of it.
    pub async fn open_anew(&self, cx: &CommandContext, texts: &[OsString]) -> Result<OpenStore> {
        let uris = sources_of(cx, &self.from, texts);
        let wish = OpenOptions {
            refresh: true,
            ..OpenOptions::default()
        };
        open_several(cx, &uris, &wish).await
    }
}

/// The URIs of the stores to read from: those of `--from`, else of `--store`, else the store in a
/// folder of its own in which all of `texts` lie on disk, else what is configured.
pub fn sources_of(cx: &CommandContext, from: &[String], texts: &[OsString]) -> Vec<String> {
    if !from.is_empty() {
        return from.to_vec();
    }
    if !cx.store.is_empty() {
        return cx.store.clone();
    }
    let uri = cx.store_uri();
    let root = (uri == "auto").then(|| root_of_all(texts)).flatten();
    vec![root.map_or(uri, |root| StoreReference::of_root(&root).to_string())]
}

/// The caches that nix.conf has paths fetched from; `option` names others.
pub fn substituters(cx: &CommandContext, option: &str) -> Result<Vec<String>> {
    let all = cx.settings.list("substituters").unwrap_or_default();
    anyhow::ensure!(
        !all.is_empty(),
        "there is no cache to read from; name one, such as {option} https://cache.nixos.org, \
         or set substituters in nix.conf"
    );
    Ok(all.into_iter().map(str::to_owned).collect())
}

/// What a server has for its clients: the store with all that it can do, and for a store on disk that it
/// fetches what satisfies `check` from the substituters that nix.conf names.
pub fn served(cx: &CommandContext, store: &OpenStore, check: SigCheck) -> Abilities {
    let abilities = store.abilities();
    if store.local().is_none() {
        return abilities;
    }
    let sources = ConfiguredSources(cx.clone(), check.clone());
    Fetching::new(abilities, Arc::new(sources), check).abilities()
}

/// The substituters of nix.conf, and what is demanded of what they have. Nix's default counts only where something is added to it: nobody's server
/// should ask the world by itself.
struct ConfiguredSources(CommandContext, SigCheck);

impl fmt::Debug for ConfiguredSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the substituters of nix.conf")
    }
}

#[async_trait]
impl Sources for ConfiguredSources {
    async fn open(&self, uris: Option<&[String]>) -> tk_store::Result<Option<Arc<dyn Store>>> {
        let ConfiguredSources(cx, check) = self;
        let configured = || match cx.settings.is_on("substitute") {
            Some(false) => Vec::new(),
            _ => cx.settings.list("substituters").unwrap_or_default(),
        };
        let uris = match uris {
            Some(uris) => uris.to_vec(),
            None => configured().into_iter().map(str::to_owned).collect(),
        };
        if uris.is_empty() {
            return Ok(None);
        }
        let opened = open_several(cx, &uris, &OpenOptions::default()).await;
        let opened = opened.map_err(|error| tk_store::Error::invalid(format!("{error:#}")))?;
        Ok(Some(opened.preferring(check).store()))
    }
}

async fn opened(
    cx: &CommandContext,
    reference: &StoreReference,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let mut settings = reference.settings();
    let store = match reference.scheme() {
        None => auto(cx, reference, &mut settings, wish).await?,
        Some("local") => local(reference.path()?, &mut settings, wish).await?,
        Some("file") => {
            let folder = reference.path()?;
            caches::folder(
                cx,
                folder.context("it names no folder; write file:///the/folder")?,
                &mut settings,
                wish,
            )
            .await?
        }
        Some("unix") => remote::daemon(cx, reference, &mut settings, wish)?,
        Some("ssh-ng") => remote::ssh_ng(cx, reference, &mut settings, wish)?,
        Some("ssh") => remote::ssh_serve(cx, reference, &mut settings, wish)?,
        Some("http" | "https") => network::http(cx, reference, &mut settings, wish).await?,
        Some(scheme @ ("s3" | "gs" | "az")) => {
            network::bucket(cx, scheme, reference, &mut settings, wish).await?
        }
        Some(scheme) => bail!("there is no kind of store '{scheme}://'; {KINDS}"),
    };
    for name in settings.unknown() {
        let ui = &cx.ui;
        ui.warn(format_args!(
            "the store {} has no parameter '{name}'; it is ignored",
            shown(&reference.to_string())
        ));
    }
    Ok(store)
}

/// The URI without the password that it may hold.
fn shown(uri: &str) -> Cow<'_, str> {
    let hidden = || {
        let (scheme, rest) = uri.split_once("://")?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let at = rest[..end].rfind('@')?;
        let colon = rest[..at].find(':')?;
        Some(format!("{scheme}://{}:…{}", &rest[..colon], &rest[at..]))
    };
    hidden().map_or(Cow::Borrowed(uri), Cow::Owned)
}

/// What Nix would pick, see [`pick`].
async fn auto(
    cx: &CommandContext,
    reference: &StoreReference,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let state = path_var("NIX_STATE_DIR");
    let configured = state.is_some() || path_var("NIX_STORE_DIR").is_some();
    let state = state.unwrap_or_else(|| "/nix/var/nix".into());
    let socket = remote::default_socket(&state);
    match pick(&state, &socket, configured) {
        Pick::System => local(None, settings, wish).await,
        Pick::Daemon => {
            let daemon = StoreReference::new(StoreVariant::Daemon, reference.params.clone());
            remote::daemon(cx, &daemon, settings, wish)
        }
        Pick::Own => {
            // The user's own store is there as soon as somebody asks for it.
            let wish = OpenOptions {
                write: !wish.dry_run,
                ..wish.clone()
            };
            local(Some(data_folder()?.join("root")), settings, &wish).await
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pick {
    System,
    Daemon,
    Own,
}

/// The system's store if it may be written, the daemon if there is one, and a store in the user's
/// data folder where there is neither. The last also for root, whom Nix gives a new /nix: a folder
/// in / should not appear because somebody copied a path.
fn pick(state: &Path, socket: &Path, configured: bool) -> Pick {
    if access(state, Access::READ_OK | Access::WRITE_OK).is_ok() {
        Pick::System
    } else if socket.exists() {
        Pick::Daemon
    } else if configured || state.exists() {
        Pick::System
    } else {
        Pick::Own
    }
}

async fn local(
    root: Option<PathBuf>,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let config = local_config(root, settings, wish)?;
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

fn local_config(
    root: Option<PathBuf>,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<LocalConfig> {
    let root = settings.take_path("root")?.or(root);
    let mut config = match &root {
        Some(root) => LocalConfig::chroot(root),
        None => system(),
    };
    config.dir = take_store_dir(settings)?;
    if root.is_none() {
        config.real = config.dir.as_str().into();
    }
    for (name, field) in [
        ("state", &mut config.state),
        ("real", &mut config.real),
        ("log", &mut config.log),
    ] {
        if let Some(path) = settings.take_path(name)? {
            *field = path;
        }
    }
    config.read_only = settings.take_bool("read-only")?.unwrap_or(false);
    config.require_signatures = settings.take_bool("require-sigs")?;
    let afar = NonZeroUsize::new(FROM_AFAR).filter(|_| wish.from_afar);
    config.jobs = match (wish.jobs, afar) {
        (Some(jobs), _) => jobs,
        (None, Some(afar)) => config.jobs.max(afar),
        (None, None) => config.jobs,
    };
    skip(settings, STORE_SETTINGS);
    skip(settings, LOCAL_SETTINGS);
    Ok(config)
}

/// The directory that the paths of a store name: the setting of its URI, or that of all stores.
fn take_store_dir(settings: &mut Settings) -> Result<StoreDir> {
    settings
        .take_store_dir()?
        .map_or_else(default_store_dir, Ok)
}

/// The store that is in use on this machine, as Nix's environment variables have it.
fn system() -> LocalConfig {
    let mut config = LocalConfig::system();
    if let Some(state) = path_var("NIX_STATE_DIR") {
        config.state = state;
    }
    if let Some(log) = path_var("NIX_LOG_DIR") {
        config.log = log;
    }
    config
}

/// Leaves out settings that are known, and that make no difference here.
fn skip(settings: &mut Settings, names: &[&str]) {
    for name in names {
        settings.take(name);
    }
}

/// Nix's default.
const PRIORITY_OF_CACHES: i32 = 50;

/// Each takes the window of a decoder, 8 MiB with Nix's xz.
const FROM_AFAR: usize = 8;

const STORE_SETTINGS: &[&str] = &["trusted", "path-info-cache-size", "system-features"];
const LOCAL_SETTINGS: &[&str] = &[
    "priority",
    "want-mass-query",
    "build-dir",
    "ignore-gc-delete-failure",
    "use-roots-daemon",
];
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
            assert_eq!(shown(uri), expected);
        }
    }

    #[test]
    fn auto_is_what_nix_would_pick() {
        let folder = tempfile::tempdir().unwrap();
        let (state, socket) = (folder.path().join("state"), folder.path().join("socket"));
        assert_eq!(pick(&state, &socket, false), Pick::Own);
        assert_eq!(pick(&state, &socket, true), Pick::System);
        std::fs::write(&socket, "").unwrap();
        assert_eq!(pick(&state, &socket, false), Pick::Daemon);
        assert_eq!(pick(&state, &socket, true), Pick::Daemon);
        std::fs::create_dir(&state).unwrap();
        assert_eq!(
            pick(&state, &socket, false),
            Pick::System,
            "it can be written"
        );
    }
}
