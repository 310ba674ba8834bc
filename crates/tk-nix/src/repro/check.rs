//! Building again, and comparing.

use super::{Instance, InstanceState, MAX_DIFFERENCES, ReproVerdict, mismatch};
use crate::{
    CancellationToken, Cause, EvalOptions, NixBuildOptions, NixBuilder, NixFailure, Result, Target,
};
use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_nar::{Encoder, fs::DumpOptions};
use tk_narinfo::PathInfo;
use tk_path::{
    Algorithm, Derivation, DerivationKind, DerivedPath, Method, OutputName, OutputsSpec,
    References, SingleDerivedPath, StorePath,
};
use tk_store::{BuildMode, Store, StoreExt, compare, derivation, log::LogSink, nar};

/// How [`check`] builds and compares.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CheckOptions {
    /// How often it is built again; it stops at the first build that differs.
    pub rounds: NonZeroU32,
    /// Differences that are told.
    pub limit: usize,
    /// Each build is given up after so long.
    pub timeout: Option<Duration>,
    /// Where the files of the builder's store lie on this machine, if they do: there the second result is
    /// read. The builder must have been told `keep-failed`, or it leaves none.
    pub real_dir: Option<PathBuf>,
    /// The build is given up when this is cancelled: [`Cause::Cancelled`].
    pub cancel: CancellationToken,
}

impl Default for CheckOptions {
    /// One more build, [`MAX_DIFFERENCES`], no limit of time, files out of reach.
    fn default() -> Self {
        CheckOptions {
            rounds: NonZeroU32::MIN,
            limit: MAX_DIFFERENCES,
            timeout: None,
            real_dir: None,
            cancel: CancellationToken::new(),
        }
    }
}

/// Builds `target` if it is not there, builds it again, and compares. One verdict for each output that is
/// wanted. A path that is no derivation means the output that it is, of the derivation that made it.
///
/// # Errors
/// When one of the builds fails; [`Cause::Misused`] for what cannot be built again: a path whose
/// derivation is not there, a derivation whose outputs may differ by its own words.
pub async fn check(
    builder: &NixBuilder,
    target: &Target,
    options: &CheckOptions,
    log: &dyn LogSink,
) -> Result<Vec<ReproVerdict>> {
    let again = RepeatedBuilds {
        builder,
        options,
        log,
    };
    let (drv_path, wanted) = again.subject(target).await?;
    let store = &*builder.store().store;
    let drv = derivation::read(store, &drv_path).await?;
    let wanted = wanted.names(&drv, &drv_path)?;
    let kind = drv.kind().map_err(|e| misused(e.to_string()))?;
    if let DerivationKind::Impure(_) = kind {
        let words = format!("{drv_path} is impure: each build may give something else");
        return Err(misused(words));
    }
    let outputs = again.build(&drv_path, BuildMode::Normal).await?;
    let mut first = BTreeMap::new();
    for output in wanted {
        let path = outputs.get(output.as_str());
        let path = path.ok_or_else(|| misused(format!("{drv_path} has no output {output}")))?;
        first.insert(output, store.require_info(path).await?);
    }
    match kind {
        DerivationKind::Floating(_) => again.floating(&drv_path, &drv, first).await,
        DerivationKind::Deferred => {
            // What was built is another derivation, in which the inputs are paths.
            let made_by = first.values().find_map(|info| info.deriver.clone());
            let resolved = made_by.unwrap_or_else(|| drv_path.clone());
            again.in_check_mode(&drv_path, &resolved, first).await
        }
        _ => again.in_check_mode(&drv_path, &drv_path, first).await,
    }
}

/// The outputs that are wanted of a derivation.
enum ReproOutputs {
    Spec(OutputsSpec),
    /// The one that is this path.
    Path(StorePath),
}

