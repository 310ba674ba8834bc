//! Several stores as one: each path from the first that has it, and what is not known is never
//! absent.

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use std::{
    collections::BTreeSet,
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use support::Library;
use tk_narinfo::{PathInfo, Policy, SecretKey, TrustedKeys};
use tk_path::{HashPart, NarHash, StoreDir, StorePath};
use tk_store::conformance::file_nar;
use tk_store::{
    Abilities, AddItems, AddOptions, AddReport, Error, MemoryStore, NarStream, Result,
    SeveralStores, SigCheck, Store, StoreExt, closure,
    copy::{CopyOptions, plan},
    nar,
};

fn path(number: u8) -> StorePath {
    StorePath::from_digest(&[number; 20], &format!("p{number}")).unwrap()
}

fn content(number: u8) -> Bytes {
    file_nar(format!("content {number}").repeat(1000).as_bytes())
}

/// The path `number`, which refers to the one before, if there is one.
fn info(number: u8) -> PathInfo {
    let nar = content(number);
    let mut info = PathInfo::new(path(number), NarHash::digest(&nar), nar.len() as u64);
    info.references
        .extend((number > 0).then(|| path(number - 1)));
    info
}

/// A store with these paths, whatever they refer to.
async fn with(numbers: &[u8]) -> Arc<MemoryStore> {
    let store = MemoryStore::named(StoreDir::default(), format!("with {numbers:?}"));
    for number in numbers {
        let mut options = AddOptions::new(SigCheck::Skip);
        options.elsewhere = Arc::new((0..20).map(path).collect());
        let nar = nar::from_bytes(content(*number));
        store.add_one(info(*number), nar, &options).await.unwrap();
    }
    Arc::new(store)
}

fn several(stores: impl IntoIterator<Item = Arc<dyn Store>>) -> SeveralStores {
    SeveralStores::new(stores.into_iter().map(Abilities::of)).unwrap()
}

async fn read(nar: NarStream) -> Result<Vec<u8>> {
    let chunks: Vec<Bytes> = nar.try_collect().await?;
    Ok(chunks.concat())
}

/// A store that fails in one way or another, and counts how often it was asked.
#[derive(Debug, Default)]
struct Faulty {
    memory: Arc<MemoryStore>,
    /// Answers are given, but NARs break off after so many bytes.
    breaks_after: Option<usize>,
    asked: AtomicUsize,
}

impl Faulty {
    fn failure(&self) -> Error {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Error::io("asking", io::Error::other("no answer"))
    }
}

#[async_trait]
impl Store for Faulty {
    fn dir(&self) -> &StoreDir {
        self.memory.dir()
    }

    async fn valid(&self, _: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        Err(self.failure())
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        match self.breaks_after {
            Some(_) => self.memory.infos(paths),
            None => paths.map(|_| Err(self.failure())).boxed(),
        }
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        let Some(bytes) = self.breaks_after else {
            return Err(self.failure());
        };
        let whole = read(self.memory.nar(path).await?).await?;
        let start = Bytes::copy_from_slice(&whole[..bytes.min(whole.len())]);
        Ok(stream::iter([Ok(start), Err(self.failure())]).boxed())
    }

    async fn add(&self, _: AddItems<'_>, _: &AddOptions) -> Result<AddReport> {
        Err(self.failure())
    }

    async fn find(&self, _: &HashPart) -> Result<Option<StorePath>> {
        Err(self.failure())
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty://")
    }
}

/// A closure that goes back and forth between two stores.
#[tokio::test]
async fn each_path_comes_from_the_first_that_has_it() {
    let stores = [with(&[0, 2, 4, 6]).await, with(&[1, 2, 3, 5, 6]).await];
    let both = several(stores.map(|store| store as Arc<dyn Store>));
    let found = closure(&both, [path(6)]).await.unwrap();
    assert!(found.absent.is_empty(), "{found:?}");
    assert_eq!(found.infos.len(), 7);
    let origins = [0, 1, 0, 1, 0, 1, 0].map(Some);
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6].map(|n| both.origin(&path(n))),
        origins
    );
    for number in 0..7 {
        let nar = both.nar(&path(number)).await.unwrap();
        assert_eq!(read(nar).await.unwrap(), content(number));
        let part = path(number).to_hash_part();
        assert_eq!(both.find(&part).await.unwrap(), Some(path(number)));
    }
    let asked = (0..10).map(path).collect();
    assert_eq!(both.valid(&asked).await.unwrap().len(), 7);
    assert_eq!(both.info(&path(9)).await.unwrap(), None);
    assert_eq!(both.find(&path(9).to_hash_part()).await.unwrap(), None);
    let absent = both.nar(&path(9)).await.err().unwrap();
    assert!(matches!(absent, Error::NotFound { .. }), "{absent}");
}

