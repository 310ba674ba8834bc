//! Machines that lie, or break off, without any process: what they say is not believed, and another
//! machine is asked.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tk_builders::{Connect, Connected, Machine, RemoteBuilder, RemoteConfig, Slots};
use tk_narinfo::{
    PathInfo,
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
    realisation::{UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, BasicDerivation, Derivation, DerivedPath, HashPart, Method, NarHash, OutputsSpec,
    References, SingleDerivedPath, StoreDir, StorePath, modulo::Modulo,
};
use tk_store::conformance::file_nar;
use tk_store::{
    Abilities, AddContent, AddItems, AddOptions, AddReport, Build, BuildMode, Error, MemoryStore,
    Missing, NarStream, Realisations, Result, SigCheck, Store, StoreExt, log::LogSink, nar,
};
use tokio::time::{sleep, timeout};

/// What a machine does with a build.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Honest,
    /// The output refers to a path that did not go into it.
    ForeignReference,
    /// What comes back is not what hash and size say.
    OtherContent,
    /// It was not built at all.
    Nothing,
    /// It breaks off.
    Lost,
    /// Nobody can reach it.
    Gone,
    /// Whoever connects waits for ever.
    Deaf,
    /// From the build on it says nothing and takes nothing more.
    Frozen,
    /// The same, from when its output is asked for.
    FrozenLater,
    /// Its build takes an hour, in which it prints nothing.
    Quiet,
    /// The output's path does not follow from the content.
    NoAddress,
    /// It follows from it, but not by the method that the derivation wants.
    OtherMethod,
    /// The output has another name.
    OtherName,
    /// It does not say what the output turned out to be.
    Untold,
}

#[tokio::test]
async fn lies_are_not_believed() {
    for (way, says) in [
        (Way::ForeignReference, "which did not go into its build"),
        (Way::OtherContent, "mismatch"),
        (Way::Nothing, "says that it built"),
        (Way::Lost, "building there"),
        (Way::Gone, "cannot be used"),
    ] {
        let lab = Lab::new().await;
        let alone = lab.build(&[way]).await;
        assert!(!alone.is_success(), "{way:?}");
        assert!(alone.error.contains(says), "{way:?}: {}", alone.error);
        assert!(
            alone.error.contains("ssh-ng://m0"),
            "{way:?}: {}",
            alone.error
        );
        assert!(lab.output().await.is_none(), "{way:?}");

        let two = lab.build(&[way, Way::Honest]).await;
        assert_eq!(two.status, BuildStatus::Built, "{way:?}: {}", two.error);
        let info = lab.output().await.expect("it is there");
        assert!(info.references.is_empty() && info.ca.is_none(), "{way:?}");
        assert_eq!(info.deriver.as_ref(), Some(&lab.drv), "{way:?}");
        tk_store::verify(&*lab.local, &info).await.unwrap();
    }
}

/// Content that a derivation demands is compared with that, whatever the machine calls it.
#[tokio::test]
async fn fixed_content_is_what_was_demanded() {
    let lab = Lab::of(Kind::Fixed).await;
    let result = lab.build(&[Way::Honest]).await;
    assert!(!result.is_success());
    assert!(
        result.error.contains("content address mismatch"),
        "{}",
        result.error
    );
    assert!(lab.output().await.is_none());
}

/// Of an output that only building tells, a machine is believed that it is one, and no more; what it
/// turned out to be is known here afterwards.
#[tokio::test]
async fn lies_about_what_an_output_is() {
    for (way, says) in [
        (Way::NoAddress, "does not follow from its content"),
        (Way::OtherMethod, "does not follow from its content"),
        (Way::OtherName, "-other is the output out of"),
        (Way::Untold, "does not say what the output out"),
        (Way::OtherContent, "mismatch"),
        (Way::ForeignReference, "which did not go into its build"),
        (Way::Nothing, "says that it built"),
    ] {
        let lab = Lab::of(Kind::Floating).await;
        let alone = lab.build(&[way]).await;
        assert!(!alone.is_success(), "{way:?}");
        assert!(alone.error.contains(says), "{way:?}: {}", alone.error);
        assert_eq!(lab.realised().await, None, "{way:?}");

        let two = lab.build(&[way, Way::Honest]).await;
        assert_eq!(two.status, BuildStatus::Built, "{way:?}: {}", two.error);
        let out = two.outputs["out"].out_path.clone();
        assert_eq!(lab.realised().await, Some(out.clone()), "{way:?}");
        let info = lab.local.info(&out).await.unwrap().expect("it is there");
        assert!(info.is_content_addressed(lab.local.dir()), "{way:?}");
        tk_store::verify(&*lab.local, &info).await.unwrap();

        let again = lab.build(&[]).await;
        assert_eq!(again.status, BuildStatus::AlreadyValid, "{}", again.error);
        assert_eq!(again.outputs["out"].out_path, out);
    }
}

