//! The copy engine: closures from one store into another.
//!
//! Two steps, so that a caller can look before it leaps: [`plan`] finds what is missing in the
//! destination, [`Plan::run`] moves it. What is moved is checked by the destination on its way in
//! ([`Store::add`]): hash, size, signatures, and that references are there first.
//!
//! What is known beside the paths goes after them: [`OutputPaths::copy`] takes along what outputs of
//! derivations turned out to be, [`logs`] what their builders wrote.

mod outputs;
mod upstream;

pub use crate::progress::Progress;
pub use outputs::{OutputPaths, logs};
pub use upstream::{Unanswered, Upstreams};

use crate::{
    Abilities, AddOptions, AddReport, Closure, Error, Existing, NarStream, Result, SigCheck, Store,
    closure::{ClosureSize, missing_closure, walk},
    nar,
};
use futures::{StreamExt, future, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Debug},
    io,
    sync::Arc,
};
use tk_narinfo::{PathInfo, SecretKey, Signature};
use tk_path::{StoreDir, StorePath};
use upstream::UpstreamPaths;

/// How far from the roots a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// The whole closure; the destination is asked about each path of it, so that a destination
    /// with holes is mended.
    #[default]
    Closure,
    /// The closure, but not beyond paths that the destination has: the fewest questions. With
    /// [`Existing::Replace`] the same as [`Reach::Closure`].
    Missing,
    /// Only the roots. The destination may refuse paths whose references it lacks.
    Roots,
}

/// Settings of a copy.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CopyOptions {
    /// How far from the roots to go.
    pub reach: Reach,
    /// What the destination demands of signatures.
    pub check: SigCheck,
    /// Keys that sign each copied path for the destination.
    pub sign: Vec<Arc<SecretKey>>,
    /// What becomes of paths that the destination has: with [`Existing::Replace`] they are copied
    /// again.
    pub existing: Existing,
    /// Caches that hold paths which then need not be copied. For destinations that are caches: no
    /// other takes paths whose references it lacks.
    pub upstreams: Upstreams,
}

impl CopyOptions {
    /// The closure of what is missing, with `check` as the destination's demand.
    pub fn new(check: SigCheck) -> Self {
        CopyOptions {
            reach: Reach::default(),
            check,
            sign: Vec::new(),
            existing: Existing::default(),
            upstreams: Upstreams::default(),
        }
    }
}

/// What a copy will do: made by [`plan`].
#[derive(Debug)]
pub struct Plan {
    /// What will be copied, references first.
    pub missing: Vec<PathInfo>,
    /// Those of `missing` that the destination has, and that will be replaced.
    pub replaced: BTreeSet<StorePath>,
    /// What the destination has already and keeps.
    pub present: BTreeSet<StorePath>,
    /// What is not copied because an upstream cache holds it.
    pub upstream: BTreeSet<StorePath>,
    /// Derivations that made what the plan looked at, also of what is there already.
    pub derivers: BTreeSet<StorePath>,
    /// Signatures by the keys of [`CopyOptions::sign`] that paths lack which the destination has
    /// already: see [`Plan::run`] and [`sign_present`].
    pub signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    /// Paths that need a signature, and that the destination has or will have without any.
    pub unsigned: BTreeSet<StorePath>,
    /// What went wrong without standing in the way.
    pub warnings: Vec<Warning>,
    options: CopyOptions,
    add: AddOptions,
}

/// What a copy did.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// Metadata of the paths that were copied, references first.
    pub copied: Vec<PathInfo>,
    /// Those of `copied` that the destination had before.
    pub replaced: BTreeSet<StorePath>,
    /// Paths that it had before and that were left as they are.
    pub present: BTreeSet<StorePath>,
    /// Paths that were not copied because an upstream cache holds them.
    pub upstream: BTreeSet<StorePath>,
    /// Paths that could not be copied, each with the reason.
    pub failed: Vec<(StorePath, Error)>,
    /// Bytes that the destination wrote for the NARs, after compression.
    pub written: u64,
    /// Outputs of derivations whose paths the destination was told, by their ids.
    pub realisations: Vec<String>,
    /// Derivations whose build logs were copied.
    pub logs: Vec<StorePath>,
    /// Paths that were there before, and that got signatures.
    pub signed: Vec<StorePath>,
    /// What went wrong without standing in the way.
    pub warnings: Vec<Warning>,
}

