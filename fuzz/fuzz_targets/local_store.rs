//! Whatever is done to a store on disk, and wherever it is given up: what is registered is there, whole, with all that
//! it refers to, as a model in memory has it; and nothing else stays.
#![no_main]

use futures::{StreamExt, stream};
use libfuzzer_sys::fuzz_target;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::{Future, poll_fn},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    pin::pin,
    sync::OnceLock,
    task::Poll,
};
use tempfile::TempDir;
use tk_local::{Durability, LocalConfig, LocalStore};
use tk_nar::fs::{DumpOptions, remove_tree};
use tk_narinfo::{PathInfo, Signature};
use tk_path::{Algorithm, ContentAddress, Hash, Method, NarHash, References, StorePath};
use tk_store::{
    AddContent, AddOptions, AddReport, AddSignatures, Error, Existing, NarStream, Result, Roots,
    SigCheck, Store, StoreExt, nar, verify,
};
use tokio::runtime::{Builder, Runtime};

fuzz_target!(|input: &[u8]| {
    play(input, |_| {});
});

/// Plays the moves that `input` stands for. Before each look at the store, `beside` is given its
/// folder: what it does there nobody tells the model.
///
/// # Panics
/// When the store is not what it must be.
pub(crate) fn play(input: &[u8], beside: impl Fn(&Path)) {
    let mut moves = Moves(input.iter().copied());
    let mut game = Game::new();
    for _ in 0..MOST_MOVES {
        let Some(what) = moves.0.next() else { break };
        game.make(what, &mut moves);
        beside(&game.place());
        game.judge();
    }
    game.end();
}

/// The bytes of the input; zeros when they are used up.
struct Moves<'a>(std::iter::Copied<std::slice::Iter<'a, u8>>);

impl Moves<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().unwrap_or(0)
    }

    /// One of the paths, by its number.
    fn sample(&mut self) -> usize {
        usize::from(self.byte()) % SAMPLES
    }

    fn existing(&mut self) -> Existing {
        match self.byte() % 2 {
            0 => Existing::Keep,
            _ => Existing::Replace,
        }
    }

    /// A path with one of two contents, references to some before it, and how its NAR arrives.
    fn item(&mut self, number: usize) -> Item {
        let (content, mask, how) = (self.byte(), self.byte(), self.byte());
        let nar = &samples()[number].1[usize::from(content % 2)];
        let mut info = PathInfo::new(path(number), NarHash::digest(nar), nar.len() as u64);
        let others = (0..=number).filter(|other| mask & (1 << other) != 0);
        info.references = others.map(path).collect();
        Item {
            info,
            nar: nar.clone(),
            arrival: Arrival::of(how, nar.len()),
        }
    }

    /// Up to three different paths, in the order of their numbers.
    fn items(&mut self) -> Vec<Item> {
        let count = 1 + self.byte() % 3;
        let numbers: BTreeSet<_> = (0..count).map(|_| self.sample()).collect();
        numbers
            .into_iter()
            .map(|number| self.item(number))
            .collect()
    }
}

/// A path that is to be added.
struct Item {
    info: PathInfo,
    nar: Vec<u8>,
    arrival: Arrival,
}

/// How a NAR arrives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Whole,
    /// The source fails behind so many bytes.
    Fails(usize),
    /// It ends there, as if that were all.
    Ends(usize),
    /// This byte is another one.
    Flipped(usize),
}

impl Arrival {
    fn of(how: u8, length: usize) -> Self {
        let at = usize::from(how) * 7 % length;
        match how % 8 {
            5 => Arrival::Fails(at),
            6 => Arrival::Ends(at),
            7 => Arrival::Flipped(at),
            _ => Arrival::Whole,
        }
    }

    /// `nar` in pieces, between which others have their turn.
    fn stream(self, nar: &[u8]) -> NarStream {
        let mut nar = nar.to_vec();
        let mut failure = None;
        match self {
            Arrival::Whole => {}
            Arrival::Ends(at) => nar.truncate(at),
            Arrival::Flipped(at) => nar[at] ^= 1,
            Arrival::Fails(at) => {
                nar.truncate(at);
                let reset = io::ErrorKind::ConnectionReset;
                failure = Some(Err(Error::io("reading the NAR", reset)));
            }
        }
        let pieces: Vec<_> = nar
            .chunks(PIECE)
            .map(|piece| Ok(piece.to_vec().into()))
            .collect();
        let pieces = stream::iter(pieces.into_iter().chain(failure));
        let turns = pieces.then(|piece| async {
            tokio::task::yield_now().await;
            piece
        });
        turns.boxed()
    }
}

