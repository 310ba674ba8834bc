//! Closures: out of our cache into a store of Nix, out of a cache of Nix's into a store of ours.
//! Both stores and both caches say the same of every path.

use super::{
    caches::{self, Item, runtime},
    engine::{Plan, Verdict, Verdicts, expect_find, hold},
    node::Node,
};
use crate::support::{Rig, equal, rig, trees::Scratch};
use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    sample::select,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_cache::{BinaryCache, BinaryCacheConfig};
use tk_local::{LocalConfig, LocalStore};
use tk_narinfo::{
    PathInfo, Policy, SecretKey,
    json::{JsonFields, JsonVersion, nix_2_8, path_info_to_json, without_version},
};
use tk_path::{Algorithm, Hash, Method, NarHash, StoreDir, StorePath};
use tk_store::{
    SigCheck, Store, closure,
    copy::{CopyOptions, CopyReport, plan},
};

#[test]
fn as_nix_copies_and_describes() {
    hold("closures", BATCH, &case(), |rig, cases| {
        Batch::new(rig, |_| {}, cases).verdicts()
    });
}

#[test]
fn a_cache_that_forgets_references_to_itself_is_found() {
    let Some(rig) = rig("2.34") else { return };
    let forgetful = |info: &mut PathInfo| {
        info.references.remove(&info.path.clone());
    };
    let plan = Plan::planted(BATCH);
    let find = plan.search(&case(), |cases| {
        Batch::new(&rig, forgetful, cases).copied_by_nix()
    });
    expect_find(find, |case| match &case[..] {
        [member] => member.itself,
        _ => false,
    });
}

/// Paths, of which each may refer to those before. The last is the root; not all need be in its
/// closure.
type Case = Vec<Member>;

#[derive(Debug, Clone)]
struct Member {
    proof: Proof,
    /// For each one before whether it refers to it.
    references: Vec<bool>,
    /// Whether it refers to itself. Only what is signed can.
    itself: bool,
    /// Whether it says what made it.
    deriver: bool,
    executable: bool,
    contents: Vec<u8>,
}

/// What makes Nix believe it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Proof {
    Signature,
    /// One of them by a key that is not known.
    Signatures,
    Nar,
    Text,
}

fn case() -> impl Strategy<Value = Case> {
    vec(member(), 1..7)
}

fn member() -> impl Strategy<Value = Member> {
    let proofs = vec![Proof::Signature, Proof::Signatures, Proof::Nar, Proof::Text];
    let (flags, contents) = (any::<[bool; 3]>(), vec(any::<u8>(), 0..20));
    (select(proofs), vec(any::<bool>(), 6), flags, contents).prop_map(
        |(proof, references, [itself, deriver, executable], contents)| Member {
            proof,
            references,
            itself: itself && matches!(proof, Proof::Signature | Proof::Signatures),
            deriver,
            executable,
            contents,
        },
    )
}

impl Member {
    /// The member at `index` of the case at `number`, which nothing else in the batch is.
    fn item(&self, number: usize, index: usize, before: &[Item]) -> Item {
        let name = format!("c{number}-{index}");
        let before = before.iter().map(|(info, _)| &info.path);
        let chosen = before.zip(&self.references).filter(|(_, chosen)| **chosen);
        let references: BTreeSet<_> = chosen.map(|(path, _)| path.clone()).collect();
        let (mut info, nar) = match self.proof {
            Proof::Text => caches::text(&name, &self.text(&references), references),
            Proof::Nar => {
                let nar = self.folder(&references).nar();
                caches::content(&name, Method::Nar, nar, references)
            }
            Proof::Signature | Proof::Signatures => self.signed(&name, references),
        };
        info.deriver = self.deriver.then(|| of_name(&format!("{name}.drv")));
        (info, nar)
    }

    /// A path that does not follow from the content.
    fn signed(&self, name: &str, mut references: BTreeSet<StorePath>) -> Item {
        let path = of_name(name);
        if self.itself {
            references.insert(path.clone());
        }
        let nar = self.folder(&references).nar();
        let mut info = PathInfo::new(path, NarHash::digest(&nar), nar.len() as u64);
        info.references = references;
        (info, nar.into())
    }

