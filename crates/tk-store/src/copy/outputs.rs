use super::{CopyReport, Warning};
use crate::{
    Abilities, Error, Result, SigCheck,
    derivation::{self, if_known},
};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};
use tk_narinfo::{
    SecretKey,
    realisation::{DrvOutput, Realisation, legacy},
};
use tk_path::{Derivation, OutputName, OutputsSpec, StorePath};

/// What says which paths some outputs of derivations are.
///
/// A path whose derivation tells it needs no more than the derivation. What the output of a
/// content-addressed one turned out to be is knowledge of its own: a realisation, in the newer
/// form or in that of Nix up to 2.34.
#[derive(Debug, Clone, Default)]
pub struct OutputPaths {
    realisations: Vec<Realisation>,
    /// Each comes after those that it depends on.
    legacy: Vec<legacy::LegacyRealisation>,
}

impl OutputPaths {
    /// The paths that the outputs `wanted` of the derivation `drv` are in `src`. What says so is
    /// kept, beside that of outputs found before. Named outputs are found without the derivation
    /// itself where `src` has their realisations, as caches do.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the derivation is needed and not there; [`Error::Invalid`] when it
    /// has no such output, or when `src` does not know what the output is.
    pub async fn find(
        &mut self,
        src: &Abilities,
        drv: &StorePath,
        wanted: &OutputsSpec,
    ) -> Result<Vec<StorePath>> {
        let mut paths = Vec::new();
        let read = match derivation::read(&*src.store, drv).await {
            Err(error @ Error::NotFound { .. }) => match wanted {
                OutputsSpec::All => return Err(error),
                OutputsSpec::Names(names) => {
                    for name in names {
                        match self.realised(src, drv, name).await? {
                            Some(path) => paths.push(path),
                            None => return Err(error),
                        }
                    }
                    return Ok(paths);
                }
            },
            read => read?,
        };
        if let OutputsSpec::Names(names) = wanted
            && let Some(name) = names.iter().find(|name| !read.outputs.contains_key(*name))
        {
            return Err(Error::invalid(format!("{drv} has no output '{name}'")));
        }
        for (name, output) in &read.outputs {
            if !wanted.contains(name) {
                continue;
            }
            let path = output.path(src.store.dir(), &read.name, name);
            let path = match path.map_err(|e| Error::malformed(drv.to_string(), e))? {
                Some(path) => Some(path),
                None => match self.realised_either_way(src, drv, &read, name).await? {
                    Some(path) => Some(path),
                    None => built(src, drv, name).await?,
                },
            };
            paths.push(path.ok_or_else(|| {
                Error::invalid(format!(
                    "{} does not know what {drv}^{name} is; it must be built first",
                    src.store
                ))
            })?);
        }
        Ok(paths)
    }

    /// Looks for the realisation of one output of `read`, the derivation `drv`, in both forms.
    async fn realised_either_way(
        &mut self,
        src: &Abilities,
        drv: &StorePath,
        read: &Derivation,
        output: &OutputName,
    ) -> Result<Option<StorePath>> {
        if let Some(path) = self.realised(src, drv, output).await? {
            return Ok(Some(path));
        }
        if src.realisations.is_none() {
            return Ok(None);
        }
        let output = output.clone();
        match derivation::legacy_hash_if_there(read, &*src.store).await? {
            Some(hash) => {
                self.find_legacy(src, &legacy::LegacyDrvOutput { hash, output })
                    .await
            }
            None => Ok(None),
        }
    }

    /// Looks for the realisation of one output, in the newer form.
    async fn realised(
        &mut self,
        src: &Abilities,
        drv: &StorePath,
        output: &OutputName,
    ) -> Result<Option<StorePath>> {
        let Some(store) = &src.realisations else {
            return Ok(None);
        };
        let id = DrvOutput {
            drv: drv.clone(),
            output: output.clone(),
        };
        let Some(value) = if_known(store.realisation(&id).await)? else {
            return Ok(None);
        };
        let path = value.out_path.clone();
        self.realisations.push(Realisation { id, value });
        Ok(Some(path))
    }