impl ReproOutputs {
    fn names(&self, drv: &Derivation, path: &StorePath) -> Result<Vec<OutputName>> {
        let is_wanted = |name: &OutputName| match self {
            ReproOutputs::Spec(spec) => spec.contains(name),
            ReproOutputs::Path(path) => path.name() == name.path_name(&drv.name),
        };
        let names: Vec<_> = drv
            .outputs
            .keys()
            .filter(|n| is_wanted(n))
            .cloned()
            .collect();
        if let ReproOutputs::Spec(OutputsSpec::Names(all)) = self
            && let Some(name) = all.iter().find(|name| !names.contains(name))
        {
            return Err(misused(format!("{path} has no output {name}")));
        }
        if names.is_empty() {
            Err(misused(format!("{path} has no such output")))
        } else {
            Ok(names)
        }
    }
}

/// The builds of one check.
struct RepeatedBuilds<'a> {
    builder: &'a NixBuilder,
    options: &'a CheckOptions,
    log: &'a dyn LogSink,
}

impl RepeatedBuilds<'_> {
    /// The derivation to be built, and its outputs that are wanted.
    async fn subject(&self, target: &Target) -> Result<(StorePath, ReproOutputs)> {
        match &target.path {
            DerivedPath::Built {
                drv: SingleDerivedPath::Opaque(drv),
                outputs,
            } => Ok((drv.clone(), ReproOutputs::Spec(outputs.clone()))),
            DerivedPath::Built { .. } => Err(misused(
                "a derivation that is itself built cannot be checked; name what it turned out to be".into(),
            )),
            DerivedPath::Opaque(path) => {
                let info = self.store().require_info(path).await?;
                let words = |what| misused(format!("{path} cannot be built again: {what}"));
                let deriver = info
                    .deriver
                    .ok_or_else(|| words("what made it is not known"))?;
                if self.store().valid(&[deriver.clone()].into()).await?.is_empty() { Err(words("the derivation that made it is not in the store")) } else { Ok((deriver, ReproOutputs::Path(path.clone()))) }
            }
        }
    }

    fn store(&self) -> &dyn Store {
        &*self.builder.store().store
    }

    fn whole(&self, path: &StorePath) -> String {
        self.store().dir().path(path)
    }

    /// Builds all outputs of `drv`: paths by name.
    async fn build(&self, drv: &StorePath, mode: BuildMode) -> Result<BTreeMap<String, StorePath>> {
        let target = Target::of(DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv.clone()),
            outputs: OutputsSpec::All,
        });
        let options = NixBuildOptions {
            eval: EvalOptions::default(),
            mode,
            timeout: self.options.timeout,
            cancel: self.options.cancel.clone(),
        };
        let targets = std::slice::from_ref(&target);
        let built = self.builder.build_targets(targets, &options, self.log);
        let built = built.await?.pop();
        let built = built.ok_or_else(|| misused(format!("nothing was told of {drv}")))??;
        if mode == BuildMode::Check && built.status != "Built" {
            let words = format!("{drv} was not built again but {}", built.status);
            return Err(NixFailure::new(Cause::Other, words));
        }
        let parsed = built.outputs.iter().map(|(name, path)| {
            let path = self.store().dir().parse(path);
            let path = path.map_err(|e| NixFailure::new(Cause::Other, e.to_string()))?;
            Ok((name.clone(), path))
        });
        parsed.collect()
    }

    /// `named` is what was asked for, `built` the derivation that the outputs come from.
    async fn in_check_mode(
        &self,
        named: &StorePath,
        built: &StorePath,
        first: BTreeMap<OutputName, PathInfo>,
    ) -> Result<Vec<ReproVerdict>> {
        let mut verdicts = self.verdicts(named, &first);
        for round in 0..self.options.rounds.get() {
            let failure = match self.build(built, BuildMode::Check).await {
                Ok(_) => {
                    for (verdict, info) in verdicts.iter_mut().zip(first.values()) {
                        self.same(verdict, round, info);
                    }
                    continue;
                }
                Err(failure) => failure,
            };
            match failure.cause {
                Cause::NotDeterministic => (),
                Cause::HashMismatch { .. } => {
                    for verdict in &mut verdicts {
                        verdict.reproducible = Some(false);
                        verdict.note = Some(failure.to_string());
                    }
                    break;
                }
                _ => return Err(failure),
            }
            // One failure speaks for the whole derivation; only its message names the outputs that differ.
            let told = |info: &PathInfo| names(&failure.message, &self.whole(&info.path));
            for (verdict, info) in verdicts.iter_mut().zip(first.values()) {
                if told(info) {
                    self.differs(verdict, round, info, &failure.message).await?
                } else {
                    verdict.reproducible = None;
                    verdict.note = Some(NOT_COMPARED.into());
                }
            }
            break;
        }
        Ok(verdicts)
    }

    /// The verdicts with the first build, before there is another.
    fn verdicts(
        &self,
        drv: &StorePath,
        first: &BTreeMap<OutputName, PathInfo>,
    ) -> Vec<ReproVerdict> {
        let verdict = |(output, info): (&OutputName, &PathInfo)| {
            let mut verdict = ReproVerdict::new(Some(self.whole(drv)), Some(output.to_string()));
            let path = self.whole(&info.path);
            verdict.path = Some(path.clone());
            verdict.copies = vec![Instance::present("build 1", path, info.nar_hash)];
            verdict
        };
        first.iter().map(verdict).collect()
    }

    fn same(&self, verdict: &mut ReproVerdict, round: u32, info: &PathInfo) {
        let path = self.whole(&info.path);
        let copy = Instance::present(name_of(round), path, info.nar_hash);
        verdict.copies.push(copy);
        verdict.reproducible = Some(true);
    }

    /// Notes that the output of `info` differs, and where if the second result can be read.
    async fn differs(
        &self,
        verdict: &mut ReproVerdict,
        round: u32,
        info: &PathInfo,
        words: &str,
    ) -> Result<()> {
        verdict.reproducible = Some(false);
        let kept = format!("{}.check", info.path);
        let whole = format!("{}/{kept}", self.store().dir());
        let unknown = |why: &str| Instance {
            from: name_of(round),
            state: InstanceState::Unknown(why.to_owned()),
        };
        let Some(real) = self.options.real_dir.as_deref() else {
            verdict.copies.push(unknown(OUT_OF_REACH));
            return Ok(());
        };
        let file = real.join(&kept);
        if !words.contains(&whole) || std::fs::symlink_metadata(&file).is_err() {
            verdict.copies.push(unknown(NOT_KEPT));
            return Ok(());
        }
        match self.compare_with(info, &file, &whole).await {
            Ok(compared) => {
                let copy = Instance::present(name_of(round), whole, compared.hashes[1]);
                verdict.copies.push(copy);
                verdict.differ([0, verdict.copies.len() - 1], compared);
            }
            // What matters is known already.
            Err(error) => verdict.copies.push(unknown(&error.to_line())),
        }
        Ok(())
    }

    async fn compare_with(
        &self,
        info: &PathInfo,
        file: &Path,
        name: &str,
    ) -> tk_store::Result<tk_store::Compared> {
        let first = self.store().nar(&info.path).await?;
        let second = nar::dump(file.to_owned(), DumpOptions::default());
        let nars = [(self.whole(&info.path), first), (name.to_owned(), second)];
        let compared = compare(nars, self.options.limit).await?;
        if compared.hashes[0] == info.nar_hash {
            Ok(compared)
        } else {
            Err(mismatch(
                info,
                &self.store().to_string(),
                compared.hashes[0],
            ))
        }
    }

    /// Content-addressed outputs, which are built again as another derivation.
    async fn floating(
        &self,
        path: &StorePath,
        drv: &Derivation,
        first: BTreeMap<OutputName, PathInfo>,
    ) -> Result<Vec<ReproVerdict>> {
        let mut verdicts = self.verdicts(path, &first);
        for round in 0..self.options.rounds.get() {
            let twin = self.twin(path, drv, round).await?;
            let outputs = self.build(&twin, BuildMode::Normal).await?;
            let mut all_same = true;
            for ((output, info), verdict) in first.iter().zip(&mut verdicts) {
                let second = outputs.get(output.as_str());
                let second = second.ok_or_else(|| misused(format!("{twin} has no {output}")))?;
                let second = self.store().require_info(second).await?;
                let whole = self.whole(&second.path);
                let copy = Instance::present(name_of(round), whole, second.nar_hash);
                verdict.copies.push(copy);
                let same = second.nar_hash == info.nar_hash;
                verdict.reproducible = Some(same);
                if !same {
                    all_same = false;
                    let compared = self.compare_paths(info, &second).await?;
                    verdict.differ([0, verdict.copies.len() - 1], compared);
                }
            }
            if !all_same {
                break;
            }
        }
        Ok(verdicts)
    }

    async fn compare_paths(&self, a: &PathInfo, b: &PathInfo) -> Result<tk_store::Compared> {
        let nars = [
            (self.whole(&a.path), self.store().nar(&a.path).await?),
            (self.whole(&b.path), self.store().nar(&b.path).await?),
        ];
        Ok(compare(nars, self.options.limit).await?)
    }

    /// A derivation that does the same as `drv`, and was never built.
    async fn twin(&self, path: &StorePath, drv: &Derivation, round: u32) -> Result<StorePath> {
        let mut twin = drv.clone();
        let text = format!("{}\nbuild {} {}\n", self.whole(path), round + 2, unique());
        let none = References::default();
        let salt = self
            .add_text("tk-store-repro", text.as_bytes(), &none)
            .await?;
        twin.inputs.srcs.insert(salt);
        let text = twin.to_aterm(self.store().dir());
        let text = text.map_err(|e| misused(e.to_string()))?;
        let mut others = twin.inputs.srcs.clone();
        others.extend(twin.inputs.drvs.keys().cloned());
        let references = References {
            others,
            itself: false,
        };
        let name = format!("{}.drv", twin.name);
        self.add_text(&name, &text, &references).await
    }

    async fn add_text(&self, name: &str, text: &[u8], refs: &References) -> Result<StorePath> {
        let Some(content) = &self.builder.store().content else {
            let store = self.store();
            return Err(misused(format!("{store} takes no derivations")));
        };
        let mut encoder = Encoder::new(Vec::new());
        let written = encoder.file(false, text);
        let written = written.and_then(|()| encoder.finish());
        let file = written.map_err(|e| NixFailure::new(Cause::Other, e.to_string()))?;
        let file = nar::from_bytes(file);
        let info = content.add_content(name, Method::Text, Algorithm::Sha256, refs, file);
        Ok(info.await?.path)
    }
}

