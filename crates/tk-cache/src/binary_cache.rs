//! Binary caches, over any place that has named objects.

mod abilities;
pub(crate) mod add;
mod logs;
mod lookup;
mod nar;
mod staged;
mod upload;

use crate::{
    CacheWarnings, FolderObjects, blocking,
    compress::Compressor,
    journal::Journal,
    layout::{self, CACHE_INFO},
    narinfo_memory::NarInfoMemory,
    objects::{NarInfoCache, NarInfos, Objects},
    observer::NetworkObserver,
    pool::PackPool,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use staged::PackedAhead;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use tk_nar::fs::{descriptors, trees_at_once};
use tk_narinfo::{CacheInfo, Compression, MAX_CACHE_INFO_BYTES, NarInfo, PathInfo, SecretKey};
use tk_path::{Algorithm, HashPart, Method, NarHash, StoreDir, StorePath};
use tk_store::{AddItems, AddOptions, AddReport, ContentHasher, Error, NarStream, Result, Store};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore};

/// How to use a [`BinaryCache`].
#[derive(Debug, Clone)]
pub struct BinaryCacheConfig {
    /// The directory that the paths in the cache belong to.
    pub store_dir: StoreDir,
    /// How new NARs are compressed. Default: xz, as Nix, where that is built in.
    pub compression: Compression,
    /// The level; `None`: the default of the compression (Nix's −1).
    pub level: Option<i32>,
    /// Whether to write a listing (`.ls`) for each new path. None is written for a tree whose
    /// names are not UTF-8, since JSON cannot hold it.
    pub write_listing: bool,
    /// Whether to write, for each build id that a new path has debug symbols of, where they are
    /// (`debuginfo/`).
    pub index_debug_info: bool,
    /// Keys that sign each new path, beside the signatures it has.
    pub sign: Vec<Arc<SecretKey>>,
    /// NARs that are compressed at once, and threads that compress; fewer if the process may not have
    /// enough files open. Default: one for each core, at most eight.
    pub jobs: NonZeroUsize,
    /// NARs that are on their way over a network at once. Default: 32.
    pub uploads: NonZeroUsize,
    /// Whether the cache may be opened though it is not there yet. It is made when it is first
    /// written to. Without this, a place that has no `nix-cache-info` is not a cache, unless it is
    /// a folder.
    pub create: bool,
    /// Whether a path is refused whose references are neither in the cache nor come with it.
    /// Without this the cache may hold incomplete closures. Default: yes.
    pub require_references: bool,
    /// What `nix-cache-info` of a new cache says of its priority: the lower, the earlier it is
    /// asked. `None`: nothing, as Nix.
    pub priority: Option<i32>,
    /// The same, for whether the cache wants to be asked for many paths at once.
    pub want_mass_query: Option<bool>,
    /// What the cache said before. It is only believed by those who read: whether a path has to be
    /// uploaded is always asked anew. `None`: what a cache far away says is remembered by this
    /// process, for some minutes, and never that a path is absent.
    pub known: Option<Arc<dyn NarInfoCache>>,
    /// Who is told which questions are answered from there, and of what people should know though
    /// the work goes on.
    pub observer: Arc<dyn NetworkObserver>,
    /// Folder and identity of the [`Journal`] of what was uploaded, by which a killed push goes on
    /// where it stood. Where nothing can be written there, that is told to
    /// [`observer`](BinaryCacheConfig::observer), and a killed push begins anew.
    pub journal: Option<(PathBuf, String)>,
    /// Whether a packed NAR is refused that is not the file its narinfo describes (`FileHash`,
    /// `FileSize`). Nix looks at neither, and proxies that pack anew leave them as they were.
    /// Default: no, it is a warning.
    pub strict_file_hash: bool,
    /// Who is told what is wrong in the cache.
    pub warnings: CacheWarnings,
}

impl Default for BinaryCacheConfig {
    fn default() -> Self {
        let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let compression = if cfg!(feature = "xz") {
            Compression::Xz
        } else {
            Compression::None
        };
        BinaryCacheConfig {
            store_dir: StoreDir::default(),
            compression,
            level: None,
            write_listing: false,
            index_debug_info: false,
            sign: Vec::new(),
            jobs: cores.min(const { NonZeroUsize::new(8).unwrap() }),
            uploads: const { NonZeroUsize::new(32).unwrap() },
            create: false,
            require_references: true,
            priority: None,
            want_mass_query: None,
            known: None,
            observer: Arc::new(()),
            journal: None,
            strict_file_hash: false,
            warnings: CacheWarnings::default(),
        }
    }
}

