//! The main jobs over stores that break.

use super::{
    invariants,
    steps::Steps,
    store::Breaking,
    support::made,
    sweep::{Job, Outcome, holds, room},
};
use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;
use tk_cache::{
    BinaryCache, BinaryCacheConfig,
    checker::{CacheAnswer, CheckedPath, Checker, StoreInfos},
};
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::{Compression, Policy, SecretKey, TrustedKeys};
use tk_path::{Algorithm, Method, References, StorePath};
use tk_store::{
    Abilities, AddContent, AddSignatures, Error, Existing, SigCheck, Store, StoreExt,
    copy::{CopyOptions, CopyReport, Reach, plan},
    nar, verify,
};

#[test]
fn push() {
    holds(&Copying {
        from: Place::Local,
        to: Place::Cache,
        ..Copying::new("push to a folder")
    });
}

#[test]
fn pull() {
    holds(&Copying::new("pull from a folder"));
}

#[test]
fn copy_between_local_stores() {
    holds(&Copying {
        from: Place::Local,
        reach: Reach::Missing,
        ..Copying::new("copy, local to local")
    });
}

#[test]
fn copy_between_caches() {
    holds(&Copying {
        to: Place::Cache,
        ..Copying::new("copy, folder to folder")
    });
}

#[test]
fn repair_of_a_local_store() {
    holds(&Copying {
        existing: Existing::Replace,
        ..Copying::new("repair of a local store")
    });
}

#[test]
fn repair_of_a_cache() {
    holds(&Copying {
        from: Place::Local,
        to: Place::Cache,
        existing: Existing::Replace,
        ..Copying::new("repair of a folder")
    });
}

#[test]
fn add() {
    holds(&Adding);
}

#[test]
fn sign() {
    for place in [Place::Local, Place::Cache] {
        let world = World::new();
        holds(&Signing { place, world });
    }
}

#[test]
fn verify_and_check() {
    for place in [Place::Local, Place::Cache] {
        let world = World::new();
        holds(&Asking {
            what: Question::Verify,
            place,
            world,
        });
        let world = World::new();
        holds(&Asking {
            what: Question::Check,
            place,
            world,
        });
    }
}

/// A closure of signed paths, in both kinds of stores.
pub struct World {
    folder: TempDir,
    paths: Vec<StorePath>,
    key: Arc<SecretKey>,
}

/// Where paths are, or go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Local,
    Cache,
}

impl Place {
    /// The store of this kind in `folder`.
    pub async fn open(self, folder: &Path) -> Abilities {
        match self {
            Place::Local => {
                let store = LocalStore::open(LocalConfig::chroot(folder)).await;
                store.expect("a store").abilities()
            }
            Place::Cache => {
                let config = BinaryCacheConfig {
                    compression: Compression::Zstd,
                    create: true,
                    ..BinaryCacheConfig::default()
                };
                let cache = BinaryCache::open_folder(folder, config);
                cache.await.expect("a cache").abilities()
            }
        }
    }

    /// What readers rely on, in the store in `folder`.
    pub async fn invariant(self, folder: &Path) -> Result<(), String> {
        match self {
            Place::Local => invariants::local(folder).await,
            Place::Cache => invariants::cache(folder).await,
        }
    }

    /// All that is in the store in `folder`.
    pub async fn content(self, folder: &Path) -> BTreeMap<String, String> {
        match self {
            Place::Local => invariants::rows(folder).await,
            Place::Cache => invariants::files(folder),
        }
    }
}

impl World {
    pub fn new() -> Arc<World> {
        World::with(&SIZES)
    }

    /// A closure of paths with files of `sizes` bytes.
    pub fn with(sizes: &[usize]) -> Arc<World> {
        let folder = room();
        let key = SecretKey::generate("faults-1").expect("a key");
        let world = World {
            paths: made::fill(&folder.path().join("unsigned"), sizes),
            key: Arc::new(key),
            folder,
        };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let unsigned = Place::Local
                .open(&world.folder.path().join("unsigned"))
                .await;
            for place in [Place::Local, Place::Cache] {
                let mut options = CopyOptions::new(SigCheck::Skip);
                options.sign.push(world.key.clone());
                let to = place.open(&world.root(place)).await.store;
                let copied = copied(unsigned.store.clone(), to, &world.top(), &options).await;
                copied.expect("nothing is wrong yet");
            }
        });
        Arc::new(world)
    }

    /// Where the store of this kind lies.
    pub fn root(&self, place: Place) -> PathBuf {
        self.folder.path().join(format!("{place:?}"))
    }

    /// The path that leads to all others.
    pub fn top(&self) -> BTreeSet<StorePath> {
        self.paths.last().cloned().into_iter().collect()
    }

    /// References first.
    pub fn paths(&self) -> &[StorePath] {
        &self.paths
    }

    fn policy(&self) -> SigCheck {
        let mut keys = TrustedKeys::new();
        keys.insert(self.key.public());
        SigCheck::Require(Arc::new(Policy::new(keys)))
    }

    /// A store of this kind in `folder` that holds all paths.
    async fn copy_to(&self, place: Place, folder: &Path) {
        let from = place.open(&self.root(place)).await.store;
        let to = place.open(folder).await.store;
        let options = CopyOptions::new(SigCheck::Skip);
        let copied = copied(from, to, &self.top(), &options).await;
        copied.expect("nothing is wrong yet");
    }
}

