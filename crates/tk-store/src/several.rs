//! Several stores as one to read from: each path from the first that has it.

use crate::{
    Abilities, AddItems, AddOptions, AddReport, ByteStream, Describe, Error, Logs, NarStream,
    Realisations, Result, SigCheck, Store, StoreDescription, StoreExt, each_info,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future, stream, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tk_narinfo::{
    PathInfo,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{HashPart, NarHash, StoreDir, StorePath};
use tokio::sync::mpsc;

/// Stores that are read as one, in the order in which they are preferred: each path comes from the
/// first that has it, as Nix takes paths from its substituters.
///
/// A store that cannot be asked is passed over, and the others answer. What none of those has is
/// then not absent: whether the other one has it could not be asked, which is an error. A store
/// that fails again and again is not asked any more.
///
/// Nothing is written: [`Store::add`] is [`Error::Unsupported`].
///
/// ```
/// use std::sync::Arc;
/// use tk_store::{Abilities, MemoryStore, SeveralStores};
/// # fn main() -> Result<(), tk_store::Error> {
/// let (near, far) = (MemoryStore::default(), MemoryStore::default());
/// let both = [near, far].map(|store| Abilities::of(Arc::new(store)));
/// let stores = SeveralStores::new(both)?.on_failure(|store, error| {
///     eprintln!("{store} is passed over: {error}");
/// });
/// # Ok(()) }
/// ```
pub struct SeveralStores {
    members: Vec<SeveralMember>,
    lost: Vec<(String, String)>,
    check: SigCheck,
    on_failure: Box<FailureListener>,
    /// Which member gives a path, and the NAR that it promises.
    origins: Mutex<BTreeMap<StorePath, (usize, NarHash)>>,
    /// Members that gave what was not as it should be.
    barred: Mutex<BTreeSet<(StorePath, usize)>>,
}

type FailureListener = dyn Fn(&dyn Store, &Error) + Send + Sync;
type MemberAnswer = (StorePath, Result<Option<PathInfo>>);

struct SeveralMember {
    abilities: Abilities,
    /// Failures since the last answer.
    failures: AtomicUsize,
}

/// What is known of a path that no member has given yet.
#[derive(Default)]
struct PendingPath {
    untrusted: Option<(usize, PathInfo)>,
    unasked: Option<Unasked>,
}

/// Why a store could not say whether it has a path.
struct Unasked {
    store: String,
    why: String,
}

impl SeveralStores {
    /// `stores`, the preferred one first.
    ///
    /// # Errors
    /// When there is none, or when they are not all for the same store directory.
    pub fn new(stores: impl IntoIterator<Item = Abilities>) -> Result<Self> {
        let member = |abilities| SeveralMember {
            abilities,
            failures: AtomicUsize::new(0),
        };
        let members: Vec<_> = stores.into_iter().map(member).collect();
        let Some(first) = members.first() else {
            return Err(Error::invalid("there is no store to read from"));
        };
        let dir = first.store().dir();
        if let Some(other) = members.iter().find(|member| member.store().dir() != dir) {
            return Err(Error::StoreDir {
                store: other.store().to_string(),
                theirs: other.store().dir().to_string(),
                ours: dir.clone(),
            });
        }
        Ok(SeveralStores {
            members,
            lost: Vec::new(),
            check: SigCheck::Skip,
            on_failure: Box::new(|_, _| {}),
            origins: Mutex::default(),
            barred: Mutex::default(),
        })
    }

    /// Says that `store` belongs to them but could not even be opened, because of `why`.
    pub fn without(mut self, store: impl Into<String>, why: impl Into<String>) -> Self {
        self.lost.push((store.into(), why.into()));
        self
    }

    /// Prefers stores whose metadata of a path satisfies `check`, as Nix ignores substitutes that
    /// are not signed as demanded. A path that none has so is taken from the first that has it, so
    /// that whoever adds it somewhere can say what is wrong.
    pub fn prefer(mut self, check: SigCheck) -> Self {
        self.check = check;
        self
    }

    /// Whom to tell that a store could not be asked. Told of every failure, from any thread.
    pub fn on_failure(
        mut self,
        listener: impl Fn(&dyn Store, &Error) + Send + Sync + 'static,
    ) -> Self {
        self.on_failure = Box::new(listener);
        self
    }

    /// The stores, the preferred one first.
    pub fn stores(&self) -> impl Iterator<Item = &Abilities> {
        self.members.iter().map(|member| &member.abilities)
    }

    /// The place among [`SeveralStores::stores`] of the one that gave the metadata of `path`;
    /// `None` if nobody asked, or none has it.
    pub fn origin(&self, path: &StorePath) -> Option<usize> {
        lock(&self.origins).get(path).map(|(index, _)| *index)
    }

    /// No longer takes `path` from the store that gave it: its content was not what it should be.
    /// Whether another store may have it.
    pub fn bar(&self, path: &StorePath) -> bool {
        let Some((index, _)) = lock(&self.origins).remove(path) else {
            return false;
        };
        let mut barred = lock(&self.barred);
        barred.insert((path.clone(), index));
        let open = |index: usize| !barred.contains(&(path.clone(), index));
        (0..self.members.len()).any(open)
    }

    /// The stores with all that can be done with several of them.
    pub fn abilities(self: Arc<Self>) -> Abilities {
        let realisations = self.stores().any(|store| store.realisations.is_some());
        let logs = self.stores().any(|store| store.logs.is_some());
        Abilities {
            realisations: realisations.then(|| self.clone() as Arc<dyn Realisations>),
            logs: logs.then(|| self.clone() as Arc<dyn Logs>),
            description: Some(self.clone()),
            ..Abilities::of(self)
        }
    }

    fn is_barred(&self, path: &StorePath, index: usize) -> bool {
        let barred = lock(&self.barred);
        !barred.is_empty() && barred.contains(&(path.clone(), index))
    }

    /// What `member` said, or why it could not be asked, which is told.
    fn heard<T>(&self, member: &SeveralMember, answer: Result<T>) -> Result<T, Unasked> {
        match answer {
            Ok(answer) => {
                member.failures.store(0, Ordering::Relaxed);
                Ok(answer)
            }
            Err(error) => {
                member.failures.fetch_add(1, Ordering::Relaxed);
                (self.on_failure)(member.store(), &error);
                Err(Unasked {
                    store: member.store().to_string(),
                    why: error.to_line(),
                })
            }
        }
    }

    /// The answers of the member at `index` and those behind it. What one does not have goes on to
    /// the next as soon as it says so.
    fn answers_from<'a>(
        &'a self,
        index: usize,
        pending: Arc<Mutex<BTreeMap<StorePath, PendingPath>>>,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, MemberAnswer> {
        let Some(member) = self.members.get(index) else {
            let settle = move |path: StorePath| {
                let known = lock(&pending).remove(&path).unwrap_or_default();
                let answer = self.settle(&path, known);
                (path, answer)
            };
            return paths.map(settle).boxed();
        };
        let (send, mut receive) = mpsc::unbounded_channel();
        let next = stream::poll_fn(move |cx| receive.poll_recv(cx)).boxed();
        let rest = self.answers_from(index + 1, pending.clone(), next);
        // The receiver lives in `rest`, which outlives the senders.
        let pass = move |path: StorePath, note: &dyn Fn(&mut PendingPath)| {
            note(lock(&pending).entry(path.clone()).or_default());
            let _ = send.send(path);
        };
        let pass = Arc::new(pass);
        let ahead = pass.clone();
        let asked = paths.filter_map(move |path| {
            let barred = self.is_barred(&path, index);
            let given_up = member.is_given_up();
            let ask = !barred && !given_up;
            let path = if ask {
                Some(path)
            } else {
                ahead(path, &|known| {
                    if given_up {
                        known.unasked = Some(member.given_up());
                    }
                });
                None
            };
            future::ready(path)
        });
        // When the answers end this state goes, with the sender in it: then the next one's end too.
        let state = (member.store().each_info(asked.boxed()), pass);
        let answers = stream::unfold(state, move |(mut answers, pass)| async move {
            loop {
                let (path, answer) = answers.next().await?;
                match self.heard(member, answer) {
                    Ok(Some(info)) if self.check.check(self.dir(), &info).is_ok() => {
                        self.remember(&path, index, &info);
                        return Some(((path, Ok(Some(info))), (answers, pass)));
                    }
                    Ok(Some(info)) => pass(path, &|known| {
                        let found = || (index, info.clone());
                        known.untrusted.get_or_insert_with(found);
                    }),
                    Ok(None) => pass(path, &|_| {}),
                    Err(unasked) => {
                        let unasked = Mutex::new(Some(unasked));
                        pass(path, &|known| known.unasked = lock(&unasked).take());
                    }
                }
            }
        });
        stream::select(answers, rest).boxed()
    }

    /// What there is to say of a path that no member gave.
    fn settle(&self, path: &StorePath, known: PendingPath) -> Result<Option<PathInfo>> {
        if let Some((index, info)) = known.untrusted {
            self.remember(path, index, &info);
            return Ok(Some(info));
        }
        match known.unasked.or_else(|| self.lost()) {
            Some(unasked) => Err(unasked.about(format_args!("{path}"))),
            None => Ok(None),
        }
    }

    fn remember(&self, path: &StorePath, index: usize, info: &PathInfo) {
        lock(&self.origins).insert(path.clone(), (index, info.nar_hash));
    }

    fn lost(&self) -> Option<Unasked> {
        self.lost.first().map(|(store, why)| Unasked {
            store: store.clone(),
            why: why.clone(),
        })
    }

    /// The first answer that is one, of the members in their order. `Ok(None)` if none has any.
    async fn first<'a, T, F>(
        &'a self,
        what: impl fmt::Display,
        ask: impl Fn(&'a Abilities) -> F,
    ) -> Result<Option<T>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let mut unasked = None;
        for member in &self.members {
            if member.is_given_up() {
                unasked = Some(member.given_up());
                continue;
            }
            match ask(&member.abilities).await {
                Err(Error::Unsupported { .. }) => {}
                answer => match self.heard(member, answer) {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(failed) => unasked = Some(failed),
                },
            }
        }
        match unasked.or_else(|| self.lost()) {
            Some(unasked) => Err(unasked.about(what)),
            None => Ok(None),
        }
    }

    /// The members that may have `path`, that which gave its metadata first.
    fn candidates(&self, path: &StorePath) -> Vec<usize> {
        let origin = self.origin(path);
        let others = (0..self.members.len()).filter(|index| Some(*index) != origin);
        let all = origin.into_iter().chain(others);
        all.filter(|index| !self.is_barred(path, *index)).collect()
    }
}

impl SeveralMember {
    fn store(&self) -> &dyn Store {
        &*self.abilities.store
    }

    fn is_given_up(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= each_info::TRIES
    }

    fn given_up(&self) -> Unasked {
        Unasked {
            store: self.store().to_string(),
            why: "it failed several times in a row, and is not asked any more".to_owned(),
        }
    }
}

impl Unasked {
    fn about(self, what: impl fmt::Display) -> Error {
        Error::Io {
            doing: format!(
                "{} could not be asked about {what}, which no other store has",
                self.store
            ),
            source: io::Error::other(self.why),
        }
    }
}

#[async_trait]
impl Describe for SeveralStores {
    async fn describe(&self) -> Result<StoreDescription> {
        Ok(StoreDescription::of("several stores"))
    }
}

#[async_trait]
impl Store for SeveralStores {
    fn dir(&self) -> &StoreDir {
        // There is at least one.
        self.members[0].store().dir()
    }

    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        let (mut found, mut unasked) = (BTreeSet::new(), None);
        for member in &self.members {
            let open = paths - &found;
            if open.is_empty() {
                break;
            }
            match self.heard(member, member.store().valid(&open).await) {
                Ok(there) => found.extend(&there & &open),
                Err(failed) => unasked = Some(failed),
            }
        }
        let open = paths - &found;
        match (open.first(), unasked.or_else(|| self.lost())) {
            (Some(path), Some(unasked)) => Err(unasked.about(path)),
            _ => Ok(found),
        }
    }

    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>> {
        let answers = self.each_info(paths);
        answers
            .map(|(path, answer)| answer.map(|info| (path, info)))
            .boxed()
    }

    fn each_info<'a>(&'a self, paths: BoxStream<'a, StorePath>) -> BoxStream<'a, MemberAnswer> {
        self.answers_from(0, Arc::default(), paths)
    }

    /// What a store remembered is asked again; if it says the same still, another store is asked next.
    async fn renew(&self, path: &StorePath) -> Result<bool> {
        let mut new = false;
        for member in &self.members {
            new |= member.store().renew(path).await.unwrap_or(false);
        }
        Ok(new || self.bar(path))
    }

    /// From the store that gave the metadata, or else the next that has it. One that breaks off is
    /// made up for by another that has the same NAR.
    async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        let promised = lock(&self.origins).get(path).map(|(_, hash)| *hash);
        let candidates = self.candidates(path);
        let mut stores = candidates
            .into_iter()
            .map(|index| &self.members[index].abilities.store);
        let mut failed = None;
        while let Some(store) = stores.next() {
            match store.nar(path).await {
                Ok(nar) => {
                    let others = stores.cloned().collect();
                    return Ok(match promised {
                        Some(hash) => made_up_for(nar, path.clone(), hash, others),
                        None => nar,
                    });
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => {
                    (self.on_failure)(&**store, &error);
                    failed.get_or_insert(error);
                }
            }
        }
        match (failed, self.lost()) {
            (Some(error), _) => Err(error),
            (None, Some(unasked)) => Err(unasked.about(path)),
            (None, None) => Err(Error::NotFound {
                path: path.clone(),
                store: self.to_string(),
            }),
        }
    }

    async fn add(&self, _: AddItems<'_>, _: &AddOptions) -> Result<AddReport> {
        Err(self.read_only())
    }

    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let what = format!("the path {}", part.as_str());
        self.first(what, |store| store.store.find(part)).await
    }
}

