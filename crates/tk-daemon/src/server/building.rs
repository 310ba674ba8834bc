//! Building: passed on to a store that can, and else answered for what is there already.

use super::context::{OperationContext, OperationFailure, OperationResult, refused};
use futures::{FutureExt, future::BoxFuture};
use std::collections::{BTreeMap, BTreeSet};
use tk_narinfo::{
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
    realisation::UnkeyedRealisation,
};
use tk_path::{
    BasicDerivation, DerivationKind, DerivedPath, OutputName, OutputsSpec, SingleDerivedPath,
    StorePath,
};
use tk_store::{BuildMode, Error, Missing};

/// What there is of something that is wanted.
enum FoundOutput {
    /// All of it; of a path that is no output, nothing by name.
    All(BTreeMap<OutputName, StorePath>),
    /// The derivation that has to be built, and those of its outputs that are wanted and lacking; `None`
    /// if it is not known what they will be.
    Build(StorePath, Option<BTreeSet<StorePath>>),
    /// Nobody knows how to come by this.
    Unknown(StorePath),
}

impl OperationContext {
    /// One result for each path.
    pub async fn build(
        &self,
        paths: &[DerivedPath],
        mode: BuildMode,
    ) -> OperationResult<Vec<KeyedBuildResult>> {
        if mode == BuildMode::Repair {
            self.require_trust("repairing paths")?;
        }
        if let Some(build) = &self.abilities.build {
            return Ok(build.build(paths, mode, &*self.events).await?);
        }
        if mode == BuildMode::Normal {
            self.fetch(paths).await?;
        }
        let mut results = Vec::new();
        for path in paths {
            results.push(KeyedBuildResult {
                path: path.clone(),
                result: self.result(self.found(path).await?, mode),
            });
        }
        Ok(results)
    }

    /// As [`OperationContext::build`], for clients that want all or an error.
    pub async fn build_all(&self, paths: &[DerivedPath], mode: BuildMode) -> OperationResult<()> {
        let results = self.build(paths, mode).await?;
        let failed: Vec<_> = results.iter().filter(|r| !r.result.is_success()).collect();
        let words: Vec<_> = failed.iter().map(|r| r.result.error.as_str()).collect();
        if words.is_empty() {
            Ok(())
        } else {
            Err(OperationFailure::Refused(Error::Refused {
                who: self.abilities.store.to_string(),
                words: words.join("\n"),
            }))
        }
    }

    pub async fn build_derivation(
        &self,
        path: &StorePath,
        drv: &BasicDerivation,
        mode: BuildMode,
    ) -> OperationResult<BuildResult> {
        let dir = self.abilities.store.dir();
        let kind = drv.kind().map_err(|e| refused(e.to_string()))?;
        let mut path = path.clone();
        if !self.trusted {
            // Its outputs are what the client says they are, and others would use them.
            if matches!(
                kind,
                DerivationKind::InputAddressed | DerivationKind::Deferred
            ) {
                self.require_trust("building a derivation that is not content-addressed")?;
            }
            path = drv.path(dir).map_err(|e| refused(e.to_string()))?;
        }
        if let Some(build) = &self.abilities.build {
            return Ok(build
                .build_derivation(&path, drv, mode, &*self.events)
                .await?);
        }
        let mut outputs = BTreeMap::new();
        for (name, output) in &drv.outputs {
            let known = output.path(dir, &drv.name, name);
            outputs.insert(name.clone(), known.map_err(|e| refused(e.to_string()))?);
        }
        let found = self.outputs_found(&path, outputs).await?;
        Ok(self.result(found, mode))
    }

