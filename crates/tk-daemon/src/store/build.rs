use super::DaemonStore;
use crate::{
    client::BuildLogs,
    worker::ops::{
        BuildDerivation, BuildPaths, BuildPathsWithResults, EnsurePath, Op, QueryMissing,
    },
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{SystemTime, UNIX_EPOCH},
};
use tk_narinfo::{
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
    realisation::UnkeyedRealisation,
};
use tk_path::{
    BasicDerivation, DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StorePath,
};
use tk_store::{Build, BuildMode, Error, Graph, Missing, Result, Store, log::LogSink};

#[async_trait]
impl Build for DaemonStore {
    /// Daemons before 1.34 tell only whether all succeeded: what became of each is then found out
    /// by asking for its outputs, and a failure is a [`BuildStatus::MiscFailure`]. Where a daemon
    /// does not say when a build began and ended (2.34 does not if it failed), it is when it was
    /// heard of here.
    async fn build(
        &self,
        paths: &[DerivedPath],
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<Vec<KeyedBuildResult>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection().await?;
        let logs = BuildLogs::with(0, |event| log.event(event));
        let mut results = if Op::BuildPathsWithResults.supported(connection.protocol()) {
            let paths = paths.to_vec();
            let request = BuildPathsWithResults { paths, mode };
            connection.call(&request, &logs).await?
        } else {
            // Given back first: what follows takes another one, and the pool may have no more than this.
            drop(connection);
            self.build_blindly(paths, mode, &logs).await?
        };
        for KeyedBuildResult { path, result } in &mut results {
            if let DerivedPath::Built { drv, .. } = path
                && let SingleDerivedPath::Opaque(drv) = drv
                && result.start == 0
                && let Some(build) = logs.of(&self.config.dir.path(drv))
            {
                result.start = seconds(build.start);
                result.stop = seconds(build.stop.unwrap_or_else(SystemTime::now));
            }
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
        let request = BuildDerivation {
            path: path.clone(),
            derivation: drv.clone(),
            mode,
        };
        self.call_logged(&request, log).await
    }

    async fn missing(&self, paths: &[DerivedPath]) -> Result<Missing> {
        let paths = paths.to_vec();
        self.call(&QueryMissing { paths }).await
    }

    async fn ensure(&self, path: &StorePath, log: &dyn LogSink) -> Result<()> {
        let request = EnsurePath { path: path.clone() };
        self.call_logged(&request, log).await.map(drop)
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or_default()
}

/// What is wanted of a derivation, as far as it is known: which path each output is.
type WantedOutputPaths = BTreeMap<OutputName, Option<StorePath>>;

impl DaemonStore {
    async fn build_blindly(
        &self,
        paths: &[DerivedPath],
        mode: BuildMode,
        log: &dyn LogSink,
    ) -> Result<Vec<KeyedBuildResult>> {
        let request = BuildPaths {
            paths: paths.to_vec(),
            mode,
        };
        let before = self.are_there(paths).await?;
        let words = match self.call_logged(&request, log).await {
            Ok(_) => String::new(),
            Err(Error::Refused { words, .. }) => words,
            Err(error) => return Err(error),
        };
        let after = self.are_there(paths).await?;
        let results = paths.iter().zip(before.into_iter().zip(after));
        let results = results.map(|(path, ((_, before), (outputs, after)))| {
            let done = after && (words.is_empty() || !before || mode == BuildMode::Normal);
            let mut result = BuildResult::new(match (done, before) {
                (false, _) => BuildStatus::MiscFailure,
                (true, true) if mode == BuildMode::Normal => BuildStatus::AlreadyValid,
                (true, _) => BuildStatus::Built,
            });
            if done {
                let known = outputs
                    .into_iter()
                    .filter_map(|(name, path)| Some((name, path?)));
                let known = known.map(|(name, path)| (name, UnkeyedRealisation::new(path)));
                result.outputs = known.collect();
            } else {
                result.error = words.clone();
            }
            let path = path.clone();
            KeyedBuildResult { path, result }
        });
        Ok(results.collect())
    }

    /// For each of `paths` the outputs that are wanted, and whether all is there.
    async fn are_there(&self, paths: &[DerivedPath]) -> Result<Vec<(WantedOutputPaths, bool)>> {
        let mut wanted = Vec::with_capacity(paths.len());
        for path in paths {
            wanted.push(self.wanted(path).await?);
        }
        let all = wanted.iter().flatten().flat_map(|(_, needed)| needed);
        let valid = self.valid(&all.cloned().collect()).await?;
        let there = |wanted: Option<(WantedOutputPaths, BTreeSet<_>)>| match wanted {
            Some((outputs, needed)) => (outputs, needed.is_subset(&valid)),
            None => (WantedOutputPaths::new(), false),
        };
        Ok(wanted.into_iter().map(there).collect())
    }

    /// The outputs of `path`, and the paths that are to be valid; `None` if they are not known.
    async fn wanted(
        &self,
        path: &DerivedPath,
    ) -> Result<Option<(WantedOutputPaths, BTreeSet<StorePath>)>> {
        let (drv, spec) = match path {
            DerivedPath::Opaque(path) => {
                return Ok(Some((
                    WantedOutputPaths::new(),
                    BTreeSet::from([path.clone()]),
                )));
            }
            DerivedPath::Built { drv, outputs } => (drv, outputs),
        };
        let SingleDerivedPath::Opaque(drv) = drv else {
            return Ok(None);
        };
        let mut outputs = match self.output_map(drv).await {
            Ok(outputs) => outputs,
            Err(Error::NotFound { .. } | Error::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if let OutputsSpec::Names(names) = spec {
            outputs.retain(|name, _| names.contains(name));
        }
        let needed: Option<BTreeSet<_>> = outputs.values().cloned().collect();
        Ok(needed.map(|needed| (outputs, needed)))
    }
}