#[async_trait]
impl Realisations for SeveralStores {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let what = id.display(self.dir()).to_string();
        let ask = |store: &'_ Abilities| {
            let store = store.realisations.clone();
            async move {
                match store {
                    Some(store) => store.realisation(id).await,
                    None => Ok(None),
                }
            }
        };
        self.first(what, ask).await
    }

    async fn register(&self, _: &Realisation, _: &SigCheck) -> Result<()> {
        Err(self.read_only())
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>> {
        let ask = |store: &'_ Abilities| {
            let store = store.realisations.clone();
            async move {
                match store {
                    Some(store) => store.legacy_realisation(id).await,
                    None => Ok(None),
                }
            }
        };
        self.first(id, ask).await
    }

    async fn register_legacy(&self, _: &legacy::LegacyRealisation, _: &SigCheck) -> Result<()> {
        Err(self.read_only())
    }
}

#[async_trait]
impl Logs for SeveralStores {
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>> {
        let what = format!("the log of {drv}");
        let ask = |store: &'_ Abilities| {
            let store = store.logs.clone();
            async move {
                match store {
                    Some(store) => store.build_log(drv).await,
                    None => Ok(None),
                }
            }
        };
        self.first(what, ask).await
    }

    async fn add_build_log(&self, _: &StorePath, _: ByteStream) -> Result<()> {
        Err(self.read_only())
    }
}

