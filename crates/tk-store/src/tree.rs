use crate::{
    AddItems, AddOptions, AddReport, ContentHasher, Error, NarStream, Result, Store, blocking,
    nar::{self, BlockingNar},
    progress::Progress,
};
use async_trait::async_trait;
use futures::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_nar::fs::DumpOptions;
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, HashPart, Method, References, StoreDir, StorePath};
use tokio::sync::mpsc;

/// Files and folders as store paths, from where they lie, before another store: nothing is copied,
/// and nothing kept.
///
/// A tree is read once to find out which path it is, and again whenever its NAR is asked for. It
/// may change in between: then the NAR is not what its metadata says, which whoever takes it
/// notices ([`Store::add`] of every store).
///
/// Paths have no references, whatever their content mentions, as those that
/// [`AddContent`](crate::AddContent) makes of files.
#[derive(Debug)]
pub struct TreeStore {
    behind: Arc<dyn Store>,
    trees: BTreeMap<StorePath, SourceTree>,
}

#[derive(Debug)]
struct SourceTree {
    info: PathInfo,
    file: PathBuf,
    options: DumpOptions,
}

impl TreeStore {
    /// Without any tree yet. What is no tree is asked of the store `behind`.
    pub fn new(behind: Arc<dyn Store>) -> Self {
        TreeStore {
            behind,
            trees: BTreeMap::new(),
        }
    }

    /// Reads the file, folder or link at `file`, and takes it for the path that its content and
    /// `name` make. Bytes that were read are told as advanced.
    ///
    /// # Errors
    /// When it cannot be read, when `name` is none for a store path, or when `method` and
    /// `algorithm` do not go together or not with this tree.
    pub async fn read(
        &mut self,
        file: PathBuf,
        options: DumpOptions,
        name: &str,
        (method, algorithm): (Method, Algorithm),
        progress: Arc<dyn Progress>,
    ) -> Result<PathInfo> {
        let mut hasher = ContentHasher::new(method, algorithm)?;
        let nar = BlockingNar::new(nar::dump(file.clone(), options.clone()));
        let (dir, own_name) = (self.dir().clone(), name.to_owned());
        let hash = move || {
            for chunk in nar {
                let chunk = chunk?;
                hasher.update(&chunk)?;
                progress.advanced(chunk.len() as u64);
            }
            hasher.finish(&dir, &own_name, &References::default())
        };
        let info = blocking(hash).await?;
        self.insert(info.clone(), file, options);
        Ok(info)
    }

    /// Takes the tree at `file` for the path that `info` is about, without reading it.
    pub fn insert(&mut self, info: PathInfo, file: PathBuf, options: DumpOptions) {
        let path = info.path.clone();
        let tree = SourceTree {
            info,
            file,
            options,
        };
        self.trees.insert(path, tree);
    }

    /// Where the tree that is `path` lies.
    pub fn file(&self, path: &StorePath) -> Option<&Path> {
        self.trees.get(path).map(|tree| tree.file.as_path())
    }
}

#[async_trait]
impl Store for TreeStore {
    fn dir(&self) -> &StoreDir {
        self.behind.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        let paths = paths.iter().cloned();
        let (mut there, others): (BTreeSet<_>, BTreeSet<_>) =
            paths.partition(|path| self.trees.contains_key(path));
        if !others.is_empty() {
            there.extend(self.behind.valid(&others).await?);
        }
        Ok(there)
    }

    async fn renew(&self, path: &StorePath) -> Result<bool> {
        if self.trees.contains_key(path) {
            Ok(false)
        } else {
            self.behind.renew(path).await
        }
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        // Trees are answered at once, in the midst of what the other store is asked.
        let (send, trees) = mpsc::unbounded_channel();
        let others = paths.filter_map(move |path| {
            let Some(tree) = self.trees.get(&path) else {
                return future::ready(Some(path));
            };
            // The receiver is gone only when nobody wants an answer.
            let _ = send.send(Ok((path, Some(tree.info.clone()))));
            future::ready(None)
        });
        // When its answers end it goes, with the sender: then the trees end too.
        let others = self.behind.infos(others.boxed());
        let others = stream::unfold(others, async |mut others| {
            Some((others.next().await?, others))
        });
        let trees = stream::unfold(trees, async |mut trees| Some((trees.recv().await?, trees)));
        stream::select(trees.boxed(), others.boxed()).boxed()
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        match self.trees.get(path) {
            Some(tree) => Ok(nar::dump(tree.file.clone(), tree.options.clone())),
            None => self.behind.nar(path).await,
        }
    }

    /// Nothing can be added.
    async fn add(&self, _: AddItems<'_>, _: &AddOptions) -> Result<AddReport> {
        Err(Error::Unsupported {
            store: self.to_string(),
            what: "is only read from, beside files as they lie".to_owned(),
        })
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let mut paths = self.trees.keys();
        match paths.find(|path| path.to_hash_part() == *part) {
            Some(path) => Ok(Some(path.clone())),
            None => self.behind.find(part).await,
        }
    }
}

/// Prints what the store behind prints.
impl fmt::Display for TreeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.behind.fmt(f)
    }
}