/// A machine that neither answers nor breaks off is given up, and another one does it: also for those
/// who wait for their turn with it. (Time is not that of a clock: it passes when nothing else does.)
#[tokio::test(start_paused = true)]
async fn machines_that_fall_silent() {
    let silent = "fell silent and does not answer: no answer for 20 s";
    for (way, says) in [
        (Way::Deaf, "cannot be used: connecting to ssh-ng://m0"),
        (Way::Frozen, silent),
        (Way::FrozenLater, silent),
    ] {
        let lab = Lab::new().await;
        let alone = lab.build(&[way]).await;
        assert!(!alone.is_success(), "{way:?}");
        assert!(alone.error.contains(says), "{way:?}: {}", alone.error);

        let (other, _) = derivation(&lab.local, "y", Kind::InputAddressed).await;
        let folder = tempfile::tempdir().unwrap();
        let mut machines = vec![machine(0), machine(1)];
        machines[0].max_jobs = 2;
        let config = lab.config(&[way, Way::Honest], machines, folder.path());
        let results = lab.run_all(config, &[&lab.drv, &other]).await;
        for result in results {
            assert_eq!(
                result.status,
                BuildStatus::Built,
                "{way:?}: {}",
                result.error
            );
        }
    }
}

/// One that answers may be quiet.
#[tokio::test(start_paused = true)]
async fn a_quiet_build_is_waited_for() {
    let lab = Lab::new().await;
    let result = lab.build(&[Way::Quiet]).await;
    assert_eq!(result.status, BuildStatus::Built, "{}", result.error);
}

/// Without any slot, or any machine, nobody waits.
#[tokio::test]
async fn nobody_waits_for_ever() {
    let lab = Lab::new().await;
    let result = lab.build(&[]).await;
    assert!(result.error.contains("none is named"), "{}", result.error);
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(0);
    machine.max_jobs = 0;
    let config = lab.config(&[Way::Honest], vec![machine], folder.path());
    let result = lab.run(config).await;
    assert!(
        result.error.contains("is required to build it"),
        "{}",
        result.error
    );
}

/// A store with one derivation.
struct Lab {
    local: Arc<MemoryStore>,
    drv: StorePath,
    /// Where only building tells, none.
    out: StorePath,
}

#[derive(Clone, Copy)]
enum Kind {
    InputAddressed,
    Fixed,
    Floating,
}

impl Lab {
    async fn new() -> Lab {
        Lab::of(Kind::InputAddressed).await
    }

    async fn of(kind: Kind) -> Lab {
        let local = Arc::new(MemoryStore::new(StoreDir::default()));
        let (drv, out) = derivation(&local, "x", kind).await;
        Lab { local, drv, out }
    }

    /// Builds on machines m0, m1 … of these ways, the first of which is the fastest.
    async fn build(&self, ways: &[Way]) -> BuildResult {
        let folder = tempfile::tempdir().unwrap();
        let machines = (0..ways.len()).map(machine).collect();
        self.run(self.config(ways, machines, folder.path())).await
    }

    fn config(
        &self,
        ways: &[Way],
        machines: Vec<Machine>,
        folder: &std::path::Path,
    ) -> RemoteConfig {
        let ways = ways.iter().enumerate();
        let ways = ways.map(|(i, way)| (machine(i).uri, *way)).collect();
        let connect = Arc::new(Machines {
            ways,
            frozen: Arc::default(),
        });
        RemoteConfig::new(machines, connect, Slots::new(folder))
    }

    async fn run(&self, config: RemoteConfig) -> BuildResult {
        let mut results = self.run_all(config, &[&self.drv]).await;
        assert_eq!(results.len(), 1);
        results.remove(0)
    }