/// What the others have is had; what they lack may be in the one that does not answer.
#[tokio::test]
async fn one_that_cannot_be_asked_is_passed_over_but_never_means_absent() {
    for first in [true, false] {
        let mut stores: Vec<Arc<dyn Store>> =
            vec![with(&[0, 1]).await, Arc::new(Faulty::default())];
        if first {
            stores.reverse();
        }
        let told = Arc::new(Mutex::new(Vec::new()));
        let ears = told.clone();
        let both = several(stores)
            .on_failure(move |store, _| ears.lock().unwrap().push(store.to_string()));
        let found = closure(&both, [path(1)]).await.unwrap();
        assert_eq!((found.infos.len(), found.absent.len()), (2, 0));
        let nar = read(both.nar(&path(1)).await.unwrap()).await;
        assert_eq!(nar.unwrap(), content(1));
        let unknown = |error: Error| {
            let line = error.to_line();
            assert!(
                line.contains("faulty://") && line.contains("could not be asked"),
                "{line}"
            );
        };
        unknown(both.info(&path(5)).await.unwrap_err());
        unknown(closure(&both, [path(5)]).await.unwrap_err());
        unknown(both.find(&path(5).to_hash_part()).await.unwrap_err());
        unknown(both.valid(&[path(5)].into()).await.unwrap_err());
        let known = both.valid(&[path(0), path(1)].into()).await;
        assert_eq!(known.unwrap().len(), 2);
        let told = told.lock().unwrap();
        assert!(told.iter().all(|store| store == "faulty://"), "{told:?}");
        assert!(!told.is_empty());
    }
    let lost = several([with(&[0]).await as Arc<dyn Store>]).without("lost://", "no connection");
    assert_eq!(lost.info(&path(0)).await.unwrap(), Some(info(0)));
    let line = lost.info(&path(5)).await.unwrap_err().to_line();
    assert!(
        line.contains("lost://") && line.contains("no connection"),
        "{line}"
    );
    assert!(lost.valid(&[path(5)].into()).await.is_err());
}

#[tokio::test]
async fn one_that_fails_again_and_again_is_not_asked_any_more() {
    let faulty = Arc::new(Faulty::default());
    let both = several([faulty.clone() as Arc<dyn Store>, with(&[0]).await]);
    for _ in 0..20 {
        assert_eq!(both.info(&path(0)).await.unwrap(), Some(info(0)));
    }
    let asked = faulty.asked.load(Ordering::Relaxed);
    assert!(asked < 10, "asked {asked} times");
    assert!(both.info(&path(5)).await.is_err(), "it may have it");
}

/// As Nix passes over substitutes that are not signed as demanded.
#[tokio::test]
async fn one_that_is_trusted_is_preferred() {
    let key = SecretKey::generate("k-1").unwrap();
    let plain = with(&[0, 1]).await;
    let signed = MemoryStore::default();
    let mut trusted = info(0);
    trusted.sign(&StoreDir::default(), &key).unwrap();
    let nar = nar::from_bytes(content(0));
    let options = SigCheck::Skip.into();
    let added = signed.add_one(trusted.clone(), nar, &options);
    added.await.unwrap();
    let policy = Policy::new(TrustedKeys::from_iter([key.public()]));
    let check = SigCheck::Require(Arc::new(policy));
    let both = several([plain as Arc<dyn Store>, Arc::new(signed)]).prefer(check);
    assert_eq!(both.info(&path(0)).await.unwrap(), Some(trusted));
    assert_eq!(both.origin(&path(0)), Some(1));
    assert_eq!(both.info(&path(1)).await.unwrap(), Some(info(1)));
    assert_eq!(both.origin(&path(1)), Some(0), "none has a trusted one");
}

