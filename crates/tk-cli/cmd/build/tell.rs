//! What is said of builds.

use super::{Preferred, Ready, push::Pushed};
use crate::{
    CommandContext, ExitStatus,
    build_log::FinishedActivities,
    failure::{answer, tell_failure},
    ui,
};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    time::Instant,
};
use tk_builders::FetchReport;
use tk_narinfo::build_result::BuildStatus;
use tk_nix::{NixBuildResult, NixFailure, Target};
use tk_path::{StoreDir, StorePath};

/// What became of one target.
pub struct Outcome {
    pub result: Result<NixBuildResult, NixFailure>,
    pub pushed: Vec<Pushed>,
}

impl Outcome {
    /// Without a push.
    pub fn of(result: Result<NixBuildResult, NixFailure>) -> Self {
        Outcome {
            result,
            pushed: Vec::new(),
        }
    }

    fn answer(&self) -> ExitStatus {
        let lost = self.pushed.iter().any(|pushed| !pushed.errors.is_empty());
        match &self.result {
            Err(failure) => answer(failure),
            Ok(_) if lost => ExitStatus::Failed,
            Ok(_) => ExitStatus::Yes,
        }
    }
}

/// Tells what failed, and prints the rest.
pub fn results(
    cx: &CommandContext,
    what: &[String],
    targets: &[Target],
    outcomes: &[Outcome],
    dir: &StoreDir,
    as_json: bool,
) -> Result<ExitStatus> {
    let mut all = ExitStatus::Yes;
    for (what, outcome) in what.iter().zip(outcomes) {
        if let Err(failure) = &outcome.result {
            tell_failure(cx, &format!("{what} was not built"), failure);
        }
        all = all.max(outcome.answer());
    }
    if as_json {
        let list = targets.iter().zip(outcomes);
        let list = list.map(|(target, outcome)| to_json(dir, target, outcome));
        ui::out(Value::from_iter(list))?;
        return Ok(all);
    }
    let mut seen = BTreeSet::new();
    let built = outcomes
        .iter()
        .filter_map(|outcome| outcome.result.as_ref().ok());
    for path in built.flat_map(|built| built.outputs.values()) {
        if seen.insert(path) {
            ui::out(path)?;
        }
    }
    Ok(all)
}

/// Tells why nothing came to be built.
pub fn not_evaluated(
    cx: &CommandContext,
    what: &str,
    failure: &NixFailure,
    as_json: bool,
) -> Result<ExitStatus> {
    let answer = tell_failure(cx, what, failure);
    if as_json {
        let mut value = failed(failure);
        for key in ["path", "drvPath"] {
            value[key] = Value::Null;
        }
        value["success"] = json!(false);
        value["pushed"] = json!([]);
        ui::out(json!([value]))?;
    }
    Ok(answer)
}

fn failed(failure: &NixFailure) -> Value {
    json!({
        "storePath": null, "outputs": {}, "buildTime": null, "size": null, "references": [],
        "status": failure.asked_status.or(failure.status).map(BuildStatus::name),
        "errorMsg": failure.message,
        "failure": failure.to_json(),
    })
}

/// The same keys whether it was built or not; those that are not known are null.
fn to_json(dir: &StoreDir, target: &Target, outcome: &Outcome) -> Value {
    let pushed: Vec<_> = outcome.pushed.iter().map(Pushed::to_json).collect();
    let drv = target.derivation().map(|drv| dir.path(drv));
    let mut value = match &outcome.result {
        Ok(built) => json!(built),
        Err(failure) => failed(failure),
    };
    value["path"] = json!(target.path.display(dir).to_string());
    value["drvPath"] = json!(drv);
    value["success"] = json!(outcome.result.is_ok());
    value["pushed"] = json!(pushed);
    value
}

