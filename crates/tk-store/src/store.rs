use crate::{Error, NarStream, Result, each_info, progress::Progress};
use async_trait::async_trait;
use futures::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Debug, Display},
    sync::Arc,
};
use tk_narinfo::{
    PathInfo, Policy, Signature, Untrusted,
    realisation::{Realisation, legacy},
};
use tk_path::{Algorithm, HashPart, Method, References, StoreDir, StorePath};

/// What every store can do. `Display` is the store's canonical URI.
///
/// Everything here is required and batch-shaped: a store pipelines, multiplexes or joins the
/// requests in the way that suits it, and no caller waits a round trip a path.
#[async_trait]
pub trait Store: Debug + Display + Send + Sync {
    /// The directory that the paths of this store belong to, which is not where they lie on disk.
    fn dir(&self) -> &StoreDir;

    /// The subset of `paths` that is present. One batch, however the store asks.
    ///
    /// A path is present when the store could give its metadata: what is broken, or about something
    /// else, counts as absent here, so that whoever adds the path writes it again. Nothing is
    /// answered from memory.
    async fn valid(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>>;

    /// As [`Store::valid`], with the metadata of those paths of which the store reads it on the way.
    /// `None`: the path is there, and more is not known.
    async fn present(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> Result<BTreeMap<StorePath, Option<PathInfo>>> {
        let valid = self.valid(paths).await?;
        Ok(valid.into_iter().map(|path| (path, None)).collect())
    }

    /// Metadata in the order it arrives; `None` means absent, which is no error.
    ///
    /// The input may depend on the output (a closure walk feeds references back in): the store
    /// asks for what is at hand and never waits for the input to fill a batch.
    fn infos<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, Result<(StorePath, Option<PathInfo>)>>;

    /// As [`Store::infos`], with the path beside each error, so that what fails for one path does not
    /// stand in the way of the others.
    ///
    /// Stores whose errors do not say what they are about are asked once more, path by path, about
    /// what they left unanswered.
    fn each_info<'a>(
        &'a self,
        paths: BoxStream<'a, StorePath>,
    ) -> BoxStream<'a, (StorePath, Result<Option<PathInfo>>)> {
        each_info::ask(self, paths)
    }

    /// The NAR of `path` as chunks of `Bytes`, handed on without copying.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the path is absent.
    ///
    /// # Security
    /// The bytes are not verified against the NAR hash: whoever takes them checks them, as
    /// [`Store::add`] does.
    async fn nar(&self, path: &StorePath) -> Result<NarStream>;