/// A binary cache whose objects lie in a folder, on an HTTP server or in object storage.
///
/// What is added keeps this invariant at every moment, also when the process is killed: *a narinfo
/// that is there has its NAR and the narinfos of its references there too*, unless
/// [`require_references`](BinaryCacheConfig::require_references) is off. (A folder does not keep it
/// when the power fails: nothing is synced to the disk, as in Nix.) Any number of processes may
/// read and write one cache.
///
/// A clone is the same cache.
#[derive(Clone)]
pub struct BinaryCache(Arc<CacheInner>);

struct CacheInner {
    objects: Arc<dyn Objects>,
    config: BinaryCacheConfig,
    compressor: Compressor,
    /// What the cache says about itself, once somebody asked; `None` within: nothing.
    info: RwLock<Option<Option<CacheInfo>>>,
    /// Of what another answer was given than was remembered, until somebody hears of it.
    renewed: Mutex<BTreeSet<HashPart>>,
    /// Opened when something is uploaded; `None` within: it could not be.
    journal: Mutex<Option<Option<Arc<Journal>>>>,
    packers: PackPool,
    /// Permits for the packers that are free; each NAR that is packed for sending holds one.
    free_packers: Arc<Semaphore>,
    /// Memory of encoders that is free, in MiB.
    encoder_memory: Arc<Semaphore>,
    /// What [`CacheInner::encoder_memory`] is when nothing is under way.
    encoder_memory_of_all: u32,
    /// Memory for packed NARs that is free, in KiB.
    packed_memory: Arc<Semaphore>,
    /// By the hashes of their NARs.
    packed_ahead: Mutex<BTreeMap<NarHash, PackedAhead>>,
}

impl BinaryCache {
    /// Opens the cache at `objects` and reads what it says about itself, unless that is
    /// [`known`](BinaryCacheConfig::known).
    ///
    /// # Errors
    /// When the place cannot be asked; when it is not a folder, has no `nix-cache-info`, and
    /// [`create`](BinaryCacheConfig::create) is off; when the cache is for another store directory
    /// ([`Error::StoreDir`]); when there is no such compression or level.
    pub async fn open(objects: Arc<dyn Objects>, mut config: BinaryCacheConfig) -> Result<Self> {
        config.jobs = config.jobs.min(trees_at_once());
        // Each has a connection, and may have a file.
        let uploads = NonZeroUsize::new(descriptors() / 8).unwrap_or(NonZeroUsize::MIN);
        config.uploads = config.uploads.min(uploads);
        let compressor = Compressor::new(config.compression, config.level, config.jobs)
            .map_err(|e| Error::invalid(e.to_string()))?;
        let memory = (compressor.memory_of_all() / MIB) as u32;
        if config.known.is_none() && objects.folder().is_none() {
            config.known = Some(Arc::new(NarInfoMemory::default()));
        }
        let packers = match objects.staging() {
            Some(_) => config.jobs.get(),
            // A packer may wait for the network.
            None => config.jobs.get() + 1,
        };
        let inner = CacheInner {
            objects,
            packers: PackPool::new(packers),
            free_packers: Arc::new(Semaphore::new(packers)),
            config,
            compressor,
            info: RwLock::default(),
            renewed: Mutex::default(),
            journal: Mutex::default(),
            encoder_memory: Arc::new(Semaphore::new(memory as usize)),
            encoder_memory_of_all: memory,
            packed_memory: Arc::new(Semaphore::new(PACKED_MEMORY)),
            packed_ahead: Mutex::default(),
        };
        let info = inner.info().await?;
        inner.require_info(info)?;
        Ok(BinaryCache(Arc::new(inner)))
    }

    /// Opens the cache in the folder at `path`.
    ///
    /// # Errors
    /// Those of [`BinaryCache::open`], and that there is no such folder and
    /// [`create`](BinaryCacheConfig::create) is off.
    pub async fn open_folder(path: impl Into<PathBuf>, config: BinaryCacheConfig) -> Result<Self> {
        let objects = if config.create {
            FolderObjects::open_or_create(path).await?
        } else {
            FolderObjects::open(path).await?
        };
        BinaryCache::open(Arc::new(objects), config).await
    }

    /// The folder of this machine that the cache lies in, if it does.
    pub fn folder(&self) -> Option<&Path> {
        self.0.objects.folder()
    }

