//! What every [`Store::add`](crate::Store::add) has in common, whatever the store does with bytes:
//! references go first, a failure takes its referrers along, and each item ends in the report once.
//!
//! ```text
//! accept ─> queued ─ begin ─> begun ─ prepared ─> prepared ─ next ─> handed out ─ added ─> added
//!             └───────┬─────────┴───────────────────┴─────────────────┘
//!                   failed, and with it what refers to it
//! ```
//! What needs no references (packing, receiving) lies between `begin` and `prepared`, in any order.
//! A store without such work prepares an item as soon as it is accepted.

use crate::{AddItem, AddItems, AddOptions, AddReport, Error, Existing, Result, nar::EndOnDrop};
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    mem,
    sync::Arc,
};
use tk_narinfo::PathInfo;
use tk_path::{StoreDir, StorePath};

/// The order of one call of [`Store::add`](crate::Store::add). `P` is what a store keeps of an item
/// that is prepared and waits for its references.
///
/// An item fails with [`Error::MissingReference`] when a reference is neither in the store nor
/// accepted before it, and when a reference fails. What was there before the call
/// counts as there, also while it is replaced. A path that is accepted again is passed over, unless
/// it has failed: then it is tried again.
pub struct AddSchedule<P> {
    dir: StoreDir,
    store: String,
    required: RequiredReferences,
    options: AddOptions,
    seen: HashMap<StorePath, SeenPath>,
    items: Vec<ScheduledItem<P>>,
    /// Prepared items that may go: anywhere (`None`), or only on that lane. Some may have gone or
    /// failed since they were put here.
    ready: BTreeSet<(Option<usize>, AddId)>,
    waiting: usize,
    report: AddReport,
}

/// The items of a schedule by the order in which they were accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddId(usize);

/// Which references of an item must be in the store before it.
#[derive(Debug, Clone)]
pub enum RequiredReferences {
    /// All of them.
    All,
    /// All but these, which readers have from elsewhere.
    AllBut(Arc<BTreeSet<StorePath>>),
    /// None of them.
    None,
}

enum SeenPath {
    /// It was in the store before.
    Present,
    /// The same, and it was given, left as it is, and reported.
    Kept,
    /// It was accepted.
    Accepted(AddId),
}

struct ScheduledItem<P> {
    path: StorePath,
    stage: ItemStage<P>,
    /// Accepted references that are not added yet.
    awaits: Vec<AddId>,
    referrers: Vec<AddId>,
    /// What is there stays if this fails, so that nobody waits for it.
    replaces: bool,
    /// A reference that failed while this was under way.
    lost: Option<StorePath>,
}

enum ItemStage<P> {
    Queued,
    Begun(Option<EndOnDrop>),
    Prepared(P),
    HandedOut(Option<usize>),
    Added,
    Failed,
}

impl<P> AddSchedule<P> {
    /// A schedule without items, for the store at the URI `store`, whose directory is `dir`.
    pub fn new(
        dir: &StoreDir,
        store: impl ToString,
        options: &AddOptions,
        required: RequiredReferences,
    ) -> Self {
        AddSchedule {
            dir: dir.clone(),
            store: store.to_string(),
            required,
            options: options.clone(),
            seen: HashMap::new(),
            items: Vec::new(),
            ready: BTreeSet::new(),
            waiting: 0,
            report: AddReport::default(),
        }
    }