impl Item {
    fn parts(&self) -> (PathInfo, NarStream) {
        (self.info.clone(), self.arrival.stream(&self.nar))
    }
}

/// A store, and what should be in it.
struct Game {
    folder: TempDir,
    runtime: Option<Runtime>,
    /// Two handles on the same store.
    stores: Vec<LocalStore>,
    model: BTreeMap<StorePath, Row>,
    /// What crashes left below the names of paths that are not registered.
    left_over: BTreeSet<StorePath>,
    /// Folders of processes that died in the midst of adding.
    dead: Vec<PathBuf>,
}

/// A path that is registered.
#[derive(Clone)]
struct Row {
    info: PathInfo,
    damaged: bool,
}

impl Game {
    fn new() -> Self {
        let memory = TempDir::with_prefix_in("tk-fuzz-", "/dev/shm");
        let folder = memory
            .or_else(|_| TempDir::new())
            .expect("a temporary folder");
        fill_in(folder.path());
        let mut game = Game {
            folder,
            runtime: None,
            stores: Vec::new(),
            model: BTreeMap::new(),
            left_over: BTreeSet::new(),
            dead: Vec::new(),
        };
        game.open();
        game
    }

    fn make(&mut self, what: u8, moves: &mut Moves) {
        match what % 12 {
            0..=2 => self.add(moves),
            3 => self.give_up(moves),
            4 => self.add_at_once(moves),
            5 => self.add_content(moves),
            6 => self.sign(moves.sample(), moves.byte()),
            7 => self.root(moves.sample()),
            8 => self.damage(moves.sample(), moves.byte()),
            9 => self.leave_half(moves.sample(), moves.byte()),
            10 => self.leave_folder(moves.byte()),
            _ => self.reopen(),
        }
    }

