//! Building at the far end. The log is what it writes to stderr.

use super::ServeStore;
use crate::serve::commands::{self, BuildOutcome, QueryValidPaths};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use tk_narinfo::{
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
    realisation::UnkeyedRealisation,
};
use tk_path::{
    BasicDerivation, DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StorePath,
};
use tk_store::{Build, BuildMode, Error, Missing, Result, Store, derivation, log::LogSink};

#[async_trait]
impl Build for ServeStore {
    /// The protocol tells one outcome for all paths: after a failure, those whose outputs are there
    /// have succeeded, and all others have failed with the one message.
    async fn build(
        &self,
        paths: &[DerivedPath],
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<Vec<KeyedBuildResult>> {
        self.only_normal(mode)?;
        let request = commands::BuildPaths {
            paths: paths.to_vec(),
            options: self.config.build.clone(),
        };
        let outcome = self.pool.get().await?.call_long(&request, log).await?;
        let mut results = Vec::with_capacity(paths.len());
        for path in paths {
            let result = self.result(path, &outcome).await?;
            let path = path.clone();
            results.push(KeyedBuildResult { path, result });
        }
        Ok(results)
    }

    async fn build_derivation(
        &self,
        path: &StorePath,
        drv: &BasicDerivation,
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<BuildResult> {
        self.only_normal(mode)?;
        let request = commands::BuildDerivation {
            path: path.clone(),
            derivation: drv.clone(),
            options: self.config.build.clone(),
        };
        self.pool.get().await?.call_long(&request, log).await
    }

    /// The protocol has no command for it.
    async fn missing(&self, _: &[DerivedPath]) -> Result<Missing> {
        Err(self.unsupported("cannot tell what it would build (the serve protocol)"))
    }

    async fn ensure(&self, path: &StorePath, log: &dyn LogSink) -> Result<()> {
        let request = QueryValidPaths {
            lock: false,
            substitute: true,
            paths: BTreeSet::from([path.clone()]),
        };
        let valid = self.pool.get().await?.call_long(&request, log).await?;
        if valid.contains(path) {
            Ok(())
        } else {
            Err(self.not_found(path))
        }
    }
}

impl ServeStore {
    fn only_normal(&self, mode: BuildMode) -> Result<()> {
        match mode {
            BuildMode::Normal => Ok(()),
            _ => Err(self.unsupported("cannot build again what is there (the serve protocol)")),
        }
    }

    /// What became of one of several paths.
    async fn result(&self, path: &DerivedPath, outcome: &BuildOutcome) -> Result<BuildResult> {
        let wanted = self.outputs(path).await?;
        let paths: BTreeSet<_> = wanted.iter().filter_map(|(_, path)| path.clone()).collect();
        let mut result = match outcome {
            BuildOutcome::Success => BuildResult::new(BuildStatus::Built),
            BuildOutcome::Failure {
                exit_status,
                message,
            } => {
                let all_known = wanted.iter().all(|(_, path)| path.is_some());
                if !all_known || paths.is_empty() || self.valid(&paths).await? != paths {
                    let mut result = BuildResult::new(status(*exit_status));
                    result.error = message.clone();
                    return Ok(result);
                }
                BuildResult::new(BuildStatus::AlreadyValid)
            }
        };
        let realised = |(name, path): (Option<OutputName>, Option<StorePath>)| {
            let realisation = UnkeyedRealisation {
                out_path: path?,
                signatures: BTreeSet::new(),
            };
            Some((name?, realisation))
        };
        result.outputs = wanted.into_iter().filter_map(realised).collect();
        Ok(result)
    }

    /// The outputs that `path` stands for, by name, with their paths as far as they are known; a
    /// plain path has no name.
    async fn outputs(
        &self,
        path: &DerivedPath,
    ) -> Result<Vec<(Option<OutputName>, Option<StorePath>)>> {
        let (drv, spec) = match path {
            DerivedPath::Opaque(path) => return Ok(vec![(None, Some(path.clone()))]),
            DerivedPath::Built {
                drv: SingleDerivedPath::Opaque(drv),
                outputs,
            } => (drv, outputs),
            DerivedPath::Built { .. } => return Ok(vec![(None, None)]),
        };
        let map: BTreeMap<_, _> = match derivation::output_map(self, drv, None).await {
            Ok(map) => map,
            // Then the build cannot have succeeded, and says why.
            Err(Error::NotFound { .. }) => return Ok(vec![(None, None)]),
            Err(error) => return Err(error),
        };
        let wanted = map.into_iter().filter(|(name, _)| spec.contains(name));
        let mut wanted: Vec<_> = wanted.map(|(name, path)| (Some(name), path)).collect();
        if let OutputsSpec::Names(names) = spec
            && names.len() > wanted.len()
        {
            wanted.push((None, None));
        }
        Ok(wanted)
    }
}

/// What the exit status of Nix's programs says about a failed build.
fn status(exit_status: u64) -> BuildStatus {
    match exit_status {
        100 => BuildStatus::PermanentFailure,
        101 => BuildStatus::TimedOut,
        102 => BuildStatus::HashMismatch,
        104 => BuildStatus::NotDeterministic,
        _ => BuildStatus::MiscFailure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tk_narinfo::build_result::exit_status;

    #[test]
    fn statuses() {
        for known in [
            BuildStatus::PermanentFailure,
            BuildStatus::TimedOut,
            BuildStatus::HashMismatch,
            BuildStatus::NotDeterministic,
            BuildStatus::MiscFailure,
        ] {
            let code = exit_status([&BuildResult::new(known)]);
            assert_eq!(status(code.into()), known);
        }
        assert_eq!(status(103), BuildStatus::MiscFailure);
        assert_eq!(status(u64::MAX), BuildStatus::MiscFailure);
    }
}