    /// The paths and required references of `batch` of which nothing is known yet: the store is to
    /// be asked for them before the batch is accepted.
    pub fn unknown<'a>(&self, batch: impl IntoIterator<Item = &'a AddItem>) -> BTreeSet<StorePath> {
        let mut unknown = BTreeSet::new();
        for (info, _) in batch {
            let references = info.references.iter();
            let references = references.filter(|r| self.required.contains(r));
            let paths = references.chain([&info.path]);
            unknown.extend(paths.filter(|p| !self.seen.contains_key(*p)).cloned());
        }
        unknown
    }

    /// Takes note that the store has `paths`.
    pub fn note_present(&mut self, paths: impl IntoIterator<Item = StorePath>) {
        for path in paths {
            self.seen.entry(path).or_insert(SeenPath::Present);
        }
    }

    /// Whether `path` is there and stays as it is. Then the report says that it was added.
    pub fn keeps(&mut self, path: &StorePath) -> bool {
        match self.seen.get_mut(path) {
            Some(SeenPath::Kept) => true,
            Some(seen @ SeenPath::Present) if self.options.existing == Existing::Keep => {
                *seen = SeenPath::Kept;
                self.options.note_added(&mut self.report, path.clone());
                true
            }
            _ => false,
        }
    }

    /// Accepts an item whose metadata passes [`AddOptions::check_metadata`]. `None` if there is
    /// nothing to do: it is kept, it was accepted before, or it has failed already.
    pub fn accept(&mut self, info: &PathInfo) -> Option<AddId> {
        let id = self.accept_unchecked(info)?;
        let checked = self.options.check_metadata(&self.dir, info);
        checked.map_err(|error| self.fail(id, error)).ok()?;
        Some(id)
    }

    /// The same for stores that check the metadata later, on another thread.
    pub fn accept_unchecked(&mut self, info: &PathInfo) -> Option<AddId> {
        if self.keeps(&info.path) {
            return None;
        }
        let replaces = match self.seen.get(&info.path) {
            Some(SeenPath::Accepted(id)) => match &self.items[id.0] {
                item if matches!(item.stage, ItemStage::Failed) => item.replaces,
                _ => return None,
            },
            there => there.is_some(),
        };
        let id = AddId(self.items.len());
        let (awaits, missing) = match self.awaited(info) {
            Ok(awaits) => (awaits, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        for reference in &awaits {
            self.items[reference.0].referrers.push(id);
        }
        self.items.push(ScheduledItem {
            path: info.path.clone(),
            stage: ItemStage::Queued,
            awaits,
            referrers: Vec::new(),
            replaces,
            lost: None,
        });
        let accepted = SeenPath::Accepted(id);
        self.seen.insert(info.path.clone(), accepted);
        let Some(missing) = missing else {
            return Some(id);
        };
        // Nobody follows the references of what is not trusted, so that is why one is missing.
        let untrusted = self.options.check_metadata(&self.dir, info).err();
        self.fail(id, untrusted.unwrap_or(missing));
        None
    }

    /// The references that are still to come.
    fn awaited(&self, info: &PathInfo) -> Result<Vec<AddId>> {
        let mut awaits = Vec::new();
        let others = info.references.iter().filter(|r| **r != info.path);
        for reference in others.filter(|r| self.required.contains(r)) {
            let missing = || self.missing(&info.path, reference);
            let SeenPath::Accepted(id) = self.seen.get(reference).ok_or_else(missing)? else {
                continue;
            };
            match &self.items[id.0] {
                item if item.replaces || matches!(item.stage, ItemStage::Added) => {}
                item if item.is_open() => awaits.push(*id),
                _ => return Err(missing()),
            }
        }
        Ok(awaits)
    }

    /// Begins the work on an item; false if it has failed meanwhile. With `end`, what is begun ends
    /// as soon as a reference fails; without, it goes on to its own result.
    pub fn begin(&mut self, id: AddId, end: Option<EndOnDrop>) -> bool {
        let open = self.is_open(id);
        if open {
            self.set(id, ItemStage::Begun(end));
        }
        open
    }

    /// The work on an item is done but for what needs its references.
    pub fn prepared(&mut self, id: AddId, prepared: P) {
        let item = &self.items[id.0];
        if let Some(reference) = &item.lost {
            let missing = self.missing(&item.path, reference);
            self.fail(id, missing);
        } else if item.is_open() {
            self.set(id, ItemStage::Prepared(prepared));
            self.offer(id);
        }
    }

    /// Hands out the first prepared item whose references are in the store, or were handed out on
    /// the same `lane`, if there is one. A lane is whatever takes things in order.
    pub fn next(&mut self, lane: Option<usize>) -> Option<(AddId, P)> {
        loop {
            let first = |lane| {
                let mut ready = self
                    .ready
                    .range((lane, AddId(0))..=(lane, AddId(usize::MAX)));
                ready.next().copied()
            };
            let first = [first(None), lane.and_then(|lane| first(Some(lane)))];
            let next = first.into_iter().flatten().min_by_key(|(_, id)| *id)?;
            self.ready.remove(&next);
            let id = next.1;
            if !matches!(self.items[id.0].stage, ItemStage::Prepared(_)) {
                continue;
            }
            if let ItemStage::Prepared(prepared) = self.set(id, ItemStage::HandedOut(lane)) {
                for place in 0..self.items[id.0].referrers.len() {
                    self.offer(self.items[id.0].referrers[place]);
                }
                return Some((id, prepared));
            }
        }
    }

    /// Puts a prepared item where [`AddSchedule::next`] finds it, if it may go.
    fn offer(&mut self, id: AddId) {
        let item = &self.items[id.0];
        if !matches!(item.stage, ItemStage::Prepared(_)) {
            return;
        }
        let lane = |id: &AddId| match self.items[id.0].stage {
            ItemStage::HandedOut(lane) => lane,
            _ => None,
        };
        let mut lanes = item.awaits.iter().map(lane);
        let ready = match lanes.next() {
            None => None,
            Some(first @ Some(_)) if lanes.all(|lane| lane == first) => first,
            Some(_) => return,
        };
        self.ready.insert((ready, id));
    }

    /// The item is in the store.
    pub fn added(&mut self, id: AddId) {
        if !self.is_open(id) {
            return;
        }
        self.set(id, ItemStage::Added);
        for referrer in mem::take(&mut self.items[id.0].referrers) {
            self.items[referrer.0]
                .awaits
                .retain(|awaited| *awaited != id);
            self.offer(referrer);
        }
        let path = self.items[id.0].path.clone();
        self.options.note_added(&mut self.report, path);
    }

    /// The store wrote so many bytes of NARs.
    pub fn wrote(&mut self, bytes: u64) {
        self.report.written += bytes;
    }

    /// Gives up an item, and what refers to it. What is under way already has its own result; a
    /// refusal is put down to the reference.
    pub fn fail(&mut self, id: AddId, error: Error) {
        let mut failing = VecDeque::from([(id, error)]);
        while let Some((id, mut error)) = failing.pop_front() {
            if !self.is_open(id) {
                continue;
            }
            self.set(id, ItemStage::Failed);
            let item = &mut self.items[id.0];
            let (path, referrers) = (item.path.clone(), mem::take(&mut item.referrers));
            if let (Some(reference), Error::Refused { .. }) = (&item.lost.take(), &error) {
                error = self.missing(&path, reference);
            }
            for referrer in referrers {
                let item = &mut self.items[referrer.0];
                if let ItemStage::Begun(None) | ItemStage::HandedOut(_) = item.stage {
                    item.lost = Some(path.clone());
                } else {
                    let missing = self.missing(&self.items[referrer.0].path, &path);
                    failing.push_back((referrer, missing));
                }
            }
            self.report.failed.push((path, error));
        }
    }

    /// Gives up all that is neither added nor failed, with the error that `error` makes for each: who was to
    /// add it has gone.
    pub fn give_up(&mut self, error: impl Fn(&StorePath) -> Error) {
        for id in (0..self.items.len()).map(AddId) {
            if self.is_open(id) {
                self.fail(id, error(&self.items[id.0].path));
            }
        }
    }

    /// Whether the item is neither added nor failed.
    pub fn is_open(&self, id: AddId) -> bool {
        self.items[id.0].is_open()
    }

    /// How many items are prepared and not handed out.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// What became of the items so far; it is taken out.
    pub fn take_report(&mut self) -> AddReport {
        mem::take(&mut self.report)
    }

    fn set(&mut self, id: AddId, stage: ItemStage<P>) -> ItemStage<P> {
        self.waiting += usize::from(matches!(stage, ItemStage::Prepared(_)));
        let before = mem::replace(&mut self.items[id.0].stage, stage);
        self.waiting -= usize::from(matches!(before, ItemStage::Prepared(_)));
        before
    }

    fn missing(&self, path: &StorePath, reference: &StorePath) -> Error {
        Error::MissingReference {
            path: path.clone(),
            reference: reference.clone(),
            store: self.store.clone(),
        }
    }
}

impl<P> ScheduledItem<P> {
    fn is_open(&self) -> bool {
        !matches!(self.stage, ItemStage::Added | ItemStage::Failed)
    }
}

impl RequiredReferences {
    fn contains(&self, reference: &StorePath) -> bool {
        match self {
            RequiredReferences::All => true,
            RequiredReferences::AllBut(elsewhere) => !elsewhere.contains(reference),
            RequiredReferences::None => false,
        }
    }
}

/// The items that are at hand together, so that the store is asked once for all of them; and
/// whether the stream failed behind them.
pub fn add_batches(items: AddItems<'_>) -> BoxStream<'_, (Vec<AddItem>, Result<()>)> {
    let until_error = |batch: Vec<Result<AddItem>>| {
        let mut ended = Ok(());
        let item = |item: Result<AddItem>| item.map_err(|error| ended = Err(error)).ok();
        let items = batch.into_iter().map_while(item).collect();
        (items, ended)
    };
    items.ready_chunks(BATCH).map(until_error).boxed()
}

/// Items that are accepted together.
const BATCH: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SigCheck, nar};
    use proptest::prelude::*;
    use tk_path::{Algorithm, ContentAddress, Hash, Method, NarHash};

    #[test]
    fn nothing_goes_before_what_it_refers_to() {
        let items: &[(&str, &[&str])] = &[
            ("base", &["base"]),
            ("middle", &["base"]),
            ("top", &["middle", "base"]),
            ("alone", &[]),
        ];
        let mut one = prepared(items);
        for name in ["base", "middle", "top", "alone"] {
            assert_eq!(next(&mut one, Some(0)), Some(name), "in order, on one lane");
        }

        let mut two = prepared(items);
        assert_eq!(next(&mut two, Some(0)), Some("base"));
        let other = next(&mut two, Some(1));
        assert_eq!(other, Some("alone"), "base is under way elsewhere");
        assert_eq!(next(&mut two, Some(1)), None);
        let behind = next(&mut two, Some(0));
        assert_eq!(behind, Some("middle"), "behind base, on its lane");
        assert_eq!(next(&mut two, Some(1)), None);
        two.added(AddId(0));
        assert_eq!(next(&mut two, Some(1)), None);
        two.added(AddId(1));
        assert_eq!(two.waiting(), 1);
        let last = next(&mut two, Some(1));
        assert_eq!(last, Some("top"), "all that it needs is there");
        assert_eq!(two.waiting(), 0);

        let mut apart = prepared(items);
        assert_eq!(next(&mut apart, None), Some("base"));
        assert_eq!(next(&mut apart, None), Some("alone"));
        assert_eq!(next(&mut apart, None), None, "base is not there yet");
        apart.added(AddId(0));
        assert_eq!(next(&mut apart, None), Some("middle"));
    }

    #[tokio::test]
    async fn a_failure_ends_what_can_be_ended_and_explains_refusals() {
        let mut schedule = schedule(Existing::Keep);
        let base = schedule.accept(&info("base", &[])).unwrap();
        let accept = |schedule: &mut AddSchedule<()>, name| {
            let id = schedule.accept(&info(name, &["base"]));
            id.unwrap()
        };
        let [queued, ended, going, refused] =
            ["queued", "ended", "going", "refused"].map(|name| accept(&mut schedule, name));
        let (mut stream, end) = nar::until_dropped(futures::stream::pending().boxed());
        assert!(schedule.begin(ended, Some(end)) && schedule.begin(going, None));
        for id in [base, refused] {
            schedule.prepared(id, ());
            assert_eq!(schedule.next(Some(0)), Some((id, ())));
        }
        let refusal = || Error::Refused {
            who: "it".to_owned(),
            words: "no".to_owned(),
        };
        schedule.fail(base, refusal());
        assert!(!schedule.begin(queued, None));
        assert!(stream.next().await.is_none());
        assert!(schedule.is_open(going) && schedule.is_open(refused));
        schedule.prepared(going, ());
        schedule.fail(refused, refusal());
        let failed = schedule.take_report().failed;
        let names: Vec<_> = failed.iter().map(|(path, _)| path.name()).collect();
        assert_eq!(names, ["base", "queued", "ended", "going", "refused"]);
        assert!(matches!(failed[0].1, Error::Refused { .. }));
        let missing = |(_, error): &(_, _)| matches!(error, Error::MissingReference { .. });
        assert!(failed[1..].iter().all(missing), "{failed:?}");
    }

    #[test]
    fn what_is_given_again() {
        for existing in [Existing::Keep, Existing::Replace] {
            let mut schedule = schedule(existing);
            let (there, new) = (info("there", &[]), info("new", &["there", "else"]));
            let batch = [&there, &new].map(|info| (info.clone(), nar::from_bytes("")));
            let unknown: BTreeSet<_> = ["there", "new"].map(path).into();
            assert_eq!(schedule.unknown(&batch), unknown, "'else' is not asked for");
            schedule.note_present([there.path.clone()]);
            assert_eq!(schedule.unknown(&batch), [path("new")].into());
            let replaced = schedule.accept(&there);
            assert_eq!(replaced.is_some(), existing == Existing::Replace);
            assert_eq!(schedule.accept(&there), None);
            // What is there stays if its replacement fails.
            if let Some(id) = replaced {
                schedule.fail(id, Error::invalid("no"));
            }
            let first = schedule.accept(&new).unwrap();
            assert_eq!(schedule.accept(&new), None);
            schedule.fail(first, Error::invalid("no"));
            let second = schedule.accept(&new).unwrap();
            // What is known of the first one by now is of no account any more.
            schedule.prepared(first, ());
            schedule.added(first);
            schedule.prepared(second, ());
            assert_eq!(schedule.next(None), Some((second, ())));
            schedule.added(second);
            assert_eq!(schedule.accept(&new), None);
            let report = schedule.take_report();
            let kept = (existing == Existing::Keep).then(|| path("there"));
            let added: Vec<_> = kept.into_iter().chain([path("new")]).collect();
            assert_eq!(report.added, added, "each once");
        }
    }

    /// Why the reference is missing: nobody followed those of a path that is not to be had anyway.
    #[test]
    fn metadata_comes_before_references() {
        let mut schedule: AddSchedule<()> = schedule(Existing::Keep);
        let lie = Fate::Lies.info("lie", [path("absent")]);
        assert_eq!(schedule.accept_unchecked(&lie), None);
        let failed = schedule.take_report().failed;
        assert!(
            matches!(failed[..], [(_, Error::Invalid { .. })]),
            "{failed:?}"
        );
    }

    #[tokio::test]
    async fn batches_end_before_an_error() {
        let item = || Ok((info("a", &[]), nar::from_bytes("")));
        let items = vec![item(), item(), Err(Error::invalid("the end")), item()];
        let mut batches = add_batches(futures::stream::iter(items).boxed());
        let (batch, ended) = batches.next().await.unwrap();
        assert_eq!((batch.len(), ended.is_err()), (2, true));
    }

    /// What becomes of an item if nothing that it refers to fails.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fate {
        Added,
        /// Its metadata is refused.
        Lies,
        /// It refers to something that is nowhere.
        Dangles,
        /// It fails on its way.
        Breaks,
        /// It fails at the end.
        Refused,
    }

    impl Fate {
        fn info(self, name: &str, references: impl IntoIterator<Item = StorePath>) -> PathInfo {
            let mut info = info(name, &[]);
            info.references.extend(references);
            if self == Fate::Lies {
                info.ca = Some(ContentAddress {
                    method: Method::Nar,
                    hash: Hash::digest(Algorithm::Sha256, b""),
                });
            }
            if self == Fate::Dangles {
                info.references.insert(path("absent"));
            }
            info
        }
    }

    /// An item: which of those before it it refers to, whether it is prepared at once, and whether it
    /// can be ended when it is not.
    type Given = (Fate, u16, bool, bool);

    fn given() -> impl Strategy<Value = Given> {
        let fate = prop_oneof![
            12 => Just(Fate::Added),
            1 => Just(Fate::Lies),
            1 => Just(Fate::Dangles),
            1 => Just(Fate::Breaks),
            1 => Just(Fate::Refused),
        ];
        // Few references each, so that failures do not take everything along.
        let references = (any::<u16>(), any::<u16>()).prop_map(|(a, b)| a & b);
        (fate, references, any::<bool>(), any::<bool>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn each_item_ends_once_and_never_before_its_references(
            given in prop::collection::vec(given(), 1..14),
            lanes in 0..3usize,
            choices in prop::collection::vec(any::<u8>(), 1..80),
        ) {
            Simulation::of(&given, lanes).run(choices.iter().copied().cycle())?;
        }
    }

    /// A store that does whatever comes next in any order.
    struct Simulation<'a> {
        given: &'a [Given],
        schedule: AddSchedule<usize>,
        /// 0: each item goes alone.
        lanes: usize,
        accepted: usize,
        /// Of each item that is not over: its id, and where it goes.
        queued: Vec<(AddId, usize)>,
        begun: Vec<(AddId, usize)>,
        sent: Vec<(AddId, usize, Option<usize>)>,
        added: Vec<usize>,
    }

    impl<'a> Simulation<'a> {
        fn of(given: &'a [Given], lanes: usize) -> Self {
            let mut schedule = schedule(Existing::Keep);
            schedule.note_present([path("there")]);
            Simulation {
                given,
                schedule,
                lanes,
                accepted: 0,
                queued: Vec::new(),
                begun: Vec::new(),
                sent: Vec::new(),
                added: Vec::new(),
            }
        }

        fn references(&self, n: usize) -> impl Iterator<Item = usize> + use<> {
            let mask = self.given[n].1;
            (0..n).filter(move |i| mask & (1 << i) != 0)
        }

        /// Whether it must fail: by itself, or with something that it refers to.
        fn fails(&self, n: usize) -> bool {
            self.given[n].0 != Fate::Added || self.references(n).any(|r| self.fails(r))
        }

        fn run(mut self, mut choices: impl Iterator<Item = u8>) -> Result<(), TestCaseError> {
            let mut idle = 0;
            // Every choice may come up again before it is sure that nothing is left.
            while idle < 1000 {
                let (choice, place) = (choices.next().unwrap(), choices.next().unwrap());
                let done = match choice % 5 {
                    0 => self.accept(),
                    1 => self.begin(place),
                    2 => self.prepare(place),
                    3 => self.send(place)?,
                    _ => self.answer(place),
                };
                idle = if done { 0 } else { idle + 1 };
                if idle > 300 {
                    // The choices repeat themselves: now all of them, in turn.
                    while self.accept() || self.begin(0) || self.prepare(0) || self.answer(0) {}
                    for lane in 0..self.lanes.max(1) {
                        while self.send(lane as u8)? {}
                    }
                    idle = if self.sent.is_empty() { 1000 } else { 0 };
                }
            }
            self.end()
        }

        fn accept(&mut self) -> bool {
            let n = self.accepted;
            let Some((fate, _, at_once, _)) = self.given.get(n) else {
                return false;
            };
            self.accepted += 1;
            let others = self.references(n).map(|r| path(&r.to_string()));
            let others: Vec<_> = others.chain([path("there"), path("else")]).collect();
            if let Some(id) = self.schedule.accept(&fate.info(&n.to_string(), others)) {
                if *at_once {
                    self.schedule.prepared(id, n);
                } else {
                    self.queued.push((id, n));
                }
            }
            true
        }

        fn begin(&mut self, place: u8) -> bool {
            let Some((id, n)) = pick(&mut self.queued, place) else {
                return false;
            };
            let end = nar::until_dropped(nar::from_bytes("")).1;
            if self.schedule.begin(id, self.given[n].3.then_some(end)) {
                self.begun.push((id, n));
            }
            true
        }

        fn prepare(&mut self, place: u8) -> bool {
            let Some((id, n)) = pick(&mut self.begun, place) else {
                return false;
            };
            if self.given[n].0 == Fate::Breaks {
                self.schedule.fail(id, Error::invalid("it broke off"));
            } else {
                self.schedule.prepared(id, n);
            }
            true
        }

        fn send(&mut self, place: u8) -> Result<bool, TestCaseError> {
            let lane = (self.lanes > 0).then(|| usize::from(place) % self.lanes.max(1));
            let Some((id, n)) = self.schedule.next(lane) else {
                return Ok(false);
            };
            for reference in self.references(n) {
                let ahead = |(_, sent, on): &(_, usize, _)| (*sent, *on) == (reference, lane);
                let there = self.added.contains(&reference);
                let behind = lane.is_some() && self.sent.iter().any(ahead);
                // What failed on this lane after it was sent has been answered by now.
                prop_assert!(there || behind, "{n} before {reference}");
            }
            self.sent.push((id, n, lane));
            Ok(true)
        }

        /// The first that was sent on some lane is answered.
        fn answer(&mut self, place: u8) -> bool {
            let Some((_, _, lane)) = self.sent.get(usize::from(place) % self.sent.len().max(1))
            else {
                return false;
            };
            let (lane, any) = (*lane, usize::from(place) % self.sent.len());
            let first = self.sent.iter().position(|(_, _, on)| *on == lane);
            let place = if lane.is_some() { first.unwrap() } else { any };
            let (id, n, _) = self.sent.remove(place);
            if self.fails(n) {
                let (who, words) = ("it".to_owned(), "no".to_owned());
                self.schedule.fail(id, Error::Refused { who, words });
            } else {
                self.schedule.added(id);
                self.added.push(n);
            }
            true
        }

        fn end(mut self) -> Result<(), TestCaseError> {
            prop_assert_eq!(self.accepted, self.given.len());
            prop_assert_eq!(self.schedule.waiting(), 0);
            let AddReport { added, failed, .. } = self.schedule.take_report();
            let mut all: Vec<_> = failed.iter().map(|(path, _)| path).chain(&added).collect();
            all.sort();
            let mut paths: Vec<_> = (0..self.given.len())
                .map(|n| path(&n.to_string()))
                .collect();
            paths.sort();
            prop_assert!(all.into_iter().eq(&paths), "each once");
            for (path, error) in &failed {
                let n: usize = path.name().parse().unwrap();
                prop_assert!(self.fails(n));
                let mut references = self.references(n);
                let lost = references.any(|r| self.fails(r)) || self.given[n].0 == Fate::Dangles;
                let missing = matches!(error, Error::MissingReference { .. });
                let own = matches!(self.given[n].0, Fate::Lies | Fate::Breaks);
                prop_assert!(missing == lost || own, "{n}: {error}");
            }
            Ok(())
        }
    }

    fn pick<T>(from: &mut Vec<T>, place: u8) -> Option<T> {
        (!from.is_empty()).then(|| from.remove(usize::from(place) % from.len()))
    }

    fn schedule<P>(existing: Existing) -> AddSchedule<P> {
        let options = AddOptions {
            existing,
            ..SigCheck::Skip.into()
        };
        let elsewhere = Arc::new([path("else")].into());
        let required = RequiredReferences::AllBut(elsewhere);
        AddSchedule::new(&StoreDir::default(), "test://", &options, required)
    }

    fn prepared(items: &[(&'static str, &[&str])]) -> AddSchedule<&'static str> {
        let mut schedule = schedule(Existing::Keep);
        for (name, references) in items {
            let id = schedule.accept(&info(name, references)).unwrap();
            schedule.prepared(id, *name);
        }
        schedule
    }

    fn next<P>(schedule: &mut AddSchedule<P>, lane: Option<usize>) -> Option<P> {
        schedule.next(lane).map(|(_, prepared)| prepared)
    }

    fn info(name: &str, references: &[&str]) -> PathInfo {
        let mut info = PathInfo::new(path(name), NarHash::digest(b""), 0);
        info.references = references.iter().map(|name| path(name)).collect();
        info
    }

    fn path(name: &str) -> StorePath {
        StorePath::from_digest(&[7; 20], name).unwrap()
    }
}
