//! Binary caches in folders: `file://`.

mod abilities;
mod files;
mod infos;
mod logs;
mod nar;
mod upload;

use crate::{
    CacheWarning, CacheWarnings, add, blocking,
    compress::Compressor,
    layout::{self, CACHE_INFO, NAR_FOLDER},
    objects::NarInfos,
    pool::Pool,
};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};
use tk_nar::fs::trees_at_once;
use tk_narinfo::{
    CacheInfo, Compression, MAX_CACHE_INFO_BYTES, MAX_NARINFO_BYTES, NarInfo, PathInfo, SecretKey,
    Signature,
};
use tk_path::{Algorithm, HashPart, Method, NarHash, StoreDir, StorePath};
use tk_store::{
    AddItems, AddOptions, AddReport, AddSignatures, ContentHasher, Error, NarStream, Result, Store,
};
use tokio::sync::Semaphore;
use upload::PackedAhead;

/// How to open a [`FolderCache`].
#[derive(Debug, Clone)]
pub struct FolderConfig {
    /// The folder.
    pub path: PathBuf,
    /// The directory that the paths in the cache belong to.
    pub store_dir: StoreDir,
    /// How new NARs are compressed. Default: xz, as Nix.
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
    /// NARs that are written at once, and threads that compress; fewer if the process may not have
    /// enough files open. Default: one for each core, at most eight.
    pub jobs: NonZeroUsize,
    /// Whether the folder may be made, when the cache is first written to.
    pub create: bool,
    /// Whether a path is refused whose references are neither in the cache nor come with it.
    /// Without this the cache may hold incomplete closures. Default: yes.
    pub require_references: bool,
    /// What `nix-cache-info` of a new cache says of its priority: the lower, the earlier it is
    /// asked. `None`: nothing, as Nix.
    pub priority: Option<i32>,
    /// The same, for whether the cache wants to be asked for many paths at once.
    pub want_mass_query: Option<bool>,
    /// Whether a packed NAR is refused that is not the file its narinfo describes (`FileHash`,
    /// `FileSize`), which Nix does not look at. Default: no, it is a warning.
    pub strict_file_hash: bool,
    /// Who is told what is wrong in the cache.
    pub warnings: CacheWarnings,
}

impl FolderConfig {
    /// The defaults for a cache in the folder `path`, for paths of `/nix/store`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        FolderConfig {
            path: path.into(),
            store_dir: StoreDir::default(),
            compression: Compression::Xz,
            level: None,
            write_listing: false,
            index_debug_info: false,
            sign: Vec::new(),
            jobs: cores.min(const { NonZeroUsize::new(8).unwrap() }),
            create: false,
            require_references: true,
            priority: None,
            want_mass_query: None,
            strict_file_hash: false,
            warnings: CacheWarnings::default(),
        }
    }
}

/// A binary cache in a folder, as Nix's `file://` stores.
///
/// What is added keeps this invariant at every moment, also when the process is killed: *a narinfo
/// that is there has its NAR and the narinfos of its references there too*. (Not when the power
/// fails: nothing is synced to the disk, as in Nix. And not if
/// [`require_references`](FolderConfig::require_references) is off.) Any number of processes may
/// read and write one cache.
///
/// A clone is the same cache.
#[derive(Clone)]
pub struct FolderCache(Arc<Inner>);

struct Inner {
    config: FolderConfig,
    /// [`FolderConfig::path`] made absolute.
    root: PathBuf,
    compressor: Compressor,
    /// What the encoders may hold together, in MiB.
    memory: u32,
    /// What is left of it.
    free_memory: Arc<Semaphore>,
    /// One thread for each upload.
    packers: Pool,
    /// By the hashes of their NARs.
    packed_ahead: Mutex<BTreeMap<NarHash, PackedAhead>>,
}

impl FolderCache {
    /// Opens the cache. A folder without `nix-cache-info` is taken for a cache that says nothing
    /// about itself, as Nix does.
    ///
    /// # Errors
    /// When there is no such folder and [`FolderConfig::create`] is off; when the cache is for
    /// another store directory ([`Error::StoreDir`]); when there is no such compression or level.
    pub async fn open(config: FolderConfig) -> Result<Self> {
        blocking(move || Inner::open(config))
            .await
            .map(|inner| FolderCache(Arc::new(inner)))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0.root
    }

    /// What the cache says about itself.
    pub async fn cache_info(&self) -> Result<CacheInfo> {
        let inner = self.0.clone();
        blocking(move || Ok(inner.info()?.unwrap_or_default())).await
    }

    /// Makes the folder and its `nix-cache-info`, unless they are there; true if the latter was
    /// not. [`Store::add`] does this by itself.
    pub async fn init(&self) -> Result<bool> {
        let inner = self.0.clone();
        blocking(move || inner.init()).await
    }

