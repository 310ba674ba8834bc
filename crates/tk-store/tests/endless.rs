//! A store that invents what its paths refer to.

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tk_narinfo::{PathInfo, Policy, SecretKey};
use tk_path::{Algorithm, Hash, HashPart, NarHash, StoreDir, StorePath};
use tk_store::{
    AddItems, AddOptions, AddReport, Error, MemoryStore, NarStream, Result, SigCheck, Store,
    copy::{CopyOptions, Reach, plan},
};

/// Whoever invents paths has no key.
#[tokio::test]
async fn what_is_not_trusted_is_not_followed() {
    let key = SecretKey::generate("trusted-1").unwrap();
    let policy = Policy::new([key.public()].into_iter().collect());
    let check = SigCheck::Require(Arc::new(policy));
    for reach in [Reach::Closure, Reach::Missing] {
        for signed in [None, Some(key.clone())] {
            let expected = if signed.is_some() { 1 + WIDTH } else { 1 };
            let store = Arc::new(Endless {
                signed,
                ..Endless::default()
            });
            let src: Arc<dyn Store> = store.clone();
            let mut options = CopyOptions::new(check.clone());
            options.reach = reach;
            let dst = MemoryStore::default();
            let plan = plan(&*src, &dst, &[root()].into(), &options).await.unwrap();
            assert_eq!(store.asked.load(Ordering::Relaxed), expected, "{reach:?}");
            let report = plan.run(&src, &dst, Arc::new(())).await.unwrap();
            assert_eq!(report.failed.len(), expected, "each is named");
            let untrusted = |(path, error): &(StorePath, Error)| {
                (*path == root()) == (expected > 1) || matches!(error, Error::Untrusted { .. })
            };
            assert!(report.failed.iter().all(untrusted), "{:?}", report.failed);
        }
    }
}

fn root() -> StorePath {
    path("root")
}

fn path(seed: &str) -> StorePath {
    let digest = Hash::digest(Algorithm::Sha256, seed.as_bytes()).compress(20);
    StorePath::from_digest(&digest.try_into().unwrap(), LONG).unwrap()
}

/// Every path is there, and refers to `WIDTH` others.
#[derive(Debug, Default)]
struct Endless {
    /// Signs the root.
    signed: Option<SecretKey>,
    asked: AtomicUsize,
}

impl Endless {
    fn info(&self, of: &StorePath) -> PathInfo {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut info = PathInfo::new(of.clone(), NarHash::from_bytes([0; 32]), 1);
        let name = |n| path(&format!("{of} {n}"));
        info.references = (0..WIDTH).map(name).collect();
        if let Some(key) = self.signed.as_ref().filter(|_| *of == root()) {
            info.sign(self.dir(), key).unwrap();
        }
        info
    }
}

#[async_trait]
impl Store for Endless {
    fn dir(&self) -> &StoreDir {
        static DIR: std::sync::LazyLock<StoreDir> = std::sync::LazyLock::new(StoreDir::default);
        &DIR
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        Ok(paths.clone())
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let info = |path| Ok((StorePath::clone(&path), Some(self.info(&path))));
        paths.map(info).boxed()
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        Err(Error::NotFound {
            path: path.clone(),
            store: self.to_string(),
        })
    }

    async fn add(&self, _: AddItems<'_>, _: &AddOptions) -> Result<AddReport> {
        unreachable!("it is only read")
    }

    async fn find(&self, _: &HashPart) -> Result<Option<StorePath>> {
        Ok(None)
    }
}

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("endless://")
    }
}

/// References of each path.
const WIDTH: usize = 30;
const LONG: &str = "a-name-of-sixty-letters-or-so-as-some-of-nixpkgs-have-them-too";