    /// The place where the objects of the cache lie.
    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.0.objects
    }

    /// What the cache says about itself.
    pub async fn cache_info(&self) -> Result<CacheInfo> {
        Ok(self.0.info().await?.unwrap_or_default())
    }

    /// Makes the cache and its `nix-cache-info`, unless that is there; true if it was not.
    /// [`Store::add`] does this by itself.
    pub async fn init(&self) -> Result<bool> {
        self.0.init().await
    }

    /// The text of `nix-cache-info` as it is now, whatever is remembered; `None` if there is none.
    pub async fn read_cache_info(&self) -> Result<Option<Vec<u8>>> {
        let text = self
            .0
            .objects
            .read(CACHE_INFO, MAX_CACHE_INFO_BYTES)
            .await?;
        Ok(text.map(Into::into))
    }

    /// Puts `text` in place of `nix-cache-info`. Clients that remember what it said learn of it when
    /// they ask again.
    pub async fn write_cache_info(&self, text: Vec<u8>) -> Result<()> {
        self.0.put(CACHE_INFO, text.into()).await?;
        *self.0.info.write().await = None;
        Ok(())
    }

    /// Packs `nar` before it is known which path it will be, and returns that path: the one that
    /// its content and `name` make, without references.
    ///
    /// Nobody sees anything of it until the path is added to this cache: then its NAR is not read
    /// once more. What is not added is removed when the last clone of this is dropped.
    ///
    /// # Errors
    /// When the NAR breaks off or is not one, when it cannot be written, when `method` and
    /// `algorithm` do not go together, or when the place takes no object before its name is known
    /// ([`Error::Unsupported`]): only folders do.
    pub async fn pack_ahead(
        &self,
        name: &str,
        (method, algorithm): (Method, Algorithm),
        nar: NarStream,
    ) -> Result<PathInfo> {
        let hasher = ContentHasher::new(method, algorithm)?;
        staged::pack_ahead(&self.0, name.to_owned(), hasher, nar).await
    }

    /// Whether there may be a path named `name`. A cache that has many paths is not searched: there
    /// may be one.
    ///
    /// # Errors
    /// HTTP servers cannot list.
    pub async fn may_have_name(&self, name: &str) -> Result<bool> {
        let mut parts = Vec::new();
        let mut names = self.0.objects.list("");
        while let Some(listed) = names.next().await {
            parts.extend(layout::part_of_narinfo(&listed?));
            if parts.len() > MOST_SEARCHED {
                return Ok(true);
            }
        }
        let parts = futures::stream::iter(parts).boxed();
        let mut found = lookup::narinfos(&self.0, parts, |part| *part);
        while let Some((_, narinfo)) = found.next().await {
            // One that cannot be read may be it.
            if narinfo.map_or(true, |narinfo| {
                narinfo.is_some_and(|narinfo| narinfo.info.path.name() == name)
            }) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Everything that the cache has. Lists it, and reads every narinfo.
    ///
    /// # Errors
    /// HTTP servers cannot list. A narinfo that cannot be read is an error too:
    /// [`BinaryCache::all_narinfos`] goes on.
    pub async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        let all = self.all_narinfos().await?;
        let paths = all.map(|(_, narinfo)| narinfo.map(|narinfo| narinfo.info.path));
        paths.try_collect().await
    }

    /// The narinfo of everything that the cache has, in no order, each with its name. One that
    /// cannot be read does not end the others. Each is read once, and from memory if it is known.
    ///
    /// # Errors
    /// HTTP servers cannot list.
    pub async fn all_narinfos(&self) -> Result<BoxStream<'_, (String, Result<NarInfo>)>> {
        let mut parts = Vec::new();
        let mut names = self.0.objects.list("");
        while let Some(name) = names.next().await {
            parts.extend(layout::part_of_narinfo(&name?));
        }
        let found = lookup::narinfos(&self.0, futures::stream::iter(parts).boxed(), |part| *part);
        let named = |(part, found): (HashPart, Result<Option<NarInfo>>)| async move {
            // It may be gone since it was listed.
            let found = found.transpose()?;
            Some((layout::narinfo(&part), found))
        };
        Ok(found.filter_map(named).boxed())
    }

    /// The keys that sign what is added.
    pub fn signing_keys(&self) -> &[Arc<SecretKey>] {
        &self.0.config.sign
    }

    /// Puts each narinfo in place of what is there of its path, fields that are unknown here
    /// included. The NARs that they name must be there. One result for each, in order.
    pub async fn write_narinfos(&self, narinfos: Vec<NarInfo>) -> Vec<(StorePath, Result<()>)> {
        let dir = &self.0.config.store_dir;
        let texts = narinfos.into_iter().map(|narinfo| {
            let text = layout::narinfo_text(&narinfo, dir);
            (narinfo.info.path, text)
        });
        let batches = futures::stream::iter(texts).chunks(self.0.objects.batch());
        let written = batches
            .map(|batch| self.0.clone().publish(batch))
            .buffered(self.0.objects.parallel());
        written.map(futures::stream::iter).flatten().collect().await
    }

    /// The narinfo of a path; `None` if it is absent.
    ///
    /// # Errors
    /// A cache that cannot be asked, and a narinfo that cannot be parsed or is about something
    /// else, are errors, never absences.
    pub async fn narinfo(&self, path: &StorePath) -> Result<Option<NarInfo>> {
        let found = self.0.narinfo_of_part(&path.to_hash_part()).await?;
        Ok(found.filter(|narinfo| narinfo.info.path == *path))
    }
}