    fn text(&self, references: &BTreeSet<StorePath>) -> Vec<u8> {
        let dir = StoreDir::default();
        let lines = references.iter().map(|path| dir.path(path) + "\n");
        [lines.collect::<String>().as_bytes(), &self.contents].concat()
    }

    /// References in a text and as links, beside the contents.
    fn folder(&self, references: &BTreeSet<StorePath>) -> Node {
        let dir = StoreDir::default();
        let link = |path: &StorePath| {
            let name = path.name().as_bytes().to_vec();
            (name, Node::Link(dir.path(path).into_bytes()))
        };
        let mode = if self.executable { 0o755 } else { 0o644 };
        let files = [
            (b"text".to_vec(), Node::text(self.text(references))),
            (b"own".to_vec(), Node::File(mode, self.contents.clone())),
        ];
        Node::Folder(references.iter().map(link).chain(files).collect())
    }
}

/// A path whose digest is made of its name.
fn of_name(name: &str) -> StorePath {
    let digest = Hash::digest(Algorithm::Sha1, name.as_bytes());
    let digest = digest.as_bytes().try_into().expect("20 bytes");
    StorePath::from_digest(digest, name).expect("a name")
}

/// Cases in caches and stores.
struct Batch<'a> {
    rig: &'a Rig,
    cases: &'a [Case],
    alter: fn(&mut PathInfo),
    key: SecretKey,
    /// Nobody trusts this one.
    other_key: SecretKey,
    /// What must be said of the closure of each case's root.
    closures: Vec<BTreeMap<StorePath, PathInfo>>,
    roots: Vec<StorePath>,
    place: Scratch,
}