    /// The text of `nix-cache-info` as it is now; `None` if there is none.
    pub async fn read_cache_info(&self) -> Result<Option<Vec<u8>>> {
        let inner = self.0.clone();
        blocking(move || {
            let path = inner.root.join(CACHE_INFO);
            files::read(&path, MAX_CACHE_INFO_BYTES).map_err(|e| reading(&path, e))
        })
        .await
    }

    /// Puts `text` in place of `nix-cache-info`, at once.
    pub async fn write_cache_info(&self, text: Vec<u8>) -> Result<()> {
        let inner = self.0.clone();
        blocking(move || {
            let path = inner.root.join(CACHE_INFO);
            let doing = |e| Error::io(format!("writing {}", path.display()), e);
            files::write(&path, &text).map_err(doing)
        })
        .await
    }

    /// Packs `nar` before it is known which path it will be, and returns that path: the one that
    /// its content and `name` make, without references.
    ///
    /// Nobody sees anything of it until the path is added to this cache: then its NAR is not read
    /// once more. What is not added is removed when the last clone of this is dropped.
    ///
    /// # Errors
    /// When the NAR breaks off or is none, when it cannot be written, or when `method` and
    /// `algorithm` do not go together.
    pub async fn pack_ahead(
        &self,
        name: &str,
        (method, algorithm): (Method, Algorithm),
        nar: NarStream,
    ) -> Result<PathInfo> {
        let hasher = ContentHasher::new(method, algorithm)?;
        let inner = self.0.clone();
        inner.pack_ahead(name.to_owned(), hasher, nar).await
    }

    /// Whether there may be a path named `name`. A cache that has many paths is not searched: there
    /// may be one.
    pub async fn may_have_name(&self, name: &str) -> Result<bool> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        blocking(move || inner.may_have_name(&name)).await
    }

    /// Everything that the cache has. Reads every narinfo.
    ///
    /// # Errors
    /// A narinfo that cannot be read is an error: [`FolderCache::all_narinfos`] goes on.
    pub async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        let all = self.all_narinfos().await?;
        let paths = all.map(|(_, narinfo)| narinfo.map(|narinfo| narinfo.info.path));
        paths.try_collect().await
    }

    /// The narinfo of everything that the cache has, in no order, each with the name of its file.
    /// One that cannot be read does not end the others.
    pub async fn all_narinfos(&self) -> Result<BoxStream<'_, (String, Result<NarInfo>)>> {
        let inner = self.0.clone();
        let parts = blocking(move || inner.parts()).await?;
        let found = self.by_parts(futures::stream::iter(parts).boxed(), |part| *part);
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

    /// The narinfo of a path; `None` if it is absent.
    ///
    /// # Errors
    /// A narinfo that cannot be read or parsed, or is about something else, is an error that names
    /// the file, never an absence.
    pub async fn narinfo(&self, path: &StorePath) -> Result<Option<NarInfo>> {
        let (inner, path) = (self.0.clone(), path.clone());
        blocking(move || inner.narinfo(&path)).await
    }
}

#[async_trait]
impl Store for FolderCache {
    fn dir(&self) -> &StoreDir {
        &self.0.config.store_dir
    }

    /// Reads the narinfo of each path.
    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        Ok(self.0.present(paths.clone()).await?.into_keys().collect())
    }

    async fn present(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> Result<BTreeMap<StorePath, Option<PathInfo>>> {
        let present = self.0.present(paths.clone()).await?;
        let some = |(path, info)| (path, Some(info));
        Ok(present.into_iter().map(some).collect())
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let look = |paths: Vec<StorePath>| {
            let inner = self.0.clone();
            let look = move |path| inner.narinfo(&path).map(|n| (path, n.map(|n| n.info)));
            blocking(move || Ok(paths.into_iter().map(look).collect::<Vec<_>>()))
        };
        let answers = |batch: Result<Vec<_>>| {
            futures::stream::iter(batch.unwrap_or_else(|error| vec![Err(error)]))
        };
        // What is at hand goes to one thread; what comes meanwhile to the next.
        let batches = paths.ready_chunks(BATCH).map(look);
        batches
            .buffer_unordered(self.0.config.jobs.get())
            .flat_map(answers)
            .boxed()
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
        let (inner, path) = (self.0.clone(), path.clone());
        blocking(move || nar::open(inner, path))
            .await
            .map(nar::stream)
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        let inner = self.0.clone();
        blocking(move || inner.prepare()).await?;
        let report = add::run(&self.0, items, options).await;
        let inner = self.0.clone();
        blocking(move || {
            inner.sweep();
            Ok(())
        })
        .await?;
        report
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let (inner, part) = (self.0.clone(), *part);
        let found = blocking(move || inner.narinfo_of_part(&part)).await?;
        Ok(found.map(|narinfo| narinfo.info.path))
    }
}