#[async_trait]
impl Store for BinaryCache {
    fn dir(&self) -> &StoreDir {
        &self.0.config.store_dir
    }

    /// One request for each path, and none is answered from memory: the narinfo is read.
    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        Ok(self.0.present(paths.clone()).await?.into_keys().collect())
    }

    async fn present(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> Result<BTreeMap<StorePath, Option<PathInfo>>> {
        self.0.present(paths.clone()).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let info = |(path, found): (StorePath, Result<Option<NarInfo>>)| {
            found.map(|found| (path, found.map(|narinfo| narinfo.info)))
        };
        self.narinfos(paths).map(info).boxed()
    }

    fn each_info<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<PathInfo>>)> {
        let info = |narinfo: Option<NarInfo>| narinfo.map(|narinfo| narinfo.info);
        let answers = self.narinfos(paths);
        answers
            .map(move |(path, found)| (path, found.map(info)))
            .boxed()
    }

    /// Ends with an error when more comes out than the NAR should have. Compares hash and size of the
    /// packed file with the narinfo on the way: what differs is a warning, or with
    /// `strict_file_hash` an error at the end of the stream.
    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.0.nar(path).await
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.0.init().await?;
        let report = add::run(&self.0, items, options).await;
        self.0.objects.sweep().await;
        let report = report?;
        if report.failed.is_empty() {
            self.0.finish_journal().await?;
        }
        Ok(report)
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let found = self.0.narinfo_of_part(part).await?;
        Ok(found.map(|narinfo| narinfo.info.path))
    }

    async fn renew(&self, path: &StorePath) -> Result<bool> {
        self.0.renew(path.to_hash_part()).await
    }

    async fn tidy(&self) -> Result<()> {
        self.0.finish_journal().await
    }
}

impl NarInfos for BinaryCache {
    fn store_dir(&self) -> &StoreDir {
        &self.0.config.store_dir
    }

    fn narinfos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        let found = lookup::narinfos(&self.0, paths, StorePath::to_hash_part);
        // As Nix, a narinfo with the same hash part and another name is no answer.
        let about = |(path, found): (StorePath, Result<Option<NarInfo>>)| {
            let found = found.map(|found| found.filter(|narinfo| narinfo.info.path == path));
            (path, found)
        };
        found.map(about).boxed()
    }
}

/// Prints the canonical URI of the cache.
impl fmt::Display for BinaryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for BinaryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BinaryCache")
            .field("objects", &self.0.objects)
            .field("config", &self.0.config)
            .finish()
    }
}

impl fmt::Display for CacheInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

impl CacheInner {
    async fn info(&self) -> Result<Option<CacheInfo>> {
        if let Some(info) = &*self.info.read().await {
            return Ok(info.clone());
        }
        let mut info = self.info.write().await;
        if let Some(info) = &*info {
            return Ok(info.clone());
        }
        Ok(info.insert(self.read_info().await?).clone())
    }