    /// The path that the output `id` of the older form is in `src`, if that is known there. What
    /// says so is kept, with the outputs that it depends on.
    pub async fn find_legacy(
        &mut self,
        src: &Abilities,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<StorePath>> {
        let Some(store) = &src.realisations else {
            return Ok(None);
        };
        let mut wave = vec![id.clone()];
        let mut found = BTreeMap::new();
        let mut seen: BTreeSet<_> = self.legacy.iter().map(|known| known.id.clone()).collect();
        while !wave.is_empty() {
            let new = mem::take(&mut wave).into_iter();
            let new = new.filter(|id| seen.insert(id.clone())).collect::<Vec<_>>();
            let ask = |id| async move {
                let answer = store.legacy_realisation(&id).await;
                (id, answer)
            };
            let mut answers = stream::iter(new).map(ask).buffered(AT_ONCE);
            while let Some((id, answer)) = answers.next().await {
                if let Some(realisation) = if_known(answer)? {
                    wave.extend(realisation.dependent.keys().cloned());
                    found.insert(id, realisation);
                }
            }
        }
        self.legacy.extend(dependencies_first(found));
        let asked = self.legacy.iter().find(|known| known.id == *id);
        Ok(asked.map(|realisation| realisation.out_path.clone()))
    }

    /// Tells `dst` what the outputs are, after their paths were copied. `keys` sign it.
    ///
    /// What the destination cannot take is a warning, what it refuses a failure of that path.
    /// Nothing is told of paths that failed.
    pub async fn copy(
        self,
        dst: &Abilities,
        check: &SigCheck,
        keys: &[Arc<SecretKey>],
        report: &mut CopyReport,
    ) {
        if self.realisations.is_empty() && self.legacy.is_empty() {
            return;
        }
        let Some(store) = dst.realisations.clone() else {
            let error = dst.unsupported("does not keep what outputs turned out to be");
            let id = format!("of {}", dst.store);
            return report.warnings.push(Warning::Realisation { id, error });
        };
        let failed: BTreeSet<_> = report.failed.iter().map(|(path, _)| path.clone()).collect();
        let copied = self.realisations.into_iter();
        let copied = copied.filter(|realisation| !failed.contains(&realisation.value.out_path));
        let registered = copied.map(|mut realisation| {
            for key in keys {
                realisation.sign(key);
            }
            let store = &store;
            async move {
                let told = store.register(&realisation, check).await;
                let id = realisation.id.display(dst.store.dir()).to_string();
                (id, realisation.value.out_path, told)
            }
        });
        let mut registered = stream::iter(registered).buffered(AT_ONCE);
        while let Some((id, path, told)) = registered.next().await {
            report.told(id, path, told);
        }
        drop(registered);
        // In their order: a reader is to find what one depends on.
        for mut realisation in self.legacy {
            let path = realisation.out_path.clone();
            if failed.contains(&path) {
                continue;
            }
            for key in keys {
                realisation.sign(key);
            }
            let id = realisation.id.to_string();
            let told = store.register_legacy(&realisation, check).await;
            report.told(id, path, told);
        }
    }
}

impl CopyReport {
    fn told(&mut self, id: String, path: StorePath, told: Result<()>) {
        match told {
            Ok(()) => self.realisations.push(id),
            Err(error @ Error::Unsupported { .. }) => {
                self.warnings.push(Warning::Realisation { id, error });
            }
            Err(error) => self.failed.push((path, error)),
        }
    }
}

/// Copies the build logs of `drvs`, as far as `src` has them and `dst` has not.
///
/// Nothing depends on a log: what cannot be copied is a warning in `report`.
pub async fn logs(
    src: &Abilities,
    dst: &Abilities,
    drvs: &BTreeSet<StorePath>,
    report: &mut CopyReport,
) {
    let (from, to) = match (&src.logs, &dst.logs) {
        (Some(from), Some(to)) => (from, to),
        (from, _) => {
            let store = if from.is_none() { src } else { dst };
            let error = store.unsupported("keeps no build logs");
            return report.warnings.push(Warning::Log { drv: None, error });
        }
    };
    let copies = drvs.iter().map(|drv| async move {
        let copy = async {
            if to.build_log(drv).await?.is_some() {
                return Ok(false);
            }
            match from.build_log(drv).await? {
                Some(log) => to.add_build_log(drv, log).await.map(|()| true),
                None => Ok(false),
            }
        };
        (drv.clone(), copy.await)
    });
    let mut copies = stream::iter(copies).buffered(AT_ONCE);
    while let Some((drv, copied)) = copies.next().await {
        match copied {
            Ok(true) => report.logs.push(drv),
            Ok(false) => {}
            // The others would fail in the same way.
            Err(error @ Error::Unsupported { .. }) => {
                return report.warnings.push(Warning::Log { drv: None, error });
            }
            Err(error) => report.warnings.push(Warning::Log {
                drv: Some(drv),
                error,
            }),
        }
    }
}

/// The path of an output as a store knows it that has no realisations in the newer form.
async fn built(src: &Abilities, drv: &StorePath, output: &OutputName) -> Result<Option<StorePath>> {
    match &src.graph {
        Some(graph) => Ok(graph.output_map(drv).await?.remove(output).flatten()),
        None => Ok(None),
    }
}

/// Each after those that it depends on; circles, which only a lying store has, end somewhere.
fn dependencies_first(
    mut found: BTreeMap<legacy::LegacyDrvOutput, legacy::LegacyRealisation>,
) -> Vec<legacy::LegacyRealisation> {
    let mut sorted = Vec::with_capacity(found.len());
    let mut opened = BTreeSet::new();
    let mut stack: Vec<_> = found.keys().cloned().collect();
    while let Some(id) = stack.pop() {
        let Some(realisation) = found.get(&id) else {
            continue;
        };
        if opened.insert(id.clone()) {
            let dependencies = realisation.dependent.keys().cloned();
            let dependencies: Vec<_> = dependencies.collect();
            stack.push(id);
            stack.extend(dependencies);
        } else {
            sorted.extend(found.remove(&id));
        }
    }
    sorted
}

/// Realisations or build logs on their way at once.
const AT_ONCE: usize = 16;