    async fn run_all(&self, config: RemoteConfig, drvs: &[&StorePath]) -> Vec<BuildResult> {
        let mut local = Abilities::of(self.local.clone());
        local.realisations = Some(self.local.clone());
        let store = RemoteBuilder::new(local, config).abilities();
        let path = |drv: &&StorePath| DerivedPath::Built {
            drv: SingleDerivedPath::Opaque((*drv).clone()),
            outputs: OutputsSpec::All,
        };
        let paths: Vec<_> = drvs.iter().map(path).collect();
        let builder = store.build.unwrap();
        let results = builder.build(&paths, BuildMode::Normal, &());
        let results = timeout(Duration::from_secs(1_000_000), results).await;
        let results = results.expect("it comes to an end").unwrap();
        results.into_iter().map(|keyed| keyed.result).collect()
    }

    /// What the output turned out to be, as far as the store knows.
    async fn realised(&self) -> Option<StorePath> {
        let drv = tk_store::derivation::read(&*self.local, &self.drv).await;
        let modulo = Modulo::for_realisations(StoreDir::default());
        let hash = modulo.realisation_hash(&drv.unwrap()).unwrap().unwrap();
        let output = "out".parse().unwrap();
        let id = legacy::LegacyDrvOutput { hash, output };
        let found = self.local.legacy_realisation(&id).await.unwrap();
        found.map(|found| found.out_path)
    }

    async fn output(&self) -> Option<PathInfo> {
        self.local.info(&self.out).await.unwrap()
    }
}