    async fn read_info(&self) -> Result<Option<CacheInfo>> {
        // Who writes needs to know what is there now.
        if let Some(known) = self.known()
            && !self.config.create
        {
            let text = blocking(move || Ok(known.cache_info())).await?;
            if let Some(Some(text)) = text
                && let Ok(info) = CacheInfo::parse(&text)
            {
                return Ok(Some(info));
            }
        }
        let text = self.objects.read(CACHE_INFO, MAX_CACHE_INFO_BYTES).await?;
        let parse = |text: &Bytes| {
            CacheInfo::parse(text).map_err(|e| Error::malformed(self.objects.place(CACHE_INFO), e))
        };
        let info = text.as_ref().map(parse).transpose()?;
        // Any page can be read as one that says nothing.
        let says = info.as_ref().is_some_and(|info| info.store_dir.is_some());
        if let (Some(known), Some(text)) = (self.known(), text.filter(|_| says)) {
            blocking(move || {
                known.put_cache_info(Some(&text));
                Ok(())
            })
            .await?;
        }
        Ok(info)
    }

    /// That `info` is that of a cache, and for our store directory.
    fn require_info(&self, info: Option<CacheInfo>) -> Result<()> {
        match info.map(|info| info.store_dir) {
            Some(Some(theirs)) if theirs != self.config.store_dir.as_str() => {
                Err(Error::StoreDir {
                    store: self.to_string(),
                    theirs,
                    ours: self.config.store_dir.clone(),
                })
            }
            Some(_) => Ok(()),
            None if self.config.create || self.objects.folder().is_some() => Ok(()),
            None => Err(Error::invalid(format!(
                "{self} is not a binary cache: it has no {CACHE_INFO}"
            ))),
        }
    }

    async fn init(&self) -> Result<bool> {
        self.objects.prepare().await?;
        if self.objects.folder().is_some() {
            // It costs nothing to ask again: somebody may have made it since it was opened.
            *self.info.write().await = None;
        }
        let info = self.info().await?;
        if info.is_some() {
            return self.require_info(info).map(|()| false);
        }
        let config = &self.config;
        let info = layout::cache_info(&config.store_dir, config.want_mass_query, config.priority);
        let text = Bytes::from(info.print());
        let mime = layout::mime_type(CACHE_INFO);
        let made = self.objects.write(CACHE_INFO, text, mime, true).await?;
        *self.info.write().await = made.then_some(Some(info));
        if !made {
            // Somebody else was faster, perhaps for another store directory.
            self.require_info(self.read_info().await?)?;
        }
        Ok(made)
    }

    fn known(&self) -> Option<Arc<dyn NarInfoCache>> {
        self.config.known.clone()
    }

    /// What this process changed is no longer what the cache said.
    async fn forget(&self, parts: Vec<HashPart>) {
        if let Some(known) = self.known() {
            let forget = move || {
                known.forget(&parts);
                Ok(())
            };
            // A fault of the memory is none of the cache.
            let _ = blocking(forget).await;
        }
    }

    /// Waits until there is memory for one more encoder, of a NAR of `size` bytes if that is known.
    async fn encoder_room(&self, size: Option<u64>) -> OwnedSemaphorePermit {
        let memory = self.compressor.memory(size).div_ceil(MIB);
        let memory = memory.min(u64::from(self.encoder_memory_of_all)) as u32;
        take(&self.encoder_memory, memory).await
    }

    /// The journal, if there is to be one and it can be written.
    fn journal(&self) -> Option<Arc<Journal>> {
        let (folder, identity) = self.config.journal.as_ref()?;
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || match Journal::open(folder, identity) {
            Ok(journal) => Some(Arc::new(journal)),
            Err(error) => {
                self.warn_of_journal(&error);
                None
            }
        };
        journal.get_or_insert_with(open).clone()
    }

    fn warn_of_journal(&self, error: &Error) {
        let text = format!(
            "what arrives in {self} is not noted, so that a push that is killed begins anew: {}",
            error.to_line()
        );
        self.config.observer.warned(&text);
    }

    /// After all that was to be uploaded is there.
    async fn finish_journal(&self) -> Result<()> {
        // One that another process left is finished, too, though nothing was left to upload.
        let Some(journal) = self.journal() else {
            return Ok(());
        };
        self.objects.tidy(&journal).await?;
        // A new one for what comes later.
        let mut held = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        *held = None;
        let fault = journal.fault().or(journal.finish().err());
        if let Some(fault) = fault {
            self.warn_of_journal(&fault);
            *held = Some(None);
        }
        Ok(())
    }
}

/// Narinfos that are read to find a name.
const MOST_SEARCHED: usize = 2000;

/// Packed NARs that wait to be sent, in KiB.
const PACKED_MEMORY: usize = 24 << 10;

const MIB: u64 = 1 << 20;

async fn take(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    let permit = semaphore.clone().acquire_many_owned(permits).await;
    permit.expect("it is never closed")
}