impl SeveralStores {
    fn read_only(&self) -> Error {
        Error::Unsupported {
            store: self.to_string(),
            what: "are several stores, which are only read from".to_owned(),
        }
    }
}

/// Their URIs, the preferred one first.
impl fmt::Display for SeveralStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.stores().map(|store| store.store.to_string());
        let lost = self.lost.iter().map(|(store, _)| store.clone());
        f.write_str(&members.chain(lost).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for SeveralStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.stores()).finish()
    }
}

/// The NAR of `path`; what is missing when it breaks off comes from one of `others` that promises the
/// same `hash`.
fn made_up_for(
    nar: NarStream,
    path: StorePath,
    hash: NarHash,
    others: VecDeque<Arc<dyn Store>>,
) -> NarStream {
    let resumed = move |(mut nar, mut others, sent): (NarStream, VecDeque<Arc<dyn Store>>, u64)| {
        let path = path.clone();
        async move {
            let error = match nar.next().await? {
                Err(error @ (Error::Io { .. } | Error::Refused { .. })) => error,
                Err(error) => return Some((Err(error), (stream::empty().boxed(), others, sent))),
                Ok(chunk) => {
                    let sent = sent + chunk.len() as u64;
                    return Some((Ok(chunk), (nar, others, sent)));
                }
            };
            while let Some(store) = others.pop_front() {
                if let Ok(Some(info)) = store.info(&path).await
                    && info.nar_hash == hash
                    && let Ok(rest) = store.nar(&path).await
                {
                    // An empty chunk, so that the next poll goes on with the rest.
                    return Some((Ok(Bytes::new()), (skip(rest, sent), others, sent)));
                }
            }
            Some((Err(error), (stream::empty().boxed(), others, sent)))
        }
    };
    stream::unfold((nar, others, 0), resumed)
        .filter(|chunk| future::ready(!chunk.as_ref().is_ok_and(Bytes::is_empty)))
        .boxed()
}

/// `nar` without its first `bytes`.
fn skip(nar: NarStream, mut bytes: u64) -> NarStream {
    nar.map_ok(move |chunk| {
        let passed = bytes.min(chunk.len() as u64);
        bytes -= passed;
        chunk.slice(passed as usize..)
    })
    .boxed()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