/// A copy between two stores: with [`Existing::Replace`], to one in which a path is damaged.
struct Copying {
    name: &'static str,
    from: Place,
    to: Place,
    reach: Reach,
    existing: Existing,
    world: Arc<World>,
}

impl Copying {
    /// From a cache to a local store.
    fn new(name: &'static str) -> Self {
        Copying {
            name,
            from: Place::Cache,
            to: Place::Local,
            reach: Reach::Closure,
            existing: Existing::Keep,
            world: World::new(),
        }
    }

    /// Changes the second path in the destination.
    fn damage(&self, folder: &Path) {
        let path = &self.world.paths[1];
        let file = match self.to {
            Place::Local => folder.join("nix/store").join(path.as_str()),
            Place::Cache => {
                let narinfo = folder.join(format!("{}.narinfo", path.hash_part()));
                let text = fs::read_to_string(narinfo).expect("a narinfo");
                let url = text.lines().find_map(|line| line.strip_prefix("URL: "));
                folder.join(url.expect("a narinfo has a URL"))
            }
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a file");
        fs::write(file, "damaged").expect("a file that can be written");
    }
}

#[async_trait]
impl Job for Copying {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    async fn prepare(&self, folder: &Path) {
        if self.existing == Existing::Replace {
            self.world.copy_to(self.to, folder).await;
            self.damage(folder);
        }
    }

    async fn run(&self, folder: &Path, steps: &Arc<Steps>) -> Outcome {
        let from = self.from.open(&self.world.root(self.from)).await;
        let to = self.to.open(folder).await;
        let mut options = CopyOptions::new(self.world.policy());
        options.reach = self.reach;
        options.existing = self.existing;
        let (from, to) = (Breaking::new(from, steps), Breaking::new(to, steps));
        copied(from, to, &self.world.top(), &options).await.into()
    }

    async fn invariant(&self, folder: &Path) -> Result<(), String> {
        match self.existing {
            Existing::Keep => self.to.invariant(folder).await,
            // It was broken before.
            Existing::Replace => Ok(()),
        }
    }