/// Whether `text` names exactly `path`, perhaps with `.check`, not one of which it is the beginning.
fn names(text: &str, path: &str) -> bool {
    let mut rests = text.split(path).skip(1);
    rests.any(|rest| {
        let rest = rest.strip_prefix(".check").unwrap_or(rest);
        !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || "+-._?=".contains(c))
    })
}

fn name_of(round: u32) -> String {
    format!("build {}", round + 2)
}

/// Differs each time, so that nobody has built it before.
fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.map_or(0, |time| time.as_nanos());
    format!("{nanos}-{}", std::process::id())
}

fn misused(words: String) -> NixFailure {
    NixFailure::new(Cause::Misused, words)
}

const NOT_COMPARED: &str =
    "another output differs, and Nix compares no further: whether this one does is not known";
const OUT_OF_REACH: &str = "its files are on another machine";
const NOT_KEPT: &str = "the daemon did not keep it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_output_is_told() {
        let (out, dev) = ("/nix/store/a-x", "/nix/store/a-x-dev");
        for (text, is_out, is_dev) in [
            ("output '/nix/store/a-x' differs", true, false),
            ("output '/nix/store/a-x-dev' differs", false, true),
            (
                "\"/nix/store/a-x\" differs from \"/nix/store/a-x.check\"",
                true,
                false,
            ),
            ("differs from '/nix/store/a-x.check'", true, false),
            ("differs from '/nix/store/a-x.checked'", false, false),
            ("both /nix/store/a-x-dev, /nix/store/a-x", true, true),
            ("", false, false),
        ] {
            assert_eq!(names(text, out), is_out, "{text}");
            assert_eq!(names(text, dev), is_dev, "{text}");
        }
    }
}