/// What went wrong in a copy without making it incomplete.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// An upstream cache could not be asked, so that nothing is left to it.
    Upstream {
        /// The URI of the upstream cache.
        store: String,
        /// Why it could not be asked.
        error: Error,
    },
    /// What an earlier upload left open at the destination could not be given up. A later copy
    /// does it.
    LeftOpen {
        /// The URI of the destination.
        store: String,
        /// Why the upload could not be given up.
        error: Error,
    },
    /// What the destination has under a path is not what the source has, so that it is not signed.
    AnotherBuild {
        /// The path whose builds differ.
        path: StorePath,
        /// The URI of the destination, where the path stays unsigned.
        store: String,
    },
    /// What an output turned out to be cannot be told to the destination.
    Realisation {
        /// The id of the output, or `of` and the URI of the destination for all of them.
        id: String,
        /// Why the destination cannot take the realisation.
        error: Error,
    },
    /// Build logs cannot be copied.
    Log {
        /// Whose log; `None` for all.
        drv: Option<StorePath>,
        /// Why the log cannot be copied.
        error: Error,
    },
}

impl fmt::Display for Warning {
    /// One line, with the reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Upstream { store, error } => {
                let why = error.to_line();
                write!(
                    f,
                    "{store} cannot be asked, so nothing is left to it: {why}"
                )
            }
            Warning::LeftOpen { store, error } => write!(
                f,
                "what an earlier push left open at {store} could not be given up: {}",
                error.to_line()
            ),
            Warning::AnotherBuild { path, store } => write!(
                f,
                "{path} is another build in {store} than here, so it is not signed there; \
                 --repair replaces it"
            ),
            Warning::Realisation { id, error } => {
                write!(f, "the realisation {id} is not copied: {}", error.to_line())
            }
            Warning::Log { drv: None, error } => {
                write!(f, "build logs are not copied: {}", error.to_line())
            }
            Warning::Log {
                drv: Some(drv),
                error,
            } => write!(f, "the log of {drv} is not copied: {}", error.to_line()),
        }
    }
}

