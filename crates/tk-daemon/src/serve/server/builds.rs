//! Building, by the store or by looking whether it is done.

use super::ServeServer;
use crate::serve::commands::BuildOutcome;
use std::collections::{BTreeMap, BTreeSet};
use tk_narinfo::{
    build_result::{BuildResult, BuildStatus, exit_status},
    realisation::UnkeyedRealisation,
};
use tk_path::{BasicDerivation, DerivedPath, SingleDerivedPath, StorePath};
use tk_store::{BuildMode, Error, Result};

/// The outcome of BuildPaths.
pub(super) async fn paths(server: &ServeServer, paths: &[DerivedPath]) -> Result<BuildOutcome> {
    if let Some(build) = &server.abilities.build {
        let results = build.build(paths, BuildMode::Normal, &server.log).await;
        return match results {
            Ok(results) => Ok(outcome(results.iter().map(|keyed| &keyed.result))),
            Err(error @ (Error::Refused { .. } | Error::NotFound { .. })) => {
                Ok(failure(error.to_line()))
            }
            Err(error) => Err(error),
        };
    }
    for path in paths {
        if let Some(why) = undone(server, path).await? {
            return Ok(failure(why));
        }
    }
    Ok(BuildOutcome::Success)
}

/// The result of BuildDerivation.
pub(super) async fn derivation(
    server: &ServeServer,
    path: &StorePath,
    drv: &BasicDerivation,
) -> Result<BuildResult> {
    if let Some(build) = &server.abilities.build {
        return build
            .build_derivation(path, drv, BuildMode::Normal, &server.log)
            .await;
    }
    let store = &server.abilities.store;
    let mut outputs = BTreeMap::new();
    for (name, output) in &drv.outputs {
        let known = output.path(store.dir(), &drv.name, name);
        let known = known.map_err(|e| Error::malformed(path.to_string(), e))?;
        if let Some(out_path) = known {
            let signatures = BTreeSet::new();
            let realisation = UnkeyedRealisation {
                out_path,
                signatures,
            };
            outputs.insert(name.clone(), realisation);
        }
    }
    let paths: BTreeSet<_> = outputs.values().map(|r| r.out_path.clone()).collect();
    if outputs.len() == drv.outputs.len() && store.valid(&paths).await? == paths {
        let mut result = BuildResult::new(BuildStatus::AlreadyValid);
        result.outputs = outputs;
        return Ok(result);
    }
    let mut result = BuildResult::new(BuildStatus::MiscFailure);
    result.error = no_builder(server, path);
    Ok(result)
}

/// Why `path` is not there as it should be, if it is not.
async fn undone(server: &ServeServer, path: &DerivedPath) -> Result<Option<String>> {
    let store = &server.abilities.store;
    let (drv, wanted) = match path {
        DerivedPath::Opaque(path) => {
            let paths = BTreeSet::from([path.clone()]);
            let there = store.valid(&paths).await? == paths;
            return Ok((!there).then(|| format!("{path} is not in {store}")));
        }
        DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs,
        } => (drv, outputs),
        DerivedPath::Built { drv, .. } => return Ok(Some(no_builder(server, drv.base()))),
    };
    let known = match server.abilities.output_map(drv).await {
        Ok(known) => known,
        Err(error @ Error::NotFound { .. }) => return Ok(Some(error.to_string())),
        Err(error) => return Err(error),
    };
    let known = known.into_iter().filter(|(name, _)| wanted.contains(name));
    let known: Option<BTreeSet<StorePath>> = known.map(|(_, path)| path).collect();
    match known {
        Some(paths) if !paths.is_empty() && store.valid(&paths).await? == paths => Ok(None),
        _ => Ok(Some(no_builder(server, drv))),
    }
}

fn no_builder(server: &ServeServer, drv: &StorePath) -> String {
    let store = &server.abilities.store;
    format!(
        "{drv} is not built yet, and {store} does not build: build it elsewhere and copy the outputs"
    )
}

fn failure(message: String) -> BuildOutcome {
    BuildOutcome::Failure {
        exit_status: 1,
        message,
    }
}

fn outcome<'a>(results: impl Iterator<Item = &'a BuildResult> + Clone) -> BuildOutcome {
    match exit_status(results.clone()) {
        0 => BuildOutcome::Success,
        status => BuildOutcome::Failure {
            exit_status: status.into(),
            message: results
                .filter(|result| !result.is_success())
                .map(|result| result.error.as_str())
                .collect::<Vec<_>>()
                .join("\n"),
        },
    }
}
