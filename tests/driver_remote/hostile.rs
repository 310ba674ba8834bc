//! Machines that lie, or break off, without any process: what they say is not believed, and another
//! machine is asked.

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use tk_narinfo::{
    PathInfo,
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
};
use tk_nix::{
    machines::Machine,
    remote::{Connect, Connected, RemoteBuilder, RemoteConfig},
    slots::Slots,
};
use tk_path::{
    Algorithm, BasicDerivation, Derivation, DerivedPath, HashPart, Method, NarHash, OutputsSpec,
    References, SingleDerivedPath, StoreDir, StorePath, modulo::Modulo,
};
use tk_store::{
    Abilities, AddContent, AddItems, AddOptions, AddReport, Build, BuildMode, Error, MemoryStore,
    Missing, NarStream, Result, SigCheck, Store, StoreExt, log::LogSink, nar,
};

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
        let lab = Lab::new(false).await;
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
    let lab = Lab::new(true).await;
    let result = lab.build(&[Way::Honest]).await;
    assert!(!result.is_success());
    assert!(
        result.error.contains("content address mismatch"),
        "{}",
        result.error
    );
    assert!(lab.output().await.is_none());
}

/// Without any slot, or any machine, nobody waits.
#[tokio::test]
async fn nobody_waits_for_ever() {
    let lab = Lab::new(false).await;
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
    out: StorePath,
}

impl Lab {
    async fn new(fixed: bool) -> Lab {
        let dir = StoreDir::default();
        let local = Arc::new(MemoryStore::new(dir.clone()));
        let output = match fixed {
            true => {
                let digest = tk_path::Hash::digest(Algorithm::Sha256, b"demanded");
                let hex = digest.digits(tk_path::Encoding::Base16);
                let ca = tk_path::ContentAddress {
                    method: Method::Flat,
                    hash: digest,
                };
                let path = dir
                    .path_of_content("x", &ca, &References::default())
                    .unwrap();
                format!(r#"("out","{}","sha256","{hex}")"#, dir.path(&path))
            }
            false => r#"("out","","","")"#.to_owned(),
        };
        let text = format!(r#"Derive([{output}],[],[],"sys","/bin/sh",[],[("out","")])"#);
        let mut drv = Derivation::parse_aterm(&dir, "x", text.as_bytes()).unwrap();
        drv.fill_outputs(&Modulo::new(dir.clone())).unwrap();
        let file = nar_of(&drv.to_aterm(&dir).unwrap());
        let (none, file) = (References::default(), nar::from_bytes(file));
        let added = local.add_content("x.drv", Method::Text, Algorithm::Sha256, &none, file);
        let added = added.await.unwrap().path;
        assert_eq!(added, drv.path(&dir).unwrap());
        let name = "out".parse().unwrap();
        let out = drv.outputs["out"].path(&dir, "x", &name).unwrap().unwrap();
        Lab {
            local,
            drv: added,
            out,
        }
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
        RemoteConfig {
            machines,
            connect: Arc::new(Machines { ways }),
            slots: Slots::new(folder),
            keep_going: false,
            builders_substitute: false,
            sign: Vec::new(),
        }
    }

    async fn run(&self, config: RemoteConfig) -> BuildResult {
        let store = RemoteBuilder::new(Abilities::of(self.local.clone()), config).abilities();
        let path = DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(self.drv.clone()),
            outputs: OutputsSpec::All,
        };
        let builder = store.build.unwrap();
        let mut results = builder
            .build(&[path], BuildMode::Normal, &())
            .await
            .unwrap();
        assert_eq!(results.len(), 1);
        results.remove(0).result
    }

    async fn output(&self) -> Option<PathInfo> {
        self.local.info(&self.out).await.unwrap()
    }
}

fn machine(i: usize) -> Machine {
    let mut machine = Machine::new(&format!("ssh-ng://m{i}"), ["sys".to_owned()]);
    machine.speed = 100.0 / (i + 1) as f32;
    machine
}

struct Machines {
    ways: BTreeMap<String, Way>,
}

#[async_trait]
impl Connect for Machines {
    async fn connect(&self, machine: &Machine, _: usize) -> Result<Connected> {
        let way = self.ways[&machine.uri];
        if way == Way::Gone {
            let error = std::io::Error::from(std::io::ErrorKind::HostUnreachable);
            return Err(Error::io("connecting", error));
        }
        let store = Arc::new(Liar {
            uri: machine.uri.clone(),
            inner: MemoryStore::new(StoreDir::default()),
            way,
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
}

impl Liar {
    async fn put(&self, path: StorePath, references: BTreeSet<StorePath>) {
        let content = nar_of(path.as_str().as_bytes());
        let mut info = PathInfo::new(path, NarHash::digest(&content), content.len() as u64);
        info.references = references;
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
        let out = drv.outputs["out"].path(self.dir(), "x", &"out".parse().unwrap());
        let out = out.unwrap().unwrap();
        let foreign = StorePath::from_digest(&[3; 20], "foreign").unwrap();
        match self.way {
            Way::Lost => {
                let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(Error::io(format!("reading from {}", self.uri), error));
            }
            Way::Nothing => {}
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
            Way::OtherContent => Ok(nar::from_bytes(nar_of(b"something else"))),
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

fn nar_of(content: &[u8]) -> Vec<u8> {
    let mut encoder = tk_nar::Encoder::new(Vec::new());
    encoder.file(false, content).unwrap();
    encoder.finish().unwrap()
}
