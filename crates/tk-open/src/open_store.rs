use futures::{StreamExt, stream::BoxStream};
use std::{collections::BTreeMap, num::NonZeroUsize, path::Path, sync::Arc};
use tk_cache::{
    BinaryCache,
    checker::{CacheAnswer, Checker, StoreInfos},
    objects::NarInfos,
};
#[cfg(feature = "daemon")]
use tk_daemon::{DaemonStore, serve::ServeStore};
#[cfg(feature = "local")]
use tk_local::LocalStore;
use tk_narinfo::{NarInfo, SecretKey};
use tk_path::StorePath;
use tk_store::{
    Abilities, AddContent, AddSignatures, Closure, Error, MemoryStore, Result, Roots,
    SeveralStores, SigCheck, Store, StoreDescription,
};

/// An opened store: what it can do, and what there is to know of it beyond that.
#[derive(Debug, Clone)]
pub struct OpenStore {
    abilities: Abilities,
    /// It, where it is a binary cache.
    cache: Option<Arc<BinaryCache>>,
    /// It, where it is a store on disk.
    #[cfg(feature = "local")]
    local: Option<Arc<LocalStore>>,
    /// It, where it is several as one, to read from; and these, in the same order.
    several: Option<(Arc<SeveralStores>, Vec<OpenStore>)>,
    instead: Instead,
}

/// What to do instead, where a store cannot do something. `STORE` stands for its name.
#[derive(Debug, Clone, Copy)]
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
            #[cfg(feature = "local")]
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

#[cfg(feature = "local")]
impl From<LocalStore> for OpenStore {
    fn from(store: LocalStore) -> Self {
        OpenStore {
            local: Some(Arc::new(store.clone())),
            ..store.abilities().into()
        }
    }
}

#[cfg(feature = "daemon")]
impl From<DaemonStore> for OpenStore {
    fn from(store: DaemonStore) -> Self {
        Arc::new(store).abilities().into()
    }
}

#[cfg(feature = "daemon")]
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
    pub(crate) fn several(store: SeveralStores, stores: Vec<OpenStore>) -> Self {
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
    #[cfg(feature = "local")]
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
        let instead = || instead.replace("STORE", &self.store().to_string());
        ability.ok_or_else(|| Error::invalid(instead()))
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

    /// What the store says of `paths`. What cannot be read does not end the others.
    pub async fn look(&self, paths: &[StorePath]) -> Looked {
        self.looked(Checker::new(vec![self.narinfos()]), paths)
            .await
    }

    /// What the store says of `paths` and of all they refer to, as [`OpenStore::look`].
    pub async fn look_at_closure(&self, paths: &[StorePath]) -> Looked {
        let checker = Checker::new(vec![self.narinfos()]).closure(true);
        self.looked(checker, paths).await
    }

    async fn looked(&self, checker: Checker, paths: &[StorePath]) -> Looked {
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
            Some(description) => description.describe().await,
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
            processors.max(READ_FROM_AFAR)
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
                #[cfg(feature = "local")]
                local: None,
                several: Some((shared, stores)),
                instead: self.instead,
            },
        }
    }

    /// How late it is asked where there are several: the lower, the earlier. As Nix has it.
    pub(crate) async fn priority(&self) -> Result<i32> {
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
#[derive(Debug, Default)]
pub struct ListedPaths {
    /// What it says of each path.
    pub narinfos: BTreeMap<StorePath, NarInfo>,
    /// What could not be read, by its name, and why.
    pub unreadable: Vec<(String, Error)>,
}

impl ListedPaths {
    async fn take(
        mut self,
        mut all: BoxStream<'_, (String, Result<NarInfo>)>,
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
#[derive(Debug, Default)]
pub struct Looked {
    /// What it has.
    pub listed: ListedPaths,
    /// What it has not.
    pub absent: Vec<StorePath>,
}

/// NARs that are read at once from far away. Each takes the window of a decoder, 8 MiB with Nix's xz.
const READ_FROM_AFAR: usize = 12;

/// Nix's default.
const PRIORITY_OF_CACHES: i32 = 50;
