//! The copy engine: closures from one store into another.
//!
//! Two steps, so that a caller can look before it leaps: [`plan`] finds what is missing in the
//! destination, [`Plan::run`] moves it. What is moved is checked by the destination on its way in
//! ([`Store::add`]): hash, size, signatures, and that references are there first.

use crate::{
    AddReport, Closure, Error, NarStream, Result, SigCheck, Store,
    closure::{closure, missing_closure},
    nar,
};
use futures::{StreamExt, stream};
use std::{collections::BTreeSet, fmt::Debug, sync::Arc};
use tk_narinfo::{PathInfo, SecretKey};
use tk_path::StorePath;

/// How far from the roots a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// The whole closure; the destination is asked about each path of it, so that a destination
    /// with holes is mended.
    #[default]
    Closure,
    /// The closure, but not beyond paths that the destination has: the fewest questions.
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
}

/// What a copy will do: made by [`plan`].
#[derive(Debug)]
pub struct Plan {
    /// What will be copied, references first.
    pub missing: Vec<PathInfo>,
    /// What the destination has already.
    pub present: BTreeSet<StorePath>,
    check: SigCheck,
}

/// What a copy did.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// Metadata of the paths that are new in the destination, references first.
    pub copied: Vec<PathInfo>,
    /// Paths that it had before.
    pub present: BTreeSet<StorePath>,
    /// Paths that could not be copied, each with the reason.
    pub failed: Vec<(StorePath, Error)>,
    /// Bytes that the destination wrote for the NARs, after compression.
    pub written: u64,
}

/// Somebody who watches a copy. Called from any thread, often: it must not block.
pub trait Progress: Send + Sync {
    /// `path` begins to be read.
    fn started(&self, path: &StorePath);
    /// `bytes` more of some NAR were read.
    fn advanced(&self, bytes: u64);
    /// The NAR of `path` was read to its end.
    fn finished(&self, path: &StorePath);
}

/// Nobody watches.
impl Progress for () {
    fn started(&self, _: &StorePath) {}
    fn advanced(&self, _: u64) {}
    fn finished(&self, _: &StorePath) {}
}

/// Finds what of `roots` (and their closure) has to go from `src` to `dst`.
///
/// # Errors
/// When a path is in neither store, when one of them could not be asked, or when their store
/// directories differ.
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
    let (mut found, present) = match options.reach {
        Reach::Missing => missing_closure(src, dst, roots.iter().cloned()).await?,
        Reach::Closure => {
            let found = closure(src, roots.iter().cloned()).await?;
            let all = found.infos.keys().chain(found.absent.keys()).cloned();
            let present = dst.valid(&all.collect()).await?;
            (found, present)
        }
        Reach::Roots => {
            let present = dst.valid(roots).await?;
            let rest = roots.difference(&present).cloned();
            (Closure::only(src, rest).await?, present)
        }
    };
    found.infos.retain(|path, _| !present.contains(path));
    found.absent.retain(|path, _| !present.contains(path));
    found.require_complete(src)?;
    let mut missing = Vec::with_capacity(found.infos.len());
    for info in found.references_first()? {
        missing.push(outgoing(info, src, options)?);
    }
    Ok(Plan {
        missing,
        present,
        check: options.check.clone(),
    })
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
        self,
        src: &Arc<dyn Store>,
        dst: &dyn Store,
        progress: Arc<dyn Progress>,
    ) -> Result<CopyReport> {
        if self.missing.is_empty() {
            return Ok(CopyReport {
                present: self.present,
                ..CopyReport::default()
            });
        }
        let items = self.missing.iter().map(|info| {
            let nar = watched(src.clone(), info.path.clone(), progress.clone());
            Ok((info.clone(), nar))
        });
        let items = stream::iter(items.collect::<Vec<_>>()).boxed();
        let AddReport {
            added,
            failed,
            written,
        } = dst.add(items, &self.check.into()).await?;
        let added: BTreeSet<_> = added.into_iter().collect();
        let mut copied = self.missing;
        copied.retain(|info| added.contains(&info.path));
        Ok(CopyReport {
            copied,
            present: self.present,
            failed,
            written,
        })
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
