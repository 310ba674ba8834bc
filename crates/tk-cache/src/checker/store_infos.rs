use crate::objects::NarInfos;
use futures::{StreamExt, stream::BoxStream};
use std::{fmt, sync::Arc};
use tk_narinfo::{Compression, NarInfo, PathInfo};
use tk_path::{StoreDir, StorePath};
use tk_store::{Result, Store};

/// Any store as if it answered with narinfos: a daemon, a store on disk.
///
/// Such a narinfo has an empty [`url`](NarInfo::url), for there is no file to fetch, and neither
/// hash nor size of one.
#[derive(Debug, Clone)]
pub struct StoreInfos(Arc<dyn Store>);

impl StoreInfos {
    /// The answers of `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        StoreInfos(store)
    }

    /// As [`NarInfos::narinfos`], of any store.
    pub fn ask<'a>(
        store: &'a dyn Store,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        let answers = store.each_info(paths);
        answers
            .map(|(path, info)| (path, info.map(|info| info.map(as_narinfo))))
            .boxed()
    }
}

fn as_narinfo(info: PathInfo) -> NarInfo {
    NarInfo::new(info, String::new(), Compression::None)
}

impl NarInfos for StoreInfos {
    fn store_dir(&self) -> &StoreDir {
        self.0.dir()
    }

    fn narinfos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
        StoreInfos::ask(&*self.0, paths)
    }
}

impl fmt::Display for StoreInfos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
