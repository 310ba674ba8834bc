use crate::{LocalConfig, add, db::Database, inner::LocalInner, roots::TempRoots};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tk_nar::fs::{CaseHack, DumpOptions};
use tk_narinfo::{PathInfo, Signature};
use tk_path::{Algorithm, HashPart, Method, References, StoreDir, StorePath};
use tk_store::{
    AddContent, AddItems, AddOptions, AddReport, AddSignatures, Error, NarStream, Result, Store,
    blocking, nar, own_thread,
};

/// A store on disk, in Nix's format. Cheap to clone; all clones are the same open store.
///
/// # Security
/// Whoever can write the folders of the store can make it lie. Content is verified when it is
/// added, not when it is read.
#[derive(Clone)]
pub struct LocalStore {
    inner: Arc<LocalInner>,
    /// Of this process, or of one client.
    roots: Arc<TempRoots>,
    /// What the next client of a server gets: the same, unless the store was made anew meanwhile.
    newest: Arc<Mutex<Arc<LocalInner>>>,
}

impl LocalStore {
    /// Opens the store, and makes it when there is none (unless `config.read_only`).
    ///
    /// # Errors
    /// When the folders cannot be made or written, when the database is damaged, or has a schema
    /// other than 10.
    pub async fn open(config: LocalConfig) -> Result<Self> {
        Ok(Self::of(
            blocking(move || LocalInner::open(config, true)).await?,
        ))
    }

    /// As [`LocalStore::open`], but makes nothing.
    ///
    /// # Errors
    /// Also when there is no store.
    pub async fn open_existing(config: LocalConfig) -> Result<Self> {
        Ok(Self::of(
            blocking(move || LocalInner::open(config, false)).await?,
        ))
    }

    fn of(inner: Arc<LocalInner>) -> Self {
        LocalStore {
            roots: inner.roots.clone(),
            newest: Arc::new(Mutex::new(inner.clone())),
            inner,
        }
    }

    /// Where the store lies.
    pub fn config(&self) -> &LocalConfig {
        &self.inner.config
    }

    /// The folder in which the content lies: that of the store directory, unless the store is
    /// in a folder of its own.
    pub fn real_dir(&self) -> &Path {
        &self.inner.config.real
    }

    /// Where the content of `path` lies, if it is valid.
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        self.inner.real_path(path)
    }

    /// Returns every valid path; an entry that names no path is an error.
    pub async fn all(&self) -> Result<BTreeSet<StorePath>> {
        self.run(|store| store.db.all()).await
    }

    /// The same, going on past entries that name no path: each of these with what is wrong. Older
    /// versions of Nix took names that are none any more.
    pub async fn all_readable(&self) -> Result<crate::db::ReadablePaths> {
        self.run(|store| store.db.all_readable()).await
    }

    /// The valid paths that refer to `path`, with itself if it does.
    pub async fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let path = path.clone();
        self.ask(move |db| db.referrers(&path)).await
    }

    /// The valid derivations that have `path` as an output.
    pub async fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let path = path.clone();
        self.ask(move |db| db.derivers(&path)).await
    }

    /// Makes paths valid whose content is in its place already, all of them or none. They may
    /// refer to each other in any order. Their content is not verified, but derivations must be
    /// readable and state the outputs that follow from them.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the content of a path is not there; [`Error::MissingReference`]
    /// when a reference is neither valid nor among `infos`; [`Error::Invalid`] when they refer
    /// to each other in a circle.
    pub async fn register(&self, infos: Vec<PathInfo>) -> Result<()> {
        self.run(move |store| {
            for info in &infos {
                let real = store.real_path(&info.path);
                if let Err(e) = real.symlink_metadata() {
                    return Err(Error::io(format!("registering {}", real.display()), e));
                }
            }
            let (outputs, mut failed) = store.outputs_of(&infos);
            match failed.pop() {
                Some((_, error)) => Err(error),
                None => store.db.register(&infos, &outputs),
            }
        })
        .await
    }

    pub(crate) fn inner(&self) -> &Arc<LocalInner> {
        &self.inner
    }

    pub(crate) fn temp_roots(&self) -> &Arc<TempRoots> {
        &self.roots
    }

    /// The same open store with temporary roots of its own, which end with it. Opened again, if its database is
    /// not the one any more that was opened: for a server, whoever empties or restores a store does not
    /// start again. Blocks.
    pub(crate) fn of_client(&self) -> LocalStore {
        let mut newest = self.newest.lock().unwrap_or_else(|e| e.into_inner());
        if !newest.db.is_that_of_before() {
            let LocalInner { config, create, .. } = &**newest;
            // What does not work is told by the first question.
            if let Ok(opened) = LocalInner::open(config.clone(), *create) {
                *newest = opened;
            }
        }
        LocalStore {
            inner: newest.clone(),
            roots: newest.roots.of_client(),
            newest: self.newest.clone(),
        }
    }

    /// Asks the database something short: here, if this thread may wait, else on a blocking one.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if own_thread::is_entered() {
            question(&self.inner.db)
        } else {
            self.run(|store| question(&store.db)).await
        }
    }

    /// Runs `work` on a blocking thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&LocalInner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