impl<'a> Batch<'a> {
    fn new(rig: &'a Rig, alter: fn(&mut PathInfo), cases: &'a [Case]) -> Batch<'a> {
        let mut batch = Batch {
            rig,
            cases,
            alter,
            key: SecretKey::generate("closures-1").expect("a key"),
            other_key: SecretKey::generate("other-1").expect("a key"),
            closures: Vec::new(),
            roots: Vec::new(),
            place: Scratch::new(),
        };
        for number in 0..cases.len() {
            let mut items = batch.items(number);
            items.iter_mut().for_each(|item| batch.sign(number, item));
            let root = items.last().expect("one at least").0.path.clone();
            let infos = items.into_iter().map(|(info, _)| (info.path.clone(), info));
            batch.closures.push(reachable(&infos.collect(), &root));
            batch.roots.push(root);
        }
        batch
    }

    fn items(&self, number: usize) -> Vec<Item> {
        let mut items = Vec::new();
        for (index, member) in self.cases[number].iter().enumerate() {
            let item = member.item(number, index, &items);
            items.push(item);
        }
        items
    }

    /// Gives an item of the case at `number` the signatures that it should have.
    fn sign(&self, number: usize, (info, _): &mut Item) {
        let index = info.path.name().rsplit('-').next().expect("an index");
        let index: usize = index.parse().expect("an index");
        let proof = self.cases[number][index].proof;
        let dir = StoreDir::default();
        if matches!(proof, Proof::Signature | Proof::Signatures) {
            info.sign(&dir, &self.key).expect("signed");
        }
        if proof == Proof::Signatures {
            info.sign(&dir, &self.other_key).expect("signed");
        }
    }

    fn verdicts(&self) -> Verdicts {
        let verdicts = self.copied_by_nix()?;
        if verdicts.iter().any(Result::is_err) {
            return Ok(verdicts);
        }
        let told = self.told(&self.path("theirs"))?;
        let opened = self.opened()?;
        self.pushed()?;
        self.pulled()?;
        let pulled_told = self.told(&self.path("ours"))?;
        let pulled = self.shown("ours")?;
        let indices = 0..self.cases.len();
        let verdict = |number| {
            self.as_told(&told, number)?;
            opened[number].clone()?;
            self.same_narinfos(number)?;
            let shown = self.as_shown(&pulled, number);
            shown
                .and_then(|()| self.as_told(&pulled_told, number))
                .map_err(|e| format!("pulled by us: {e}"))
        };
        Ok(indices.map(verdict).collect())
    }

    /// What Nix shows of what it copied out of our cache, signatures required.
    fn copied_by_nix(&self) -> Verdicts {
        let mut all = Vec::new();
        for number in 0..self.cases.len() {
            for mut item in self.items(number) {
                (self.alter)(&mut item.0);
                self.sign(number, &mut item);
                all.push(item);
            }
        }
        caches::publish(&self.path("cache"), all)?;
        let key = self.key.public().to_string();
        let options = [
            "--option",
            "trusted-public-keys",
            &key,
            "--option",
            "require-sigs",
            "true",
        ];
        let mut copy = self.rig.command("nix");
        copy.args(["copy", "--from", &self.uri("cache"), "--to"]);
        copy.arg(self.path("theirs")).args(options);
        self.rig.try_run(copy.args(self.full(&self.roots)))?;
        let shown = self.shown("theirs")?;
        let indices = 0..self.cases.len();
        Ok(indices
            .map(|number| self.as_shown(&shown, number))
            .collect())
    }

    /// What Nix says of all closures in the store `name`, by path.
    fn shown(&self, name: &str) -> Result<BTreeMap<String, Value>, String> {
        let roots = self.full(&self.roots);
        let infos = caches::path_infos(self.rig, &self.path(name), &["-r"], &roots)?;
        let timeless = |(path, value)| (path, timeless(value));
        Ok(infos.into_iter().map(timeless).collect())
    }

    fn as_shown(&self, shown: &BTreeMap<String, Value>, number: usize) -> Verdict {
        let dir = StoreDir::default();
        let json = |(path, info): (&StorePath, &PathInfo)| {
            let json = path_info_to_json(info, &dir, JsonVersion::V1, JsonFields::Impure);
            let json = match self.rig.version {
                "2.8" => nix_2_8(json, &dir, path),
                "2.26" => without_version(json),
                _ => json,
            };
            (dir.path(path), timeless(json))
        };
        let ours: BTreeMap<_, _> = self.closures[number].iter().map(json).collect();
        let of_case = |(path, _): &(&String, &Value)| self.number(path) == Some(number);
        let theirs = shown.iter().filter(of_case);
        let theirs = theirs.map(|(path, v)| (path.clone(), v.clone())).collect();
        equal(ours, theirs)
    }

    /// Closures, references of the roots, and who refers to the first of each, in Nix's words.
    fn told(&self, store: &Path) -> Result<[BTreeSet<String>; 3], String> {
        let ask = |query: &str, paths: &[StorePath]| {
            let mut command = self.rig.command("nix-store");
            command.arg("--store").arg(store).args(["--query", query]);
            let out = self.rig.try_run(command.args(self.full(paths)))?;
            let out = String::from_utf8(out).map_err(|e| e.to_string())?;
            Ok::<BTreeSet<_>, String>(out.lines().map(str::to_owned).collect())
        };
        let verify = ["--verify", "--check-contents"];
        let mut command = self.rig.command("nix-store");
        self.rig
            .try_run(command.arg("--store").arg(store).args(verify))?;
        Ok([
            ask("--requisites", &self.roots)?,
            ask("--references", &self.roots)?,
            ask("--referrers", &self.lowest())?,
        ])
    }

    fn as_told(&self, told: &[BTreeSet<String>; 3], number: usize) -> Verdict {
        let closure = &self.closures[number];
        let lowest = &self.lowest()[number];
        let refers = |info: &&PathInfo| info.references.contains(lowest);
        let referrers = closure.values().filter(refers).map(|info| &info.path);
        let ours = [
            self.full(closure.keys()),
            self.full(&closure[&self.roots[number]].references),
            self.full(referrers),
        ];
        let of_case = |all: &BTreeSet<String>| -> Vec<String> {
            let own = all.iter().filter(|path| self.number(path) == Some(number));
            own.cloned().collect()
        };
        let sorted = ours.map(|paths| paths.into_iter().collect::<BTreeSet<_>>());
        let ours: Vec<Vec<String>> = sorted.iter().map(of_case).collect();
        equal(ours, told.iter().map(of_case).collect())
    }

    /// The closures, and who refers to the first of each, as we find them in Nix's store.
    fn opened(&self) -> Result<Vec<Verdict>, String> {
        runtime().block_on(async {
            let store = LocalStore::open(LocalConfig::chroot(self.path("theirs"))).await;
            let store = store.map_err(|e| e.to_line())?;
            let mut verdicts = Vec::new();
            for (root, lowest) in self.roots.iter().zip(self.lowest()) {
                let found = closure(&store, [root.clone()])
                    .await
                    .map_err(|e| e.to_line())?;
                let referrers = store.referrers(&lowest).await.map_err(|e| e.to_line())?;
                let number = verdicts.len();
                verdicts.push(self.as_opened(number, &lowest, &found.infos, &referrers));
            }
            Ok(verdicts)
        })
    }

    fn as_opened(
        &self,
        number: usize,
        lowest: &StorePath,
        found: &BTreeMap<StorePath, PathInfo>,
        referrers: &BTreeSet<StorePath>,
    ) -> Verdict {
        let mut found = found.clone();
        found
            .values_mut()
            .for_each(|info| info.registration_time = 0);
        let expected = &self.closures[number];
        let refers = |info: &&PathInfo| info.references.contains(lowest);
        let refer = expected
            .values()
            .filter(refers)
            .map(|info| info.path.clone());
        equal(&found, expected).map_err(|e| format!("opened by us: {e}"))?;
        equal(referrers, &refer.collect()).map_err(|e| format!("referrers: {e}"))
    }

    /// Nix copies its store into a cache.
    fn pushed(&self) -> Result<(), String> {
        let mut copy = self.rig.command("nix");
        copy.args(["copy", "--no-check-sigs", "--store"])
            .arg(self.path("theirs"));
        let to = self.uri("pushed") + "?compression=none";
        copy.args(["--to", &to]).args(self.full(&self.roots));
        self.rig.try_run(&mut copy).map(|_| ())
    }

    fn same_narinfos(&self, number: usize) -> Verdict {
        let read = |cache: &str, path: &StorePath| {
            let file = format!("{}.narinfo", path.hash_part());
            fs::read_to_string(self.path(cache).join(file)).map_err(|e| format!("{path}: {e}"))
        };
        let same = |path| equal(read("cache", path)?, read("pushed", path)?);
        self.closures[number].keys().try_for_each(same)
    }

    /// We copy that cache into a store, signatures required.
    fn pulled(&self) -> Result<(), String> {
        let report = runtime().block_on(self.pull()).map_err(|e| e.to_line())?;
        match report.failed.first() {
            None => Ok(()),
            Some((path, error)) => Err(format!("{path}: {}", error.to_line())),
        }
    }

    async fn pull(&self) -> tk_store::Result<CopyReport> {
        let config = BinaryCacheConfig::default();
        let from: Arc<dyn Store> =
            Arc::new(BinaryCache::open_folder(self.path("pushed"), config).await?);
        let to = LocalStore::open(LocalConfig::chroot(self.path("ours"))).await?;
        let policy = Policy::new([self.key.public()].into_iter().collect());
        let options = CopyOptions::new(SigCheck::Require(Arc::new(policy)));
        let roots = self.roots.iter().cloned().collect();
        let plan = plan(&*from, &to, &roots, &options).await?;
        plan.run(&from, &to, Arc::new(())).await
    }

    /// Of each case the path of its closure whose name sorts first.
    fn lowest(&self) -> Vec<StorePath> {
        let lowest = |closure: &BTreeMap<StorePath, PathInfo>| {
            let lowest = closure.keys().min_by_key(|path| path.name().to_owned());
            lowest.expect("the root at least").clone()
        };
        self.closures.iter().map(lowest).collect()
    }

    /// The case that a full path belongs to.
    fn number(&self, path: &str) -> Option<usize> {
        let name = path.rsplit('/').next()?;
        name.split('-').nth(1)?.strip_prefix('c')?.parse().ok()
    }

    fn full<'p>(&self, paths: impl IntoIterator<Item = &'p StorePath>) -> Vec<String> {
        let dir = StoreDir::default();
        paths.into_iter().map(|path| dir.path(path)).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn uri(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }
}

/// What of `infos` is in the closure of `root`.
fn reachable(
    infos: &BTreeMap<StorePath, PathInfo>,
    root: &StorePath,
) -> BTreeMap<StorePath, PathInfo> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![root]);
    while let Some(path) = todo.pop() {
        if let Some((path, info)) = infos.get_key_value(path)
            && found.insert(path.clone(), info.clone()).is_none()
        {
            todo.extend(&info.references);
        }
    }
    found
}

/// What is shown without when it was registered.
fn timeless(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.remove("registrationTime");
    }
    value
}

/// Cases at once: what a command line holds.
const BATCH: usize = 250;