/// One line for all of it: what was built, fetched and pushed.
pub fn summary(
    cx: &CommandContext,
    done: &FinishedActivities,
    fetched: &FetchReport,
    outcomes: &[Outcome],
    start: Instant,
) {
    // What was begun and failed, or was given up, is not built.
    let failures = outcomes
        .iter()
        .filter_map(|outcome| outcome.result.as_ref().err());
    let failures = failures.flat_map(|failure| iter::once(failure).chain(&failure.others));
    let failed: BTreeSet<_> = failures.filter_map(|f| f.derivation.as_ref()).collect();
    let built = done.built.iter().filter(|drv| !failed.contains(drv));
    let built = match built.count() {
        0 => "built nothing".to_owned(),
        1 => "built 1 derivation".to_owned(),
        n => format!("built {n} derivations"),
    };
    let mut parts = vec![built];
    let paths = done.fetched.len() + fetched.paths.len();
    if paths > 0 {
        let size: u64 = fetched.paths.values().sum();
        let size = match size {
            0 => String::new(),
            size => format!(" ({})", ui::size(size)),
        };
        parts.push(format!("fetched {}{size}", ui::paths(paths)));
    }
    let sizes = outcomes
        .iter()
        .filter_map(|outcome| outcome.result.as_ref().ok());
    let size: u64 = sizes.map(|built| built.size).sum();
    let time = ui::seconds(start.elapsed());
    parts.extend(pushes(outcomes));
    let parts = parts.join("; ");
    cx.ui.say(format_args!(
        "{parts}; {} of outputs in {time}",
        ui::size(size)
    ));
}

fn pushes(outcomes: &[Outcome]) -> Vec<String> {
    let mut stores: BTreeMap<&str, (usize, u64, usize)> = BTreeMap::new();
    for pushed in outcomes.iter().flat_map(|outcome| &outcome.pushed) {
        let sum = stores.entry(&pushed.store).or_default();
        sum.0 += pushed.copied.len();
        sum.1 += pushed.written;
        sum.2 += pushed.present.len();
    }
    let lines = stores
        .into_iter()
        .map(|(store, (copied, written, there))| match copied {
            0 => format!("pushed nothing to {store}, {} were there", ui::paths(there)),
            copied => {
                let (paths, written) = (ui::paths(copied), ui::size(written));
                format!("pushed {paths} ({written} written) to {store}")
            }
        });
    lines.collect()
}

/// What would have to be built and fetched, from `preferred` caches before anything else.
pub async fn missing(
    cx: &CommandContext,
    ready: &Ready,
    targets: &[Target],
    preferred: Option<&Preferred>,
    as_json: bool,
) -> Result<ExitStatus> {
    let store = ready.builder.store();
    let dir = store.store.dir();
    let builder = store.build.as_ref().context("the store cannot build")?;
    let paths: Vec<_> = targets.iter().map(|target| target.path.clone()).collect();
    let mut missing = builder.missing(&paths).await?;
    if let Some(preferred) = preferred {
        let fetched = preferred.fetchable(ready, &paths).await?;
        missing.build.retain(|drv| fetched.build.contains(drv));
        missing
            .unknown
            .retain(|path| !fetched.paths.contains_key(path));
        // What the store would fetch by itself is for what is left to be built.
        if missing.build.is_empty() && missing.unknown.is_empty() {
            missing.substitute.clear();
            (missing.download_size, missing.nar_size) = (0, 0);
        }
        for (path, size) in fetched.paths {
            if missing.substitute.insert(path) {
                missing.nar_size += size;
            }
        }
    }
    let list = |paths: &BTreeSet<StorePath>| -> Vec<String> {
        paths.iter().map(|path| dir.path(path)).collect()
    };
    let kinds = [
        ("would be built", "willBuild", &missing.build),
        ("would be fetched", "willSubstitute", &missing.substitute),
        ("cannot be had", "unknown", &missing.unknown),
    ];
    if as_json {
        let mut value =
            json!({ "downloadSize": missing.download_size, "narSize": missing.nar_size });
        for (_, key, paths) in kinds {
            value[key] = json!(list(paths));
        }
        ui::out(value)?;
    } else {
        for (words, _, paths) in kinds.iter().filter(|(.., paths)| !paths.is_empty()) {
            let count = ui::paths(paths.len());
            cx.ui.say(format_args!("{count} {words}:"));
            for path in list(paths) {
                ui::out(path)?;
            }
        }
        if missing.download_size > 0 {
            let (download, unpacked) =
                (ui::size(missing.download_size), ui::size(missing.nar_size));
            cx.ui
                .say(format_args!("{download} to download, {unpacked} unpacked"));
        }
    }
    Ok(if missing.unknown.is_empty() {
        ExitStatus::Yes
    } else {
        ExitStatus::No
    })
}
