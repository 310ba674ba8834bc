//! The main jobs with a cache behind a transport that breaks: a proxy before nginx.

use super::{
    invariants,
    jobs::{Place, World, copied},
    proxy::Proxy,
    steps::{Kind, Steps},
    support::servers::Nginx,
    sweep::{Job, Outcome, holds, room},
};
use async_trait::async_trait;
use futures::stream;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tk_cache::{
    BinaryCache, BinaryCacheConfig,
    checker::Checker,
    http::{ClientConfig, HttpConfig, HttpObjects, Retry},
};
use tk_narinfo::Compression;
use tk_store::{Error, SigCheck, Store, copy::CopyOptions};

#[test]
fn push() {
    over_http(Way::Push);
}

#[test]
fn pull() {
    over_http(Way::Pull);
}

#[test]
fn check() {
    over_http(Way::Check);
}

fn over_http(way: Way) {
    let served = room();
    let Some(nginx) = Nginx::start(served.path(), false, 0) else {
        return;
    };
    let world = World::with(&SIZES);
    let from = world.root(Place::Cache);
    for name in invariants::files(&from).keys() {
        let (file, copy) = (from.join(name), served.path().join(SOURCE).join(name));
        fs::create_dir_all(copy.parent().expect("below a folder")).expect("writable");
        if file.is_file() {
            fs::copy(file, copy).expect("writable");
        }
    }
    let address = nginx.url.trim_start_matches("http://");
    let address = address.replace("localhost", "127.0.0.1");
    holds(&OverHttp {
        way,
        world,
        server: address.parse().expect("an address"),
        served,
    });
}

/// Which way paths go over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From a local store to the server.
    Push,
    /// From the server to a local store.
    Pull,
    /// None does.
    Check,
}

struct OverHttp {
    way: Way,
    world: Arc<World>,
    server: SocketAddr,
    served: TempDir,
}

impl OverHttp {
    /// Where the journal of a push is.
    fn journal(folder: &Path) -> PathBuf {
        folder.join("journal")
    }

    /// The cache that the server has in `name`, behind `proxy`.
    async fn cache(&self, proxy: &Proxy, name: &str, folder: &Path) -> Result<BinaryCache, Error> {
        let url = format!("{}/{name}", proxy.url()).parse().expect("a URL");
        let mut config = HttpConfig::new(url);
        config.client = client();
        let objects = HttpObjects::open(config)?;
        let config = BinaryCacheConfig {
            compression: Compression::Zstd,
            create: self.way == Way::Push,
            journal: Some((Self::journal(folder), name.to_owned())),
            ..BinaryCacheConfig::default()
        };
        BinaryCache::open(Arc::new(objects), config).await
    }

    async fn copy(&self, cache: BinaryCache, folder: &Path) -> Outcome {
        let local = match self.way {
            Way::Push => self.world.root(Place::Local),
            _ => folder.join("store"),
        };
        let local = Place::Local.open(&local).await.store;
        let far: Arc<dyn Store> = Arc::new(cache.clone());
        let (from, to) = match self.way {
            Way::Push => (local, far),
            _ => (far, local),
        };
        let options = CopyOptions::new(SigCheck::Skip);
        let copied = copied(from, to, &self.world.top(), &options).await;
        match (copied, self.way) {
            // As the command does, for there may have been nothing left to push.
            (Ok(()), Way::Push) => cache.tidy().await.map_err(|error| vec![error]).into(),
            (copied, _) => copied.into(),
        }
    }

    async fn check(&self, cache: BinaryCache) -> Outcome {
        let checker = Checker::new(vec![Arc::new(cache)]).closure(true);
        Outcome::of_check(checker.check(stream::iter(self.world.top()))).await
    }
}

#[async_trait]
impl Job for OverHttp {
    fn name(&self) -> String {
        format!("{:?} over HTTP", self.way).to_lowercase()
    }

    fn room(&self) -> TempDir {
        TempDir::new_in(self.served.path()).expect("writable")
    }

    async fn prepare(&self, _: &Path) {}

    async fn run(&self, folder: &Path, steps: &Arc<Steps>) -> Outcome {
        let proxy = Proxy::start(self.server, steps);
        let own = folder.file_name().expect("a name").to_string_lossy();
        let name = match self.way {
            Way::Push => format!("{own}/cache"),
            _ => SOURCE.to_owned(),
        };
        match self.cache(&proxy, &name, folder).await {
            Err(error) => Outcome::Failed(vec![error]),
            Ok(cache) if self.way == Way::Check => self.check(cache).await,
            Ok(cache) => self.copy(cache, folder).await,
        }
    }

    async fn invariant(&self, folder: &Path) -> Result<(), String> {
        match self.way {
            Way::Push => invariants::cache(&folder.join("cache")).await,
            _ => invariants::local(&folder.join("store")).await,
        }
    }

    /// Who asked whom.
    fn tells(&self, _: Kind, line: &str) -> bool {
        line.contains("http://127.0.0.1")
    }

    async fn result(&self, folder: &Path) -> BTreeMap<String, String> {
        match self.way {
            Way::Push => {
                let mut files = invariants::files(&folder.join("cache"));
                files.extend(invariants::files(&Self::journal(folder)));
                files
            }
            Way::Pull => invariants::rows(&folder.join("store")).await,
            Way::Check => BTreeMap::new(),
        }
    }
}

/// A client that is soon at an end with its patience.
fn client() -> ClientConfig {
    let short = Duration::from_millis(2);
    ClientConfig {
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(150),
        retry: Retry {
            attempts: 3,
            delay: short,
            delay_rate_limited: short,
            max_delay: short,
        },
        ..ClientConfig::default()
    }
}

/// The cache that is pulled from.
const SOURCE: &str = "source";

/// Bytes of the files: few, so that what is packed comes in few pieces.
const SIZES: [usize; 4] = [3, 2_000, 5_000, 11_000];