/// Finds what of `roots` (and their closure) has to go from `src` to `dst`.
///
/// Where signatures are demanded, they are looked at here already: what a path refers to that will
/// be refused is not asked for.
///
/// # Errors
/// When a path is in neither store nor upstream, when one of them could not be asked, or when
/// their store directories differ.
pub async fn plan(
    src: &dyn Store,
    dst: &dyn Store,
    roots: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<Plan> {
    for _ in 0..STALE_ANSWERS {
        match plan_once(src, dst, roots, options).await {
            Err(error) if is_stale(src, &error).await => {}
            planned => return planned,
        }
    }
    plan_once(src, dst, roots, options).await
}

/// Whether something is absent only by what `src` remembered.
async fn is_stale(src: &dyn Store, error: &Error) -> bool {
    match error {
        Error::NotFound { path, .. } => src.renew(path).await.unwrap_or(false),
        Error::MissingReference {
            path, reference, ..
        } => {
            let [path, reference] = [path, reference].map(|path| src.renew(path));
            path.await.unwrap_or(false) | reference.await.unwrap_or(false)
        }
        _ => false,
    }
}

async fn plan_once(
    src: &dyn Store,
    dst: &dyn Store,
    roots: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<Plan> {
    if src.dir() != dst.dir() {
        return Err(Error::StoreDir {
            store: dst.to_string(),
            theirs: dst.dir().to_string(),
            ours: src.dir().clone(),
        });
    }
    let SurveyedPaths {
        mut found,
        mut present,
        told,
    } = look(src, dst, roots, options).await?;
    let derivers = found.infos.values().filter_map(|info| info.deriver.clone());
    let derivers = derivers.collect();
    let all = found.infos.keys().chain(found.absent.keys());
    let asked = all
        .chain(&present)
        .map(|path| (path.clone(), present.contains(path)));
    // All answers so far, before any are left out, so that `add` need not ask again.
    let asked = asked.collect();
    // What the destination has need not be in the source.
    found.absent.retain(|path, _| !present.contains(path));
    let replaced: BTreeSet<_> = match options.existing {
        Existing::Keep => BTreeSet::new(),
        Existing::Replace => {
            let again: BTreeSet<_> = found.infos.keys().cloned().collect();
            let replaced = &present & &again;
            present = &present - &again;
            replaced
        }
    };
    let mut signing = Signing::default();
    for theirs in told.into_values().flatten() {
        if present.contains(&theirs.path) {
            let ours = found.infos.get(&theirs.path);
            signing.look_at(&theirs, ours, dst, options)?;
        }
    }
    found.infos.retain(|path, _| !present.contains(path));
    let held = hold(src, &found, &present, &replaced, options).await?;
    let all = found.infos.keys().chain(found.absent.keys());
    let upstream = all.filter(|path| held.paths.contains(*path)).cloned();
    let upstream: BTreeSet<_> = upstream.collect();
    found.infos.retain(|path, _| !upstream.contains(path));
    found.absent.retain(|path, _| !upstream.contains(path));
    // Not earlier: what an upstream cache holds need not be in the source either.
    found.require_complete(src)?;
    let mut missing = Vec::with_capacity(found.infos.len());
    for info in found.references_first()? {
        let info = outgoing(info, src, options)?;
        if is_unsigned(src.dir(), &info) {
            signing.unsigned.insert(info.path.clone());
        }
        missing.push(info);
    }
    signing.warnings.extend(held.warnings);
    Ok(Plan {
        missing,
        replaced,
        present,
        upstream,
        derivers,
        signatures: signing.signatures,
        unsigned: signing.unsigned,
        warnings: signing.warnings,
        options: options.clone(),
        add: AddOptions {
            check: options.check.clone(),
            existing: options.existing,
            elsewhere: Arc::new(held.paths),
            progress: Arc::new(()),
            asked: Arc::new(asked),
        },
    })
}

/// What the source has within reach, and what of it the destination has.
struct SurveyedPaths {
    found: Closure,
    present: BTreeSet<StorePath>,
    /// What the destination said of `present`, as far as it did.
    told: BTreeMap<StorePath, Option<PathInfo>>,
}

async fn look(
    src: &dyn Store,
    dst: &dyn Store,
    roots: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<SurveyedPaths> {
    let found = async {
        let roots = roots.iter().cloned();
        match options.reach {
            Reach::Roots => Closure::only(src, roots).await,
            Reach::Closure | Reach::Missing => {
                let demand = Some((&options.check, dst));
                walk(src, roots, demand, ClosureSize::default()).await
            }
        }
    };
    let (found, mut told) = match (options.reach, options.existing) {
        (Reach::Missing, Existing::Keep) => {
            let roots = roots.iter().cloned();
            let missing = missing_closure(src, dst, roots, &options.check).await;
            let (found, present) = missing?;
            let told = BTreeMap::new();
            return Ok(SurveyedPaths {
                found,
                present,
                told,
            });
        }
        // The roots are known: the destination looks for them while the source finds out about the others.
        _ => future::try_join(found, dst.present(roots)).await?,
    };
    let all = found.infos.keys().chain(found.absent.keys());
    let others: BTreeSet<_> = all.filter(|path| !roots.contains(*path)).cloned().collect();
    if !others.is_empty() {
        told.extend(dst.present(&others).await?);
    }
    Ok(SurveyedPaths {
        found,
        present: told.keys().cloned().collect(),
        told,
    })
}

/// What there is to say of signatures at the destination.
#[derive(Default)]
struct Signing {
    signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    unsigned: BTreeSet<StorePath>,
    warnings: Vec<Warning>,
}

impl Signing {
    /// What the destination has is signed only if it is what the source has: nobody signs what he
    /// has not seen.
    fn look_at(
        &mut self,
        theirs: &PathInfo,
        ours: Option<&PathInfo>,
        dst: &dyn Store,
        options: &CopyOptions,
    ) -> Result<()> {
        let path = &theirs.path;
        let signed_by = |name| theirs.signatures.iter().any(|s| s.key_name() == name);
        let keys = options.sign.iter().filter(|key| !signed_by(key.name()));
        let keys: Vec<_> = keys.collect();
        match ours {
            Some(ours) if !keys.is_empty() && is_same_build(ours, theirs) => {
                let mut signed = theirs.clone();
                for key in keys {
                    sign(&mut signed, dst.dir(), key)?;
                }
                let new = &signed.signatures - &theirs.signatures;
                self.signatures.insert(path.clone(), new);
                return Ok(());
            }
            Some(_) if !keys.is_empty() => self.warnings.push(Warning::AnotherBuild {
                path: path.clone(),
                store: dst.to_string(),
            }),
            _ => {}
        }
        if is_unsigned(dst.dir(), theirs) {
            self.unsigned.insert(path.clone());
        }
        Ok(())
    }
}

fn is_same_build(ours: &PathInfo, theirs: &PathInfo) -> bool {
    ours.nar_hash == theirs.nar_hash
        && ours.references == theirs.references
        && (ours.nar_size == theirs.nar_size || ours.nar_size == 0)
}

/// Whether nobody vouches for it, where somebody has to.
fn is_unsigned(dir: &StoreDir, info: &PathInfo) -> bool {
    info.signatures.is_empty() && !info.is_content_addressed(dir)
}

fn sign(info: &mut PathInfo, dir: &StoreDir, key: &SecretKey) -> Result<()> {
    let signed = info.sign(dir, key);
    signed.map_err(|e| Error::invalid(format!("{} cannot be signed: {e}", info.path)))?;
    Ok(())
}

/// What upstream caches hold of what would be copied, and of what that refers to.
async fn hold(
    src: &dyn Store,
    found: &Closure,
    present: &BTreeSet<StorePath>,
    replaced: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<UpstreamPaths> {
    if options.upstreams.is_empty() {
        return Ok(UpstreamPaths::default());
    }
    // Nobody's word keeps what is there from being replaced.
    let infos = || found.infos.values().filter(|i| !replaced.contains(&i.path));
    let references = found.infos.values().flat_map(|info| &info.references);
    let others = references.chain(found.absent.keys());
    let others = others.filter(|p| !found.infos.contains_key(*p) && !present.contains(*p));
    let upstreams = &options.upstreams;
    upstreams.hold(src.dir(), infos(), others.cloned()).await
}

impl Plan {
    /// The sum of the NAR sizes of what will be copied, in bytes.
    pub fn nar_size(&self) -> u64 {
        self.missing.iter().map(|info| info.nar_size).sum()
    }

    /// Copies what is missing. `src` and `dst` are those that the plan was made for.
    ///
    /// What fails because `src` remembered another answer than it would give now is tried once more
    /// with the new one.
    ///
    /// # Errors
    /// Only what ended the whole copy; what concerns single paths is in the report.
    pub async fn run(
        self,
        src: &Arc<dyn Store>,
        dst: &dyn Store,
        progress: Arc<dyn Progress>,
    ) -> Result<CopyReport> {
        let options = self.options.clone();
        let mut report = self.transfer(src, dst, progress.clone()).await?;
        if !any_stale(&**src, &report.failed).await {
            return Ok(report);
        }
        let failed = report.failed.iter().map(|(path, _)| path.clone()).collect();
        // If there is no other plan, what failed has failed.
        if let Ok(plan) = plan(&**src, dst, &failed, &options).await {
            let again = plan.transfer(src, dst, progress).await?;
            report.tried_again(again);
        }
        Ok(report)
    }

    async fn transfer(
        mut self,
        src: &Arc<dyn Store>,
        dst: &dyn Store,
        progress: Arc<dyn Progress>,
    ) -> Result<CopyReport> {
        let mut report = CopyReport {
            present: self.present,
            upstream: self.upstream,
            warnings: self.warnings,
            ..CopyReport::default()
        };
        if self.missing.is_empty() {
            // `add` does this at its end, but is not called.
            let left = dst.tidy().await.err().map(|error| Warning::LeftOpen {
                store: dst.to_string(),
                error,
            });
            report.warnings.extend(left);
            return Ok(report);
        }
        let items = self.missing.iter().map(|info| {
            let nar = watched(src.clone(), info.path.clone(), progress.clone());
            Ok((info.clone(), nar))
        });
        let items = stream::iter(items.collect::<Vec<_>>()).boxed();
        self.add.progress = progress.clone();
        let mut done = dst.add(items, &self.add).await?;
        let all = self.missing.iter().map(|info| info.path.clone());
        done.account_for(dst.to_string(), all.collect());
        let AddReport {
            added,
            failed,
            written,
        } = done;
        let added: BTreeSet<_> = added.into_iter().collect();
        report.copied = self.missing;
        report.copied.retain(|info| added.contains(&info.path));
        report.replaced = &self.replaced & &added;
        report.failed = failed;
        report.written = written;
        Ok(report)
    }
}

impl CopyReport {
    /// What failed was planned and run again.
    fn tried_again(&mut self, again: CopyReport) {
        self.copied.extend(again.copied);
        self.replaced.extend(again.replaced);
        self.present.extend(again.present);
        self.upstream.extend(again.upstream);
        self.failed = again.failed;
        self.written += again.written;
        self.warnings.extend(again.warnings);
        // What the first try copied was there already for the second.
        for info in &self.copied {
            self.present.remove(&info.path);
        }
    }
}

/// Whether `src` has other answers now for some of what failed by what it said. All of them are
/// asked for, so that one more try is enough.
async fn any_stale(src: &dyn Store, failed: &[(StorePath, Error)]) -> bool {
    let by_answer = |error: &Error| match error {
        Error::Mismatch { .. }
        | Error::Malformed { .. }
        | Error::Untrusted { .. }
        | Error::NotFound { .. } => true,
        Error::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    };
    let doubtful = failed.iter().filter(|(_, error)| by_answer(error));
    let renewed = stream::iter(doubtful.map(|(path, _)| path).cloned().collect::<Vec<_>>())
        .map(|path| async move { src.renew(&path).await.unwrap_or(false) })
        .buffer_unordered(RENEWALS);
    renewed.fold(false, async |any, one| any | one).await
}

/// Adds [`Plan::signatures`] to what `dst` had before the copy. What cannot be signed has failed.
pub async fn sign_present(
    dst: &Abilities,
    signatures: BTreeMap<StorePath, BTreeSet<Signature>>,
    report: &mut CopyReport,
) {
    let Some(store) = &dst.signatures else {
        return;
    };
    for (path, added) in store.add_all_signatures(signatures).await {
        match added {
            Ok(()) => report.signed.push(path),
            Err(error) => report.failed.push((path, error)),
        }
    }
}

/// The metadata as the destination gets it: what only the source can know is left out.
fn outgoing(info: &PathInfo, src: &dyn Store, options: &CopyOptions) -> Result<PathInfo> {
    let mut info = info.clone();
    info.ultimate = false;
    info.registration_time = 0;
    for key in &options.sign {
        sign(&mut info, src.dir(), key)?;
    }
    Ok(info)
}

/// The NAR of `path`, opened when it is first polled, with its progress told.
fn watched(src: Arc<dyn Store>, path: StorePath, progress: Arc<dyn Progress>) -> NarStream {
    let opened = path.clone();
    let (begin, end) = (progress.clone(), progress.clone());
    let inner = nar::lazy(async move {
        begin.started(&opened);
        src.nar(&opened).await
    });
    let counted = inner.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            progress.advanced(chunk.len() as u64);
        }
    });
    let finish = stream::once(async move { end.finished(&path) }).filter_map(|()| async { None });
    counted.chain(finish).boxed()
}

/// How often a plan is made again because something absent was there after all.
const STALE_ANSWERS: usize = 3;

/// Paths that are asked about again at once.
const RENEWALS: usize = 16;