/// A derivation in `local`, with its output.
async fn derivation(local: &MemoryStore, name: &str, kind: Kind) -> (StorePath, StorePath) {
    let dir = local.dir();
    let output = match kind {
        Kind::Floating => r#"("out","","r:sha256","")"#.to_owned(),
        Kind::Fixed => {
            let digest = tk_path::Hash::digest(Algorithm::Sha256, b"demanded");
            let hex = digest.digits(tk_path::Encoding::Base16);
            let ca = tk_path::ContentAddress {
                method: Method::Flat,
                hash: digest,
            };
            let path = dir.path_of_content(name, &ca, &References::default());
            format!(r#"("out","{}","sha256","{hex}")"#, dir.path(&path.unwrap()))
        }
        Kind::InputAddressed => r#"("out","","","")"#.to_owned(),
    };
    let text = format!(r#"Derive([{output}],[],[],"sys","/bin/sh",[],[("out","")])"#);
    let mut drv = Derivation::parse_aterm(dir, name, text.as_bytes()).unwrap();
    drv.fill_outputs(&Modulo::new(dir.clone())).unwrap();
    let file = file_nar(&drv.to_aterm(dir).unwrap());
    let (none, file) = (References::default(), nar::from_bytes(file));
    let file_name = format!("{name}.drv");
    let added = local.add_content(&file_name, Method::Text, Algorithm::Sha256, &none, file);
    let added = added.await.unwrap().path;
    assert_eq!(added, drv.path(dir).unwrap());
    let output = &drv.outputs["out"];
    let out = output.path(dir, name, &"out".parse().unwrap());
    let none = || StorePath::from_digest(&[0; 20], "none").unwrap();
    (added, out.unwrap().unwrap_or_else(none))
}

fn machine(i: usize) -> Machine {
    let mut machine = Machine::new(&format!("ssh-ng://m{i}"), ["sys".to_owned()]);
    machine.speed = 100.0 / (i + 1) as f32;
    machine.features.insert("ca-derivations".into());
    machine
}

struct Machines {
    ways: BTreeMap<String, Way>,
    /// Whether the one that freezes has.
    frozen: Arc<AtomicBool>,
}

#[async_trait]
impl Connect for Machines {
    async fn connect(&self, machine: &Machine, _: usize) -> Result<Connected> {
        let way = self.ways[&machine.uri];
        if way == Way::Gone {
            let error = std::io::Error::from(std::io::ErrorKind::HostUnreachable);
            return Err(Error::io("connecting", error));
        }
        if way == Way::Deaf || way.freezes() && self.frozen.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
        let store = Arc::new(Liar {
            uri: machine.uri.clone(),
            inner: MemoryStore::new(StoreDir::default()),
            way,
            frozen: self.frozen.clone(),
        });
        let mut abilities = Abilities::of(store.clone());
        abilities.build = Some(store);
        Ok(Connected {
            store: abilities,
            nix_version: None,
            protocol: None,
            trusted: Some(true),
            latency: None,
        })
    }
}

#[derive(Debug)]
struct Liar {
    uri: String,
    inner: MemoryStore,
    way: Way,
    frozen: Arc<AtomicBool>,
}

impl Way {
    fn freezes(self) -> bool {
        matches!(self, Way::Frozen | Way::FrozenLater)
    }
}

impl Liar {
    async fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
        pending().await
    }

    async fn put(&self, path: StorePath, references: BTreeSet<StorePath>) {
        let content = file_nar(path.as_str().as_bytes());
        let mut info = PathInfo::new(path, NarHash::digest(&content), content.len() as u64);
        info.references = references;
        self.put_content(info, content).await;
    }

    /// An output named `name` where its content belongs; nothing is added if it says so and has not.
    async fn put_addressed(&self, name: &str, references: BTreeSet<StorePath>) -> StorePath {
        let content = file_nar(name.as_bytes());
        let hash = NarHash::digest(&content);
        let file = tk_path::Hash::digest(Algorithm::Sha256, name.as_bytes());
        let (method, digest) = match self.way {
            Way::OtherMethod => (Method::Flat, file),
            _ => (Method::Nar, hash.into()),
        };
        let ca = tk_path::ContentAddress {
            method,
            hash: digest,
        };
        let others = References {
            others: references.clone(),
            itself: false,
        };
        let path = self.dir().path_of_content(name, &ca, &others).unwrap();
        let mut info = PathInfo::new(path.clone(), hash, content.len() as u64);
        info.references = references;
        info.ca = Some(ca).filter(|_| self.way != Way::NoAddress);
        if self.way != Way::Nothing {
            self.put_content(info, content).await;
        }
        path
    }

    async fn put_content(&self, info: PathInfo, content: Bytes) {
        let options = AddOptions::new(SigCheck::Skip);
        self.inner
            .add_one(info, nar::from_bytes(content), &options)
            .await
            .unwrap();
    }
}

#[async_trait]
impl Build for Liar {
    async fn build(
        &self,
        _: &[DerivedPath],
        _: BuildMode,
        _: &dyn LogSink,
    ) -> Result<Vec<KeyedBuildResult>> {
        panic!("this machine trusts us")
    }

    async fn build_derivation(
        &self,
        _: &StorePath,
        drv: &BasicDerivation,
        _: BuildMode,
        _: &dyn LogSink,
    ) -> Result<BuildResult> {
        let foreign = StorePath::from_digest(&[3; 20], "foreign").unwrap();
        let name = "out".parse().unwrap();
        let out = drv.outputs["out"].path(self.dir(), &drv.name, &name);
        let Some(out) = out.unwrap() else {
            let mut references = BTreeSet::new();
            if self.way == Way::ForeignReference {
                self.put(foreign.clone(), BTreeSet::new()).await;
                references.insert(foreign);
            }
            let suffix = if self.way == Way::OtherName {
                "-other"
            } else {
                ""
            };
            let called = format!("{}{suffix}", drv.name);
            let out = self.put_addressed(&called, references).await;
            let mut result = BuildResult::new(BuildStatus::Built);
            if self.way != Way::Untold {
                result.outputs.insert(name, UnkeyedRealisation::new(out));
            }
            return Ok(result);
        };
        match self.way {
            Way::Lost => {
                let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(Error::io(format!("reading from {}", self.uri), error));
            }
            Way::Nothing => {}
            Way::Frozen => self.freeze().await,
            Way::Quiet => {
                sleep(Duration::from_secs(3600)).await;
                self.put(out, BTreeSet::new()).await;
            }
            Way::ForeignReference => {
                self.put(foreign.clone(), BTreeSet::new()).await;
                self.put(out, [foreign].into()).await;
            }
            _ => self.put(out, BTreeSet::new()).await,
        }
        Ok(BuildResult::new(BuildStatus::Built))
    }

    async fn missing(&self, _: &[DerivedPath]) -> Result<Missing> {
        Ok(Missing::default())
    }

    async fn ensure(&self, _: &StorePath, _: &dyn LogSink) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Store for Liar {
    fn dir(&self) -> &StoreDir {
        self.inner.dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        if self.way.freezes() && self.frozen.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
        self.inner.valid(paths).await
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        self.inner.infos(paths)
    }

    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        match self.way {
            Way::OtherContent => Ok(nar::from_bytes(file_nar(b"something else"))),
            Way::FrozenLater => {
                self.freeze().await;
                self.inner.nar(path).await
            }
            _ => self.inner.nar(path).await,
        }
    }

    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport> {
        self.inner.add(items, options).await
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        self.inner.find(part).await
    }
}

impl fmt::Display for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