    fn place(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn store(&self) -> LocalStore {
        self.stores[0].clone()
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime
            .as_ref()
            .expect("there between moves")
            .block_on(future)
    }

    /// Waits until no thread is at work on what was given up.
    fn settle(&mut self) {
        drop(self.runtime.take());
        let mut runtime = Builder::new_current_thread();
        self.runtime = Some(runtime.enable_all().build().expect("a runtime"));
    }

    fn open(&mut self) {
        self.settle();
        let mut config = LocalConfig::chroot(self.folder.path());
        config.durability = Durability::Nothing;
        self.stores = (0..2)
            .map(|_| {
                self.wait(LocalStore::open(config.clone()))
                    .expect("it opens")
            })
            .collect();
    }

    /// As after the death of the process, whose memory nobody has.
    fn reopen(&mut self) {
        self.stores.clear();
        self.open();
    }

    /// Adds paths, and compares what the store says of each with what must become of it.
    fn add(&mut self, moves: &mut Moves) {
        let (existing, items) = (moves.existing(), moves.items());
        let report = self
            .wait(added(&self.store(), &items, existing))
            .expect("a report");
        self.swept();
        let mut failed = BTreeSet::new();
        for item in items {
            let path = item.info.path.clone();
            let is_added = report.added.contains(&path);
            assert_ne!(
                is_added,
                report.failed.iter().any(|(p, _)| *p == path),
                "{path}: {report:?}"
            );
            let kept = existing == Existing::Keep && self.model.contains_key(&path);
            // With a reference that failed just before, what is there may or may not be found first.
            if !kept || item.info.references.is_disjoint(&failed) {
                assert_eq!(
                    is_added,
                    kept || self.is_fine(&item, &failed),
                    "{path}: {report:?}"
                );
            }
            match is_added {
                true if !kept => self.register(item.info),
                true => {}
                false => drop(failed.insert(path)),
            }
        }
    }

    fn is_fine(&self, item: &Item, failed: &BTreeSet<StorePath>) -> bool {
        let PathInfo {
            path, references, ..
        } = &item.info;
        let is_there =
            |r: &StorePath| r == path || (self.model.contains_key(r) && !failed.contains(r));
        item.arrival == Arrival::Whole && references.iter().all(is_there)
    }

    fn register(&mut self, info: PathInfo) {
        let path = info.path.clone();
        self.left_over.remove(&path);
        let damaged = false;
        self.model.insert(path, Row { info, damaged });
    }

    /// Adds paths, and drops the future after some polls.
    fn give_up(&mut self, moves: &mut Moves) {
        let (existing, items, polls) = (moves.existing(), moves.items(), moves.byte());
        let store = self.store();
        self.wait(async {
            let mut adding = pin!(added(&store, &items, existing));
            let mut left = usize::from(polls) % MOST_POLLS;
            poll_fn(|cx| {
                if left == 0 {
                    return Poll::Ready(());
                }
                left -= 1;
                adding.as_mut().poll(cx).map(drop)
            })
            .await;
        });
        self.settle();
        if !self.dead.is_empty() {
            // The sweep may have been given up as well; the next open store begins it anew.
            self.reopen();
        }
        self.adopt(&items, existing);
    }

    /// Two handles add at the same time, each as if it were alone.
    fn add_at_once(&mut self, moves: &mut Moves) {
        let (mut one, two) = (moves.items(), moves.items());
        let (first, second) = (self.stores[0].clone(), self.stores[1].clone());
        let both = async {
            let keep = Existing::Keep;
            futures::join!(added(&first, &one, keep), added(&second, &two, keep))
        };
        let (first, second) = self.wait(both);
        first.and(second).expect("reports");
        self.swept();
        one.extend(two);
        self.adopt(&one, Existing::Keep);
    }

    /// After an operation whose outcome is open: takes over what became of `items`, if it is one of
    /// the things that may have.
    fn adopt(&mut self, items: &[Item], existing: Existing) {
        for path in items
            .iter()
            .map(|item| &item.info.path)
            .collect::<BTreeSet<_>>()
        {
            let found = self.wait(self.store().info(path)).expect("an answer");
            let before = self.model.get(path);
            let Some(found) = found.map(without_time) else {
                assert!(before.is_none(), "{path} is gone");
                continue;
            };
            let is_old = before.is_some_and(|row| row.info == found);
            if is_old && existing == Existing::Keep {
                continue;
            }
            let is_new = |item: &Item| item.info == found && item.arrival == Arrival::Whole;
            assert!(
                is_old || items.iter().any(is_new),
                "{path} became {found:?}"
            );
            // If old and new look the same, the content tells.
            let damaged = self.wait(verify(&self.store(), &found)).is_err();
            let was_damaged = before.is_some_and(|row| row.damaged);
            assert!(!damaged || (is_old && was_damaged), "{path} is damaged");
            self.left_over.remove(path);
            let row = Row {
                info: found,
                damaged,
            };
            self.model.insert(path.clone(), row);
        }
    }

    /// Adds one of the contents by what it is, with a reference.
    fn add_content(&mut self, moves: &mut Moves) {
        let (number, reference, how) = (moves.sample(), moves.byte(), moves.byte());
        let nar = &samples()[number].1[0];
        let mut references = References::default();
        if reference % 2 == 1 {
            references
                .others
                .insert(path(usize::from(reference / 2) % SAMPLES));
        }
        let arrival = match Arrival::of(how, nar.len()) {
            // Other content, or none at all: that is what other targets are for.
            Arrival::Flipped(_) => Arrival::Whole,
            other => other,
        };
        let (method, algorithm) = (Method::Nar, Algorithm::Sha256);
        let content = arrival.stream(nar);
        let store = self.store();
        let added =
            self.wait(store.add_content("content", method, algorithm, &references, content));
        self.swept();
        let hash = Hash::digest(algorithm, nar);
        let ca = ContentAddress { method, hash };
        let path = store
            .dir()
            .path_of_content("content", &ca, &references)
            .expect("a path");
        let is_there = self.model.contains_key(&path);
        let complete = references.others.iter().all(|r| self.model.contains_key(r));
        let fine = arrival == Arrival::Whole && (is_there || complete);
        assert_eq!(added.is_ok(), fine, "{added:?}");
        let mut info = PathInfo::new(path, NarHash::digest(nar), nar.len() as u64);
        info.references = references.others;
        info.ca = Some(ca);
        match added {
            Ok(found) if is_there => assert_eq!(found.path, info.path),
            Ok(found) => {
                assert_eq!(without_time(found), info);
                self.register(info);
            }
            Err(_) => {}
        }
    }

    fn sign(&mut self, number: usize, key: u8) {
        let signature = Signature::new(&format!("key-{}", key % 3), [key; 64]);
        let (path, new) = (path(number), BTreeSet::from([signature]));
        let signed = self.wait(self.store().add_signatures(&path, &new));
        match self.model.get_mut(&path) {
            Some(row) => {
                signed.expect("it is there");
                row.info.signatures.extend(new);
            }
            None => assert!(matches!(signed, Err(Error::NotFound { .. })), "{signed:?}"),
        }
    }

    fn root(&mut self, number: usize) {
        let (path, store) = (path(number), self.store());
        self.wait(store.add_temp_root(&path)).expect("a root");
        let roots = self.wait(store.roots()).expect("roots");
        let is_root = roots.iter().any(|root| root.target == path);
        assert_eq!(is_root, self.model.contains_key(&path), "{path}");
    }

    /// Changes what is registered, as a disk or a user does.
    fn damage(&mut self, number: usize, how: u8) {
        let path = path(number);
        let real = self.real(&path);
        let Some(row) = self.model.get_mut(&path) else {
            return;
        };
        row.damaged = true;
        let _ = remove_tree(&real);
        match how % 3 {
            0 => {}
            1 => symlink("nowhere", &real).expect("a link"),
            _ => fs::write(&real, "damaged").expect("a file"),
        }
    }

    /// Leaves what a process leaves that died between the move of the content and its row.
    fn leave_half(&mut self, number: usize, how: u8) {
        let path = path(number);
        let real = self.real(&path);
        if self.model.contains_key(&path) || fs::symlink_metadata(&real).is_ok() {
            return;
        }
        match how % 3 {
            0 => fs::write(&real, "half").expect("a file"),
            1 => symlink("nowhere", &real).expect("a link"),
            _ => {
                fs::create_dir(&real).expect("a folder");
                fs::write(real.join("half"), "").expect("a file");
                fs::set_permissions(&real, fs::Permissions::from_mode(0o555)).expect("ours");
            }
        }
        self.left_over.insert(path);
    }

    /// Leaves the temporary folder of a process that died.
    fn leave_folder(&mut self, number: u8) {
        let name = format!("{TEMPORARY}1-{number}");
        let digest = Hash::digest(Algorithm::Sha256, format!("temporary:{name}").as_bytes());
        let digest = digest.compress(20).try_into().expect("20 bytes");
        let path = StorePath::from_digest(&digest, &name).expect("a path");
        let folder = self.real(&path);
        fs::create_dir_all(folder.join("0/half")).expect("a folder");
        self.dead.push(folder);
        // Who opens the store anew sweeps when it adds.
        self.reopen();
    }

    /// After an add: what the dead left is gone.
    fn swept(&mut self) {
        for folder in self.dead.drain(..) {
            assert!(!folder.exists(), "{folder:?} is left");
        }
    }

    fn real(&self, path: &StorePath) -> PathBuf {
        self.stores[0].real_path(path)
    }

    /// Compares the store with the model.
    fn judge(&self) {
        let store = self.store();
        self.wait(async {
            let all = store.all().await.expect("a list");
            assert!(all.iter().eq(self.model.keys()), "{all:?}");
            for (path, row) in &self.model {
                let found = store.require_info(path).await.expect("a row");
                assert_eq!(without_time(found), row.info);
                let verified = verify(&store, &row.info).await;
                assert_eq!(verified.is_err(), row.damaged, "{path}: {verified:?}");
                assert!(row.info.references.is_subset(&all), "{path}");
                let found = store.find(&path.to_hash_part()).await;
                assert_eq!(found.expect("an answer").as_ref(), Some(path));
                let refers = |(_, row): &(_, &Row)| row.info.references.contains(path);
                let referrers = self.model.iter().filter(refers).map(|(path, _)| path);
                let found = store.referrers(path).await.expect("an answer");
                assert!(found.iter().eq(referrers), "{path}: {found:?}");
            }
        });
        for (name, entry) in entries(store.real_dir()) {
            let path = StorePath::parse(&name).ok();
            let known = |path: &StorePath| {
                self.model.contains_key(path)
                    || self.left_over.contains(path)
                    || self.dead.contains(&entry)
            };
            let is_empty = || fs::read_dir(&entry).is_ok_and(|mut inside| inside.next().is_none());
            let temporary = path
                .as_ref()
                .is_some_and(|path| path.name().starts_with(TEMPORARY));
            assert!(
                path.as_ref().is_some_and(known) || (temporary && is_empty()),
                "{name} is left"
            );
        }
    }

    /// Mends all that is damaged and adds what is missing: then all is there, and nothing else.
    fn end(mut self) {
        let infos = self
            .model
            .values()
            .map(|row| row.info.clone())
            .collect::<Vec<_>>();
        let all = samples().iter().map(|(path, nars)| {
            PathInfo::new(
                path.clone(),
                NarHash::digest(&nars[0]),
                nars[0].len() as u64,
            )
        });
        let missing = all.filter(|info| !self.model.contains_key(&info.path));
        for info in infos.into_iter().chain(missing.collect::<Vec<_>>()) {
            let nar = nar_with(info.nar_hash);
            let mut again = AddOptions::new(SigCheck::Skip);
            again.existing = Existing::Replace;
            let stream = nar::from_bytes(nar.to_vec());
            let mended = self.wait(self.store().add_one(info.clone(), stream, &again));
            mended.expect("nothing is in the way");
            self.register(info);
        }
        self.left_over.clear();
        self.swept();
        self.judge();
        self.stores.clear();
        let real = self.folder.path().join("nix/store");
        let names = entries(&real).into_keys();
        assert!(
            names.eq(self.model.keys().map(ToString::to_string)),
            "something is left"
        );
        let _ = remove_tree(&self.folder.keep());
    }
}

async fn added(store: &LocalStore, items: &[Item], existing: Existing) -> Result<AddReport> {
    let mut options = AddOptions::new(SigCheck::Skip);
    options.existing = existing;
    let items: Vec<_> = items.iter().map(|item| Ok(item.parts())).collect();
    store.add(stream::iter(items).boxed(), &options).await
}

fn without_time(mut info: PathInfo) -> PathInfo {
    info.registration_time = 0;
    info
}

/// What lies in a store directory, by name.
fn entries(real: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(real)
        .expect("a store")
        .map(|entry| entry.expect("an entry"));
    let entries = entries.map(|entry| {
        (
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        )
    });
    entries.filter(|(name, _)| name != ".links").collect()
}

fn path(number: usize) -> StorePath {
    samples()[number].0.clone()
}

/// The paths, each with two contents: files, and folders.
fn samples() -> &'static [(StorePath, [Vec<u8>; 2])] {
    static ALL: OnceLock<Vec<(StorePath, [Vec<u8>; 2])>> = OnceLock::new();
    ALL.get_or_init(|| {
        let make = |number: usize| {
            let path = StorePath::from_digest(&[number as u8 + 1; 20], &format!("sample-{number}"));
            let nars = ["one", "two"].map(|content| nar_of(number, content));
            (path.expect("a path"), nars)
        };
        (0..SAMPLES).map(make).collect()
    })
}

