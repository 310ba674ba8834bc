//! The copy engine: closures from one store into another.
//!
//! Two steps, so that a caller can look before it leaps: [`plan`] finds what is missing in the
//! destination, [`Plan::run`] moves it. What is moved is checked by the destination on its way in
//! ([`Store::add`]): hash, size, signatures, and that references are there first.
//!
//! What is known beside the paths goes after them: [`Outputs::copy`] takes along what outputs of
//! derivations turned out to be, [`logs`] what their builders wrote.

mod beside;
mod upstream;

pub use crate::progress::Progress;
pub use beside::{Outputs, logs};
pub use upstream::{Unanswered, Upstreams};

use crate::{
    AddOptions, AddReport, Closure, Error, Existing, NarStream, Result, SigCheck, Store,
    closure::{closure, missing_closure},
    nar,
};
use futures::{StreamExt, stream};
use std::{
    collections::BTreeSet,
    fmt::{self, Debug},
    sync::Arc,
};
use tk_narinfo::{PathInfo, SecretKey};
use tk_path::StorePath;
use upstream::Held;

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
    /// What went wrong without standing in the way.
    pub warnings: Vec<Warning>,
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
    /// What went wrong without standing in the way.
    pub warnings: Vec<Warning>,
}

/// What went wrong in a copy without making it incomplete.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// An upstream cache could not be asked, so that nothing is left to it.
    Upstream {
        /// The cache.
        store: String,
        /// Why not.
        error: Error,
    },
    /// What an earlier upload left open at the destination could not be given up. A later copy
    /// does it.
    LeftOpen {
        /// The destination.
        store: String,
        /// Why not.
        error: Error,
    },
    /// What an output turned out to be cannot be told to the destination.
    Realisation {
        /// The output's id.
        id: String,
        /// Why not.
        error: Error,
    },
    /// Build logs cannot be copied.
    Log {
        /// Whose log; `None` for all.
        drv: Option<StorePath>,
        /// Why not.
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
/// # Errors
/// When a path is in neither store nor upstream, when one of them could not be asked, or when
/// their store directories differ.
pub async fn plan(
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
    let (mut found, mut present) = look(src, dst, roots, options).await?;
    let derivers = found.infos.values().filter_map(|info| info.deriver.clone());
    let derivers = derivers.collect();
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
    found.infos.retain(|path, _| !present.contains(path));
    let held = hold(src, &found, &present, &replaced, options).await?;
    let all = found.infos.keys().chain(found.absent.keys());
    let upstream = all.filter(|path| held.paths.contains(*path)).cloned();
    let upstream: BTreeSet<_> = upstream.collect();
    found.infos.retain(|path, _| !upstream.contains(path));
    found.absent.retain(|path, _| !upstream.contains(path));
    found.require_complete(src)?;
    let mut missing = Vec::with_capacity(found.infos.len());
    for info in found.references_first()? {
        missing.push(outgoing(info, src, options)?);
    }
    Ok(Plan {
        missing,
        replaced,
        present,
        upstream,
        derivers,
        warnings: held.warnings,
        add: AddOptions {
            check: options.check.clone(),
            existing: options.existing,
            elsewhere: Arc::new(held.paths),
            progress: Arc::new(()),
        },
    })
}

/// What the source has within reach, and what of it the destination has.
async fn look(
    src: &dyn Store,
    dst: &dyn Store,
    roots: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<(Closure, BTreeSet<StorePath>)> {
    match (options.reach, options.existing) {
        (Reach::Missing, Existing::Keep) => missing_closure(src, dst, roots.iter().cloned()).await,
        (Reach::Closure | Reach::Missing, _) => {
            let found = closure(src, roots.iter().cloned()).await?;
            let all = found.infos.keys().chain(found.absent.keys()).cloned();
            let present = dst.valid(&all.collect()).await?;
            Ok((found, present))
        }
        (Reach::Roots, _) => {
            let present = dst.valid(roots).await?;
            let found = Closure::only(src, roots.iter().cloned()).await?;
            Ok((found, present))
        }
    }
}

/// What upstream caches hold of what would be copied, and of what that refers to.
async fn hold(
    src: &dyn Store,
    found: &Closure,
    present: &BTreeSet<StorePath>,
    replaced: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<Held> {
    if options.upstreams.is_empty() {
        return Ok(Held::default());
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
    /// # Errors
    /// Only what ended the whole copy; what concerns single paths is in the report.
    pub async fn run(
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

/// The metadata as the destination gets it: what only the source can know is left out.
fn outgoing(info: &PathInfo, src: &dyn Store, options: &CopyOptions) -> Result<PathInfo> {
    let mut info = info.clone();
    info.ultimate = false;
    info.registration_time = 0;
    for key in &options.sign {
        info.sign(src.dir(), key)
            .map_err(|e| Error::invalid(format!("{} cannot be signed: {e}", info.path)))?;
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
