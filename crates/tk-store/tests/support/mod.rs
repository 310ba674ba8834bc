//! Stores that do one thing, and tell what they were asked.
#![allow(dead_code, reason = "each test uses its part")]

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tk_narinfo::PathInfo;
use tk_path::{HashPart, StoreDir, StorePath};
use tk_store::{
    Abilities, AddItems, AddOptions, AddReport, ByteStream, Error, Logs, MemoryStore, NarStream,
    Result, Store,
};

/// A cache that answers whether it has paths, or cannot be asked.
#[derive(Debug, Default)]
pub struct Upstream {
    silent: bool,
    talkative: bool,
    pub asked: Mutex<Vec<BTreeSet<StorePath>>>,
    pub tidied: AtomicUsize,
    has: BTreeSet<StorePath>,
    memory: MemoryStore,
}

impl Upstream {
    /// One that cannot be asked.
    pub fn silent() -> Arc<Self> {
        Arc::new(Upstream {
            silent: true,
            ..Upstream::default()
        })
    }

    pub fn with(paths: &[StorePath]) -> Arc<Self> {
        Arc::new(Upstream {
            has: paths.iter().cloned().collect(),
            ..Upstream::default()
        })
    }

    /// One that also names paths that nobody asked for.
    pub fn talkative(paths: &[StorePath]) -> Arc<Self> {
        Arc::new(Upstream {
            talkative: true,
            has: paths.iter().cloned().collect(),
            ..Upstream::default()
        })
    }
}

#[async_trait]
impl Store for Upstream {
    fn dir(&self) -> &StoreDir {
        self.memory.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.asked.lock().unwrap().push(paths.clone());
        if self.silent {
            Err(Error::io("asking", io::Error::other("no answer")))
        } else if self.talkative {
            Ok(self.has.clone())
        } else {
            Ok(&self.has & paths)
        }
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.memory.infos(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.memory.nar(path).await
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.memory.add(items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.memory.find(part).await
    }

    async fn tidy(&self) -> Result<()> {
        self.tidied.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("upstream://")
    }
}

/// A store of build logs. That of `broken.drv` breaks off.
#[derive(Debug, Default)]
pub struct Library {
    logs: Mutex<BTreeMap<StorePath, String>>,
    memory: MemoryStore,
}

impl Library {
    pub fn put(&self, drv: &StorePath, log: &str) {
        self.logs
            .lock()
            .unwrap()
            .insert(drv.clone(), log.to_owned());
    }

    pub fn get(&self, drv: &StorePath) -> Option<String> {
        self.logs.lock().unwrap().get(drv).cloned()
    }

    pub fn abilities(self: &Arc<Self>) -> Abilities {
        Abilities {
            logs: Some(self.clone()),
            ..Abilities::of(self.clone())
        }
    }
}

#[async_trait]
impl Logs for Library {
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>> {
        let Some(log) = self.get(drv) else {
            return Ok(None);
        };
        let mut chunks = vec![Ok(Bytes::from(log))];
        if drv.name() == "broken.drv" {
            chunks.push(Err(Error::invalid("it broke off")));
        }
        Ok(Some(stream::iter(chunks).boxed()))
    }

    async fn add_build_log(&self, drv: &StorePath, log: ByteStream) -> Result<()> {
        let log: Vec<Bytes> = log.try_collect().await?;
        let text = String::from_utf8(log.concat()).expect("text");
        self.put(drv, &text);
        Ok(())
    }
}

#[async_trait]
impl Store for Library {
    fn dir(&self) -> &StoreDir {
        self.memory.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        self.memory.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.memory.infos(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        self.memory.nar(path).await
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.memory.add(items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.memory.find(part).await
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("library://")
    }
}