fn nar_of(number: usize, content: &str) -> Vec<u8> {
    let folder = TempDir::new().expect("a temporary folder");
    let tree = folder.path().join("tree");
    let content = format!("{number} {content} ").repeat(1 + number * 40);
    match number % 2 {
        0 => fs::write(&tree, content).expect("a file"),
        _ => {
            fs::create_dir(&tree).expect("a folder");
            fs::write(tree.join("file"), content).expect("a file");
            symlink("file", tree.join("link")).expect("a link");
        }
    }
    let mut nar = Vec::new();
    tk_nar::fs::dump(&tree, &DumpOptions::default(), &mut nar).expect("a NAR");
    nar
}

fn nar_with(hash: NarHash) -> &'static [u8] {
    let mut nars = samples().iter().flat_map(|(_, nars)| nars);
    nars.find(|nar| NarHash::digest(nar) == hash)
        .expect("one of ours")
}

/// Makes an empty store: its files as they were made once, which is faster than making them.
fn fill_in(root: &Path) {
    static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let folder = TempDir::new().expect("a temporary folder");
        let opened = tk_fuzz::wait(LocalStore::open(LocalConfig::chroot(folder.path())));
        drop(opened.expect("a store"));
        let database = folder.path().join(DATABASE);
        let names = ["db.sqlite", "schema"].map(str::to_owned);
        names
            .map(|name| (name.clone(), fs::read(database.join(name)).expect("a file")))
            .into()
    });
    let database = root.join(DATABASE);
    fs::create_dir_all(&database).expect("a folder");
    for (name, content) in files {
        fs::write(database.join(name), content).expect("a file");
    }
}

const SAMPLES: usize = 6;
/// Bytes of the pieces in which NARs arrive.
const PIECE: usize = 300;
const MOST_MOVES: usize = 40;
/// After so many polls whatever is added here is there.
const MOST_POLLS: usize = 24;
const TEMPORARY: &str = "tk-tmp-";
const DATABASE: &str = "nix/var/nix/db";