    async fn result(&self, folder: &Path) -> BTreeMap<String, String> {
        if self.existing == Existing::Replace
            && let Err(words) = self.to.invariant(folder).await
        {
            return BTreeMap::from([("it is not repaired".to_owned(), words)]);
        }
        self.to.content(folder).await
    }
}

/// Copies as the commands do; the errors, if there were any.
pub async fn copied(
    from: Arc<dyn Store>,
    to: Arc<dyn Store>,
    roots: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<(), Vec<Error>> {
    let copy = async {
        let plan = plan(&*from, &*to, roots, options).await?;
        plan.run(&from, &*to, Arc::new(())).await
    };
    match copy.await {
        Err(error) => Err(vec![error]),
        Ok(CopyReport { failed, .. }) if failed.is_empty() => Ok(()),
        Ok(report) => Err(report.failed.into_iter().map(|(_, error)| error).collect()),
    }
}

/// Contents of which each refers to the one before, into a local store.
struct Adding;

impl Adding {
    async fn add(&self, store: &dyn AddContent) -> Result<(), Error> {
        let mut references = References::default();
        for (i, method) in [Method::Nar, Method::Text, Method::Nar]
            .into_iter()
            .enumerate()
        {
            let nar = made::nar_of(&made::noise(i as u64 + 1, SIZES[i]));
            let nar = nar::from_bytes(nar);
            let name = format!("content-{i}");
            let added = store.add_content(&name, method, Algorithm::Sha256, &references, nar);
            references.others = BTreeSet::from([added.await?.path]);
        }
        Ok(())
    }
}

#[async_trait]
impl Job for Adding {
    fn name(&self) -> String {
        "add to a local store".to_owned()
    }

    async fn prepare(&self, _: &Path) {}

    async fn run(&self, folder: &Path, steps: &Arc<Steps>) -> Outcome {
        let store = Breaking::new(Place::Local.open(folder).await, steps);
        self.add(&*store).await.map_err(|e| vec![e]).into()
    }

    async fn invariant(&self, folder: &Path) -> Result<(), String> {
        invariants::local(folder).await
    }

    async fn result(&self, folder: &Path) -> BTreeMap<String, String> {
        invariants::rows(folder).await
    }
}

/// A second signature for each path.
struct Signing {
    place: Place,
    world: Arc<World>,
}

impl Signing {
    async fn sign(&self, store: &Breaking) -> Result<(), Error> {
        let key = SecretKey::parse(SECOND_KEY).expect("a key");
        for path in &self.world.paths {
            let mut info = store.require_info(path).await?;
            info.signatures.clear();
            info.sign(store.dir(), &key).expect("it can be signed");
            store.add_signatures(path, &info.signatures).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Job for Signing {
    fn name(&self) -> String {
        format!("sign, {:?}", self.place).to_lowercase()
    }

    async fn prepare(&self, folder: &Path) {
        self.world.copy_to(self.place, folder).await;
    }

    async fn run(&self, folder: &Path, steps: &Arc<Steps>) -> Outcome {
        let store = Breaking::new(self.place.open(folder).await, steps);
        self.sign(&store).await.map_err(|e| vec![e]).into()
    }

    async fn invariant(&self, folder: &Path) -> Result<(), String> {
        self.place.invariant(folder).await
    }

    async fn result(&self, folder: &Path) -> BTreeMap<String, String> {
        self.place.content(folder).await
    }
}

/// Jobs that change nothing. All that they ask about is there and as it should be.
struct Asking {
    what: Question,
    place: Place,
    world: Arc<World>,
}

#[derive(Debug)]
enum Question {
    /// Is the content what the metadata says?
    Verify,
    /// Is the whole closure there?
    Check,
}

impl Asking {
    async fn verify(&self, store: &Breaking) -> Outcome {
        let mut errors = Vec::new();
        for path in &self.world.paths {
            let verified = async { verify(store, &store.require_info(path).await?).await };
            errors.extend(verified.await.err());
        }
        match errors.iter().find(|e| matches!(e, Error::NotFound { .. })) {
            Some(lie) => Outcome::Lied(lie.to_line()),
            None if errors.is_empty() => Outcome::Done,
            None => Outcome::Failed(errors),
        }
    }

    async fn check(&self, store: Arc<Breaking>) -> Outcome {
        let checker = Checker::new(vec![Arc::new(StoreInfos::new(store))]).closure(true);
        Outcome::of_check(checker.check(stream::iter(self.world.top()))).await
    }
}

impl Outcome {
    /// What a check says of paths of which none is absent.
    pub async fn of_check(answers: BoxStream<'_, CheckedPath>) -> Outcome {
        let answers: Vec<_> = answers.collect().await;
        if let Some(lie) = answers.iter().find(|answer| answer.is_missing()) {
            return Outcome::Lied(format!("{} is said to be absent", lie.path));
        }
        let errors = answers.into_iter().flat_map(|answer| answer.answers);
        let errors = errors.filter_map(|answer| match answer {
            CacheAnswer::NotAsked(error) => Some(error),
            CacheAnswer::Absent | CacheAnswer::Present(..) => None,
        });
        match errors.collect::<Vec<_>>() {
            errors if errors.is_empty() => Outcome::Done,
            errors => Outcome::Failed(errors),
        }
    }
}

#[async_trait]
impl Job for Asking {
    fn name(&self) -> String {
        format!("{:?}, {:?}", self.what, self.place).to_lowercase()
    }

    async fn prepare(&self, _: &Path) {}

    async fn run(&self, _: &Path, steps: &Arc<Steps>) -> Outcome {
        let store = self.place.open(&self.world.root(self.place)).await;
        let store = Breaking::new(store, steps);
        match self.what {
            Question::Verify => self.verify(&store).await,
            Question::Check => self.check(store).await,
        }
    }

    async fn invariant(&self, _: &Path) -> Result<(), String> {
        self.place.invariant(&self.world.root(self.place)).await
    }

    async fn result(&self, _: &Path) -> BTreeMap<String, String> {
        self.place.content(&self.world.root(self.place)).await
    }
}

/// Bytes of the files. The last one is worth a thread of its own when it is unpacked.
const SIZES: [usize; 4] = [3, 2_000, 70_000, 300_000];

const SECOND_KEY: &str = "second-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8DoQe/884Qvh1w3RjnS8CZZ+TWMJulDV8d3IZkElUxuA==";
