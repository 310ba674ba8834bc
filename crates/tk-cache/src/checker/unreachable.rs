use crate::objects::NarInfos;
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{collections::BTreeSet, fmt};
use tk_narinfo::{NarInfo, PathInfo};
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{AddItems, AddOptions, AddReport, Error, NarStream, Result, Store};

/// A cache that could not be opened. It stands among the others and answers every question with the
/// reason, so that nothing counts as absent because of it.
#[derive(Debug, Clone)]
pub struct UnreachableCache {
    uri: String,
    dir: StoreDir,
    why: String,
}

impl UnreachableCache {
    /// The cache that `uri` names, for paths of `dir`; `why` it could not be opened.
    pub fn new(uri: impl Into<String>, dir: StoreDir, why: impl Into<String>) -> Self {
        UnreachableCache {
            uri: uri.into(),
            dir,
            why: why.into(),
        }
    }

    fn error(&self) -> Error {
        Error::io(
            format!("opening {}", self.uri),
            std::io::Error::other(self.why.clone()),
        )
    }
}

impl NarInfos for UnreachableCache {
    fn narinfos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        paths.map(|path| (path, Err(self.error()))).boxed()
    }
}

#[async_trait]
impl Store for UnreachableCache {
    fn dir(&self) -> &StoreDir {
        &self.dir
    }

    async fn valid(&self, _: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        Err(self.error())
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        paths.map(|_| Err(self.error())).boxed()
    }

    async fn nar(&self, _: &StorePath) -> Result<NarStream> {
        Err(self.error())
    }

    async fn add(&self, _: AddItems<'_>, _: &AddOptions) -> Result<AddReport> {
        Err(self.error())
    }

    async fn find(&self, _: &HashPart) -> Result<Option<StorePath>> {
        Err(self.error())
    }
}

impl fmt::Display for UnreachableCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