    /// Adds paths with their metadata. Items arrive references-first; NAR streams are lazy, so the
    /// store picks its own order of transfer and its own concurrency.
    ///
    /// Each NAR is checked against the hash and size of its metadata, each path against the
    /// signatures that `options` demand. A path that fails does not stop the others, but those
    /// that refer to it fail too, unless it is there already. A path that is there already counts
    /// as added; whether it is left as it is say `options` as well. [`AddSchedule`](crate::AddSchedule)
    /// keeps the order for those who write a store.
    ///
    /// # Errors
    /// Only what ends the whole operation (the store cannot be written or cannot do what
    /// `options` ask for, the item stream failed);
    /// what concerns one path is in the report.
    async fn add(&self, items: AddItems<'_>, options: &AddOptions) -> Result<AddReport>;

    /// The path whose base name starts with `part`, if the store has it.
    async fn find(&self, part: &HashPart) -> Result<Option<StorePath>>;

    /// Asks again about `path`, where what was said of it may have been remembered. True if the
    /// answer is another one now: then what failed may be tried again.
    async fn renew(&self, path: &StorePath) -> Result<bool> {
        let _ = path;
        Ok(false)
    }

    /// Gives up what uploads that were killed left open. [`Store::add`] does so at its end; this is
    /// for those who find that there is nothing left to add. Most stores have nothing to give up.
    async fn tidy(&self) -> Result<()> {
        Ok(())
    }
}

/// A path to add: its metadata and, read only when the store is ready for it, its NAR.
pub type AddItem = (PathInfo, NarStream);

/// The paths to add, references first.
pub type AddItems<'a> = BoxStream<'a, Result<AddItem>>;

/// What became of the paths given to [`Store::add`].
#[derive(Debug, Default)]
pub struct AddReport {
    /// Paths that are in the store now, in the order they became visible.
    pub added: Vec<StorePath>,
    /// Paths that are not, each with the reason.
    pub failed: Vec<(StorePath, Error)>,
    /// Bytes that the store wrote for the NARs, after compression; 0 where it cannot tell.
    pub written: u64,
}

impl AddReport {
    /// Fails those of `paths` that `store` said nothing of: whether they are there is not known.
    pub(crate) fn account_for(&mut self, store: String, paths: BTreeSet<StorePath>) {
        let failed = self.failed.iter().map(|(path, _)| path);
        let told: BTreeSet<_> = self.added.iter().chain(failed).cloned().collect();
        for path in paths.difference(&told) {
            let words = format!("what became of {path} was left unanswered");
            let who = store.clone();
            self.failed
                .push((path.clone(), Error::Refused { who, words }));
        }
    }
}

/// How [`Store::add`] is to add.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AddOptions {
    /// What is demanded of signatures.
    pub check: SigCheck,
    /// What becomes of paths that are there already.
    pub existing: Existing,
    /// Paths that references may lead to although the store lacks them, because its readers have
    /// them from elsewhere (an upstream cache). Only caches go by it: a store that is used in
    /// place, or a daemon, must be closed in itself.
    pub elsewhere: Arc<BTreeSet<StorePath>>,
    /// Who is told what has arrived, and which paths have become visible.
    pub progress: Arc<dyn Progress>,
    /// What the store itself said a moment ago: whether these paths are there. A cache is not asked
    /// about them again.
    pub asked: Arc<BTreeMap<StorePath, bool>>,
}

impl AddOptions {
    /// What is there stays, and every reference must be there.
    pub fn new(check: SigCheck) -> Self {
        AddOptions {
            check,
            existing: Existing::default(),
            elsewhere: Arc::default(),
            progress: Arc::new(()),
            asked: Arc::default(),
        }
    }

    /// Whether `info` may be added to a store with directory `dir`: its signatures suffice, and a
    /// content address that it claims makes its path.
    pub fn check_metadata(&self, dir: &StoreDir, info: &PathInfo) -> Result<()> {
        self.check.check(dir, info)?;
        match &info.ca {
            Some(ca) if !info.is_content_addressed(dir) => Err(Error::invalid(format!(
                "{} claims the content address {ca}, which implies another store path",
                info.path
            ))),
            _ => Ok(()),
        }
    }

    /// Notes in `report` that `path` is in the store now, and tells who watches.
    pub fn note_added(&self, report: &mut AddReport, path: StorePath) {
        self.progress.visible(&path);
        report.added.push(path);
    }
}

impl From<SigCheck> for AddOptions {
    fn from(check: SigCheck) -> Self {
        AddOptions::new(check)
    }
}

/// What becomes of paths that are there already when they are added again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// They are left as they are; their NARs are not read.
    #[default]
    Keep,
    /// They are checked like new ones and replaced, content and metadata: repair. What is there
    /// stays until its successor is complete, and if that fails.
    Replace,
}

/// Whether signatures are demanded of what is added.
#[derive(Debug, Clone)]
pub enum SigCheck {
    /// A path needs what the policy says; content-addressed paths prove themselves.
    Require(Arc<Policy>),
    /// Anything goes. For sources that are trusted as a whole, such as the user's own store.
    Skip,
}

impl SigCheck {
    /// Whether `info` may be added to a store with directory `dir`.
    pub fn check(&self, dir: &StoreDir, info: &PathInfo) -> Result<()> {
        match self {
            SigCheck::Skip => Ok(()),
            SigCheck::Require(policy) => policy.check(dir, info).map_err(untrusted),
        }
    }

    /// Whether `realisation` may be registered.
    pub fn check_realisation(&self, realisation: &Realisation) -> Result<()> {
        match self {
            SigCheck::Skip => Ok(()),
            SigCheck::Require(policy) => policy.check_realisation(realisation).map_err(untrusted),
        }
    }