    pub async fn missing(&self, paths: &[DerivedPath]) -> OperationResult<Missing> {
        if let Some(build) = &self.abilities.build {
            return Ok(build.missing(paths).await?);
        }
        let mut missing = Missing::default();
        let plain = paths.iter().filter_map(|path| match path {
            DerivedPath::Opaque(path) => Some(path.clone()),
            DerivedPath::Built { .. } => None,
        });
        // Many of them in one question.
        let plain = plain.collect();
        let valid = self.abilities.store.valid(&plain).await?;
        missing.unknown = plain.difference(&valid).cloned().collect();
        let mut builds = Vec::new();
        for path in paths {
            if matches!(path, DerivedPath::Opaque(_)) {
                continue;
            }
            match self.found(path).await? {
                FoundOutput::All(_) => {}
                FoundOutput::Build(drv, lacking) => builds.push((drv, lacking)),
                FoundOutput::Unknown(path) => drop(missing.unknown.insert(path)),
            }
        }
        let lacking = builds.iter().filter_map(|(_, lacking)| lacking.as_ref());
        let wanted = lacking.flatten().chain(&missing.unknown).cloned().collect();
        self.find_fetchable(wanted, &mut missing).await?;
        let fetched = &missing.substitute;
        missing.unknown.retain(|path| !fetched.contains(path));
        // A derivation need not be built if all of its outputs that are lacking can be fetched.
        let built = |lacking: &Option<BTreeSet<StorePath>>| match lacking {
            Some(lacking) => !lacking.is_subset(fetched),
            None => true,
        };
        let built = builds.into_iter().filter(|(_, lacking)| built(lacking));
        missing.build = built.map(|(drv, _)| drv).collect();
        Ok(missing)
    }

    /// Notes what of `wanted` can be fetched, and all that it refers to and that is lacking.
    async fn find_fetchable(
        &self,
        mut wanted: BTreeSet<StorePath>,
        missing: &mut Missing,
    ) -> OperationResult<()> {
        let Some(store) = &self.abilities.substitutes else {
            return Ok(());
        };
        let mut asked = wanted.clone();
        while !wanted.is_empty() {
            let wave = wanted.into_iter().map(|path| (path, None)).collect();
            let mut references = BTreeSet::new();
            for (path, info) in store.substitutable_infos(&wave).await? {
                missing.download_size = missing.download_size.saturating_add(info.download_size);
                missing.nar_size = missing.nar_size.saturating_add(info.nar_size);
                references.extend(info.references);
                missing.substitute.insert(path);
            }
            let new: BTreeSet<_> = references.difference(&asked).cloned().collect();
            asked.extend(new.iter().cloned());
            if asked.len() > MOST_FETCHED {
                let words = format!("more than {MOST_FETCHED} paths would have to be fetched");
                return Err(refused(words));
            }
            let valid = self.abilities.store.valid(&new).await?;
            wanted = &new - &valid;
        }
        Ok(())
    }

    pub async fn ensure(&self, path: &StorePath) -> OperationResult<()> {
        if let Some(build) = &self.abilities.build {
            return Ok(build.ensure(path, &*self.events).await?);
        }
        let one = BTreeSet::from([path.clone()]);
        if self.valid(one, true).await?.is_empty() {
            Err(refused(self.nowhere(path)))
        } else {
            Ok(())
        }
    }

    /// Fetches what there is somewhere of what `paths` need: derivations first, since they tell what their
    /// outputs are.
    async fn fetch(&self, paths: &[DerivedPath]) -> OperationResult<()> {
        if self.abilities.substitutes.is_none() {
            return Ok(());
        }
        for _ in 0..2 {
            let mut wanted = BTreeSet::new();
            for path in paths {
                match self.found(path).await? {
                    FoundOutput::All(_) => {}
                    FoundOutput::Build(_, lacking) => wanted.extend(lacking.unwrap_or_default()),
                    FoundOutput::Unknown(path) => drop(wanted.insert(path)),
                }
            }
            if wanted.is_empty() || self.valid(wanted, true).await?.is_empty() {
                break;
            }
        }
        Ok(())
    }

    async fn found(&self, path: &DerivedPath) -> OperationResult<FoundOutput> {
        let (drv, outputs) = match path {
            DerivedPath::Opaque(path) => return self.path_found(path).await,
            DerivedPath::Built { drv, outputs } => (drv, outputs),
        };
        let drv = match self.resolved(drv).await? {
            Ok(drv) => drv,
            Err(found) => return Ok(found),
        };
        let mut known = self.output_map(&drv).await?;
        if let OutputsSpec::Names(names) = outputs {
            if let Some(name) = names.iter().find(|name| !known.contains_key(*name)) {
                return Err(refused(format!("{drv} has no output '{name}'")));
            }
            known.retain(|name, _| names.contains(name));
        }
        self.outputs_found(&drv, known).await
    }

