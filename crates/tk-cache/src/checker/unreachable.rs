use crate::objects::NarInfos;
use futures::{StreamExt, stream::BoxStream};
use std::fmt;
use tk_narinfo::NarInfo;
use tk_path::{StoreDir, StorePath};
use tk_store::{Error, Result};

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
    fn store_dir(&self) -> &StoreDir {
        &self.dir
    }

    fn narinfos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        paths.map(|path| (path, Err(self.error()))).boxed()
    }
}

impl fmt::Display for UnreachableCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