#[tokio::test]
async fn a_nar_that_breaks_off_goes_on_from_another_store() {
    let whole = content(0).len();
    for bytes in [0, 1, 100, whole - 1, whole] {
        let faulty = Faulty {
            memory: with(&[0]).await,
            breaks_after: Some(bytes),
            ..Faulty::default()
        };
        let both = several([Arc::new(faulty) as Arc<dyn Store>, with(&[0]).await]);
        both.require_info(&path(0)).await.unwrap();
        assert_eq!(both.origin(&path(0)), Some(0));
        let nar = read(both.nar(&path(0)).await.unwrap()).await;
        assert_eq!(nar.unwrap(), content(0), "after {bytes} bytes");
    }
    let faulty = Faulty {
        memory: with(&[0]).await,
        breaks_after: Some(100),
        ..Faulty::default()
    };
    let alone = several([Arc::new(faulty) as Arc<dyn Store>, with(&[1]).await]);
    alone.require_info(&path(0)).await.unwrap();
    assert!(read(alone.nar(&path(0)).await.unwrap()).await.is_err());
}

#[tokio::test]
async fn copies_come_from_all_of_them() {
    let stores = [with(&[0, 2]).await, with(&[1]).await];
    let both: Arc<dyn Store> = Arc::new(several(stores.map(|store| store as Arc<dyn Store>)));
    let dst = MemoryStore::default();
    let options = CopyOptions::new(SigCheck::Skip);
    let plan = plan(&*both, &dst, &[path(2)].into(), &options)
        .await
        .unwrap();
    let report = plan.run(&both, &dst, Arc::new(())).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!(report.copied.len(), 3);
}

#[tokio::test]
async fn a_store_that_gave_rubbish_is_barred_for_that_path() {
    let stores = [with(&[0, 1]).await, with(&[0, 1]).await];
    let both = several(stores.map(|store| store as Arc<dyn Store>));
    assert!(!both.bar(&path(0)), "nobody gave it");
    both.require_info(&path(0)).await.unwrap();
    assert!(both.bar(&path(0)), "the other is left");
    both.require_info(&path(0)).await.unwrap();
    assert_eq!(both.origin(&path(0)), Some(1));
    assert!(!both.bar(&path(0)), "none is left");
    assert_eq!(both.info(&path(0)).await.unwrap(), None);
    both.require_info(&path(1)).await.unwrap();
    assert_eq!(
        both.origin(&path(1)),
        Some(0),
        "other paths are not concerned"
    );
}

#[tokio::test]
async fn logs_come_from_the_first_that_has_one() {
    let (first, second) = (Arc::new(Library::default()), Arc::new(Library::default()));
    second.put(&path(1), "the log");
    let both = [first.abilities(), second.abilities()];
    let both = Arc::new(SeveralStores::new(both).unwrap()).abilities();
    let logs = both.logs.unwrap();
    let log = logs.build_log(&path(1)).await.unwrap().unwrap();
    assert_eq!(read(log).await.unwrap(), b"the log");
    assert!(logs.build_log(&path(2)).await.unwrap().is_none());
    assert!(both.realisations.is_none());
}

#[tokio::test]
async fn they_are_only_read_and_of_one_directory() {
    let both = several([with(&[0]).await as Arc<dyn Store>]);
    let nar = nar::from_bytes(content(1));
    let error = both.add_one(info(1), nar, &SigCheck::Skip.into()).await;
    assert!(matches!(error, Err(Error::Unsupported { .. })), "{error:?}");
    assert!(SeveralStores::new([]).is_err());
    let foreign = MemoryStore::new(StoreDir::new("/gnu/store").unwrap());
    let foreign = Abilities::of(Arc::new(foreign));
    let ours = Abilities::of(Arc::new(MemoryStore::default()));
    let mixed = SeveralStores::new([ours, foreign]);
    assert!(matches!(mixed, Err(Error::StoreDir { .. })));
}