    async fn path_found(&self, path: &StorePath) -> OperationResult<FoundOutput> {
        Ok(if self.is_valid(path).await? {
            FoundOutput::All(BTreeMap::new())
        } else {
            FoundOutput::Unknown(path.clone())
        })
    }

    /// The path of a derivation that is there; or else what is in the way.
    fn resolved<'a>(
        &'a self,
        path: &'a SingleDerivedPath,
    ) -> BoxFuture<'a, OperationResult<Result<StorePath, FoundOutput>>> {
        async move {
            let path = match path {
                SingleDerivedPath::Opaque(path) => path.clone(),
                SingleDerivedPath::Built { drv, output } => {
                    let drv = match self.resolved(drv).await? {
                        Ok(drv) => drv,
                        Err(found) => return Ok(Err(found)),
                    };
                    match self.output_map(&drv).await?.remove(output) {
                        Some(Some(path)) if self.is_valid(&path).await? => path,
                        Some(_) => return Ok(Err(FoundOutput::Build(drv, None))),
                        None => return Err(refused(format!("{drv} has no output '{output}'"))),
                    }
                }
            };
            Ok(if self.is_valid(&path).await? {
                Ok(path)
            } else {
                Err(FoundOutput::Unknown(path))
            })
        }
        .boxed()
    }

    async fn outputs_found(
        &self,
        drv: &StorePath,
        outputs: BTreeMap<OutputName, Option<StorePath>>,
    ) -> OperationResult<FoundOutput> {
        let paths = outputs.values().flatten().cloned().collect();
        let valid = self.abilities.store.valid(&paths).await?;
        let there = |path: &Option<StorePath>| path.clone().filter(|path| valid.contains(path));
        let found = outputs
            .iter()
            .map(|(name, path)| Some((name.clone(), there(path)?)));
        Ok(match found.collect() {
            Some(outputs) => FoundOutput::All(outputs),
            None => {
                let all: Option<BTreeSet<_>> = outputs.into_values().collect();
                FoundOutput::Build(drv.clone(), all.map(|all| &all - &valid))
            }
        })
    }

    fn result(&self, found: FoundOutput, mode: BuildMode) -> BuildResult {
        let (status, error) = match (found, mode) {
            (FoundOutput::All(outputs), BuildMode::Normal) => {
                let realised = |(name, path)| (name, UnkeyedRealisation::new(path));
                return BuildResult {
                    outputs: outputs.into_iter().map(realised).collect(),
                    ..BuildResult::new(BuildStatus::AlreadyValid)
                };
            }
            (FoundOutput::All(_), _) => (
                BuildStatus::MiscFailure,
                format!("{} cannot build again what it has", self.abilities.store),
            ),
            (FoundOutput::Build(drv, _), _) => (BuildStatus::MiscFailure, self.no_builder(&drv)),
            (FoundOutput::Unknown(path), _) => (BuildStatus::NoSubstituters, self.nowhere(&path)),
        };
        BuildResult {
            error,
            ..BuildResult::new(status)
        }
    }

    fn no_builder(&self, drv: &StorePath) -> String {
        let (dir, store) = (self.abilities.store.dir(), &self.abilities.store);
        format!(
            "cannot build without nix: outputs of {} are missing in {store}, \
             which is served by tk-store; build them elsewhere and copy them here",
            dir.display(drv)
        )
    }

    fn nowhere(&self, path: &StorePath) -> String {
        let (dir, store) = (self.abilities.store.dir(), &self.abilities.store);
        format!(
            "{} is not in {store}, and nothing says how to come by it",
            dir.display(path)
        )
    }
}

/// Paths that one question may find missing and fetchable: a cache that invents references must not fill
/// the memory.
const MOST_FETCHED: usize = 1_000_000;