    /// The same for the older form.
    pub fn check_legacy_realisation(&self, realisation: &legacy::LegacyRealisation) -> Result<()> {
        match self {
            SigCheck::Skip => Ok(()),
            SigCheck::Require(policy) => {
                let checked = policy.check_legacy_realisation(realisation);
                checked.map_err(untrusted)
            }
        }
    }
}

fn untrusted(source: Untrusted) -> Error {
    Error::Untrusted {
        path: source.path.clone(),
        source,
    }
}

/// Stores that can take content and name it by what it is.
#[async_trait]
pub trait AddContent: Store {
    /// Adds the tree whose NAR is `nar` under the path that its content, `name` and `references`
    /// make, and returns its metadata.
    ///
    /// With [`Method::Flat`] and [`Method::Text`] the NAR must be that of a single file. If that is
    /// executable it stays so, under the path of one that is not. Content that is there already is
    /// not written again.
    async fn add_content(
        &self,
        name: &str,
        method: Method,
        algorithm: Algorithm,
        references: &References,
        nar: NarStream,
    ) -> Result<PathInfo>;
}

/// Stores whose paths can be given further signatures.
#[async_trait]
pub trait AddSignatures: Store {
    /// Adds to each path these signatures, beside those that it has. One result for each, in order;
    /// what fails for one does not end the others. No path waits for a round trip of its own.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a path that is absent.
    async fn add_all_signatures(
        &self,
        signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    ) -> Vec<(StorePath, Result<()>)>;

    /// The same for one path.
    async fn add_signatures(
        &self,
        path: &StorePath,
        signatures: &BTreeSet<Signature>,
    ) -> Result<()> {
        let one = [(path.clone(), signatures.clone())].into();
        let mut results = self.add_all_signatures(one).await;
        results.pop().map_or(Ok(()), |(_, result)| result)
    }
}

/// Conveniences that follow from [`Store`].
#[async_trait]
pub trait StoreExt: Store {
    /// [`Store::infos`] of all `paths`. That there is no answer for some of them is an error, at
    /// the end: what a store leaves unanswered is not absent.
    fn infos_of(
        &self,
        paths: BTreeSet<StorePath>,
    ) -> BoxStream<'_, Result<(StorePath, Option<PathInfo>)>> {
        let mut open = paths.len();
        let answers = self.infos(stream::iter(paths).boxed());
        let end = stream::iter([None]);
        let judge = move |answer: Option<Result<_>>| {
            open = open.saturating_sub(usize::from(answer.is_some()));
            let lacking = || (open > 0).then(|| Err(unanswered(self, open)));
            future::ready(answer.or_else(lacking))
        };
        answers.map(Some).chain(end).filter_map(judge).boxed()
    }

    /// Metadata of one path; `None` if absent.
    async fn info(&self, path: &StorePath) -> Result<Option<PathInfo>> {
        let mut answers = self.infos_of(BTreeSet::from([path.clone()]));
        match answers.next().await {
            Some(answer) => Ok(answer?.1),
            None => Err(unanswered(self, 1)),
        }
    }

    /// Metadata of one path that must be there.
    async fn require_info(&self, path: &StorePath) -> Result<PathInfo> {
        self.info(path).await?.ok_or_else(|| Error::NotFound {
            path: path.clone(),
            store: self.to_string(),
        })
    }

    /// Adds one path, or says why not.
    async fn add_one(&self, info: PathInfo, nar: NarStream, options: &AddOptions) -> Result<()> {
        let path = BTreeSet::from([info.path.clone()]);
        let items = stream::iter([Ok((info, nar))]).boxed();
        let mut report = self.add(items, options).await?;
        report.account_for(self.to_string(), path);
        match report.failed.pop() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

/// The error for questions that `store` ended without answering.
pub(crate) fn unanswered(store: &(impl Display + ?Sized), open: usize) -> Error {
    Error::Refused {
        who: store.to_string(),
        words: format!("{open} questions about paths were left unanswered"),
    }
}