#[async_trait]
impl AddSignatures for FolderCache {
    /// Fields of the narinfo that are unknown here are kept.
    async fn add_signatures(
        &self,
        path: &StorePath,
        signatures: &BTreeSet<Signature>,
    ) -> Result<()> {
        let (inner, path, signatures) = (self.0.clone(), path.clone(), signatures.clone());
        blocking(move || inner.add_signatures(&path, signatures)).await
    }
}

/// The canonical URI.
impl fmt::Display for FolderCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for FolderCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FolderCache").field(&self.0.config).finish()
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.root.to_string_lossy();
        write!(f, "file://{}", utf8_percent_encode(&path, NOT_IN_URLS))
    }
}

impl Inner {
    fn open(mut config: FolderConfig) -> Result<Self> {
        config.jobs = config.jobs.min(trees_at_once());
        let doing = || format!("opening the binary cache in {}", config.path.display());
        let root = std::path::absolute(&config.path).map_err(|e| Error::io(doing(), e))?;
        let root = root.components().collect();
        let compressor = Compressor::new(config.compression, config.level, config.jobs)
            .map_err(|e| Error::invalid(e.to_string()))?;
        match fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Error::io(doing(), io::ErrorKind::NotADirectory)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && config.create => {}
            Err(e) => return Err(Error::io(doing(), e)),
        }
        let memory = (compressor.memory_of_all() / MIB) as u32;
        let inner = Inner {
            packers: Pool::new(config.jobs.get()),
            packed_ahead: Mutex::default(),
            config,
            root,
            compressor,
            memory,
            free_memory: Arc::new(Semaphore::new(memory as usize)),
        };
        inner.check_info()?;
        Ok(inner)
    }

    fn info(&self) -> Result<Option<CacheInfo>> {
        let path = self.root.join(CACHE_INFO);
        let text = files::read(&path, MAX_CACHE_INFO_BYTES).map_err(|e| reading(&path, e))?;
        let parse = |text| {
            CacheInfo::parse(text).map_err(|e| Error::malformed(path.display().to_string(), e))
        };
        text.map(parse).transpose()
    }

    /// Whether the cache says anything about itself; an error if it is for another store.
    fn check_info(&self) -> Result<bool> {
        let info = self.info()?;
        match info.as_ref().and_then(|info| info.store_dir.as_deref()) {
            Some(theirs) if theirs != self.config.store_dir.as_str() => Err(Error::StoreDir {
                store: self.to_string(),
                theirs: theirs.to_owned(),
                ours: self.config.store_dir.clone(),
            }),
            _ => Ok(info.is_some()),
        }
    }

    fn init(&self) -> Result<bool> {
        let making = |e| {
            Error::io(
                format!("making the binary cache {}", self.root.display()),
                e,
            )
        };
        if self.config.create {
            fs::create_dir_all(&self.root).map_err(making)?;
        }
        files::make_folder(&self.root.join(NAR_FOLDER)).map_err(making)?;
        // Again, because another process may have made it since it was opened.
        if self.check_info()? {
            return Ok(false);
        }
        let FolderConfig {
            store_dir,
            want_mass_query,
            priority,
            ..
        } = &self.config;
        let info = layout::cache_info(store_dir, *want_mass_query, *priority);
        files::write(&self.root.join(CACHE_INFO), info.print().as_bytes()).map_err(making)?;
        Ok(true)
    }

    /// Before something is added.
    fn prepare(&self) -> Result<()> {
        self.init()?;
        self.sweep();
        Ok(())
    }

    fn sweep(&self) {
        files::sweep(&self.root);
        files::sweep(&self.root.join(NAR_FOLDER));
        files::sweep(&self.root.join(layout::DEBUG_FOLDER));
    }

    /// What is there of `paths`, with the narinfo of each. A broken one counts as absent.
    async fn present(
        self: &Arc<Self>,
        paths: BTreeSet<StorePath>,
    ) -> Result<BTreeMap<StorePath, PathInfo>> {
        let inner = self.clone();
        if !blocking(move || inner.is_there()).await? {
            return Ok(BTreeMap::new());
        }
        let paths: Vec<_> = paths.into_iter().collect();
        let batches: Vec<_> = paths.chunks(PRESENT_BATCH).map(<[_]>::to_vec).collect();
        let look = |batch: Vec<StorePath>| {
            let inner = self.clone();
            blocking(move || {
                let infos = batch.into_iter().map(|path| inner.present_info(path));
                infos
                    .filter_map(Result::transpose)
                    .collect::<Result<Vec<_>>>()
            })
        };
        let infos = futures::stream::iter(batches).map(look);
        let mut infos = infos.buffer_unordered(self.config.jobs.get());
        let mut present = BTreeMap::new();
        while let Some(infos) = infos.try_next().await? {
            present.extend(infos.into_iter().map(|info| (info.path.clone(), info)));
        }
        Ok(present)
    }

    /// Whether there is a folder; one that is still to be made has nothing in it.
    fn is_there(&self) -> Result<bool> {
        match fs::read_dir(&self.root) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.config.create => Ok(false),
            Err(e) => Err(reading(&self.root, e)),
        }
    }

    fn present_info(&self, path: StorePath) -> Result<Option<PathInfo>> {
        match self.narinfo(&path) {
            Ok(found) => Ok(found.map(|narinfo| narinfo.info)),
            Err(error @ Error::Malformed { .. }) => {
                self.config.warnings.tell(|| CacheWarning::BrokenNarInfo {
                    path,
                    store: self.to_string(),
                    error,
                });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// As Nix, a narinfo with the same hash part and another name is no answer.
    fn narinfo(&self, path: &StorePath) -> Result<Option<NarInfo>> {
        let found = self.narinfo_of_part(&path.to_hash_part())?;
        Ok(found.filter(|narinfo| narinfo.info.path == *path))
    }

    fn narinfo_of_part(&self, part: &HashPart) -> Result<Option<NarInfo>> {
        let file = self.root.join(layout::narinfo(part));
        let text = files::read(&file, MAX_NARINFO_BYTES).map_err(|e| reading(&file, e))?;
        text.map(|text| self.parse(&file, part, &text)).transpose()
    }

    fn parse(&self, file: &Path, part: &HashPart, text: &[u8]) -> Result<NarInfo> {
        let malformed = |e| Error::malformed(file.display().to_string(), e);
        let narinfo = NarInfo::parse(&self.config.store_dir, text).map_err(malformed)?;
        narinfo.expect(part).map_err(malformed)?;
        Ok(narinfo)
    }

    fn may_have_name(&self, name: &str) -> Result<bool> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(reading(&self.root, e)),
        };
        let mut parts = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| reading(&self.root, e))?.file_name();
            parts.extend(entry.to_str().and_then(layout::part_of_narinfo));
            if parts.len() > MOST_SEARCHED {
                return Ok(true);
            }
        }
        // One that cannot be read may be it.
        let may_be = |part| match self.narinfo_of_part(&part) {
            Ok(narinfo) => narinfo.is_some_and(|narinfo| narinfo.info.path.name() == name),
            Err(_) => true,
        };
        Ok(parts.into_iter().any(may_be))
    }

    fn packed_ahead(&self) -> MutexGuard<'_, BTreeMap<NarHash, PackedAhead>> {
        let ahead = self.packed_ahead.lock();
        ahead.unwrap_or_else(PoisonError::into_inner)
    }

    /// The hash parts of all narinfos.
    fn parts(&self) -> Result<Vec<HashPart>> {
        if !self.is_there()? {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.root).map_err(|e| reading(&self.root, e))?;
        let part = |entry: io::Result<fs::DirEntry>| match entry {
            Ok(entry) => entry
                .file_name()
                .to_str()
                .and_then(layout::part_of_narinfo)
                .map(Ok),
            Err(error) => Some(Err(reading(&self.root, error))),
        };
        entries.filter_map(part).collect()
    }

    fn add_signatures(&self, path: &StorePath, signatures: BTreeSet<Signature>) -> Result<()> {
        let part = path.to_hash_part();
        let file = self.root.join(layout::narinfo(&part));
        let not_found = || Error::NotFound {
            path: path.clone(),
            store: self.to_string(),
        };
        // Until it is dropped, nobody else adds signatures to this path.
        let locked = files::lock(&file)
            .map_err(|e| reading(&file, e))?
            .ok_or_else(not_found)?;
        let text = files::read_open(&locked, MAX_NARINFO_BYTES).map_err(|e| reading(&file, e))?;
        let mut narinfo = self.parse(&file, &part, &text)?;
        if narinfo.info.path != *path {
            return Err(not_found());
        }
        let before = narinfo.info.signatures.len();
        narinfo.info.signatures.extend(signatures);
        if narinfo.info.signatures.len() == before {
            return Ok(());
        }
        let text = layout::narinfo_text(&narinfo, &self.config.store_dir);
        files::write(&file, text.as_bytes()).map_err(|e| writing(&file, e))
    }
}

fn reading(path: &Path, error: impl Into<io::Error>) -> Error {
    Error::io(format!("reading {}", path.display()), error)
}

fn writing(path: &Path, error: impl Into<io::Error>) -> Error {
    Error::io(format!("writing {}", path.display()), error)
}

/// Narinfos that one thread reads before it answers.
const BATCH: usize = 64;

/// Narinfos that are read to find a name.
const MOST_SEARCHED: usize = 2000;
/// The same, where all are wanted and none is waited for.
const PRESENT_BATCH: usize = 256;

const MIB: u64 = 1 << 20;

const NOT_IN_URLS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