#[async_trait]
impl Store for LocalStore {
    fn dir(&self) -> &StoreDir {
        &self.inner.config.dir
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        if paths.is_empty() {
            return Ok(BTreeSet::new());
        }
        let paths = paths.clone();
        let valid = move |db: &Database| match paths.first() {
            Some(one) if paths.len() == 1 => Ok(if db.is_valid(one)? {
                paths
            } else {
                BTreeSet::new()
            }),
            _ => db.valid(&paths),
        };
        self.ask(valid).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let ask = |paths: Vec<StorePath>| {
            let infos = self.ask(move |db| db.infos(&paths));
            infos.map(|infos| infos.unwrap_or_else(|error| vec![Err(error)]))
        };
        paths
            .ready_chunks(BATCH)
            .then(ask)
            .flat_map(futures::stream::iter)
            .boxed()
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        if self
            .valid(&BTreeSet::from([path.clone()]))
            .await?
            .is_empty()
        {
            return Err(Error::NotFound {
                path: path.clone(),
                store: self.to_string(),
            });
        }
        let mut options = DumpOptions::default();
        options.case_hack = CaseHack::Off;
        Ok(nar::dump(self.real_path(path), options))
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        add::add(self, items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let part = *part;
        self.ask(move |db| db.find(&part)).await
    }
}

#[async_trait]
impl AddContent for LocalStore {
    async fn add_content(
        &self,
        name: &str,
        method: Method,
        algorithm: Algorithm,
        references: &References,
        nar: NarStream,
    ) -> Result<PathInfo> {
        add::add_content(self, name, method, algorithm, references, nar).await
    }
}

#[async_trait]
impl AddSignatures for LocalStore {
    /// Adds the signatures of all paths in one transaction.
    async fn add_all_signatures(
        &self,
        signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    ) -> Vec<(StorePath, Result<()>)> {
        let paths: Vec<_> = signatures.keys().cloned().collect();
        let add = move |store: &LocalInner| store.db.add_signatures(&signatures);
        let added = self.run(add).await;
        let absent = match added {
            Ok(absent) => absent,
            Err(error) => return error.for_each(paths),
        };
        let result = |path: StorePath| {
            if absent.contains(&path) {
                let store = self.to_string();
                Err(Error::NotFound { path, store })
            } else {
                Ok(())
            }
        };
        paths
            .into_iter()
            .map(|path| (path.clone(), result(path)))
            .collect()
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.uri)
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalStore")
            .field(&self.inner.config)
            .finish()
    }
}

/// Paths that are looked up in one go.
const BATCH: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use tk_store::{Sessions, StoreExt};

    /// As `nix-store --init` after `rm -rf`, which a daemon of Nix does not mind.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_is_made_anew_is_what_the_next_client_gets() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let store = LocalStore::open(LocalConfig::chroot(&root)).await.unwrap();
        let session = || Sessions::session(&store, Arc::new(()));
        let add = async |name: &str| {
            let mut encoder = tk_nar::Encoder::new(Vec::new());
            encoder.file(false, name.as_bytes()).unwrap();
            let nar = nar::from_bytes(encoder.finish().unwrap());
            let to = session().content.unwrap();
            let none = References {
                others: BTreeSet::new(),
                itself: false,
            };
            to.add_content(name, Method::Nar, Algorithm::Sha256, &none, nar)
                .await
        };
        let one = add("one").await.unwrap();
        assert!(session().store.info(&one.path).await.unwrap().is_some());
        tk_nar::fs::remove_tree(&root).unwrap();
        assert_eq!(session().store.info(&one.path).await.unwrap(), None);
        let two = add("two").await.unwrap();
        assert!(session().store.info(&two.path).await.unwrap().is_some());
        assert!(root.join("nix/store").join(two.path.as_str()).exists());
    }
}
