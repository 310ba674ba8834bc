//! What became of a copy, for people and as JSON.

use crate::{CommandContext, ExitStatus, failures, ui};
use anyhow::Result;
use serde_json::json;
use std::{collections::BTreeSet, time::Instant};
use tk_narinfo::PathInfo;
use tk_path::{StoreDir, StorePath};
use tk_store::{
    Store,
    copy::{CopyReport, Plan, Warning},
};

/// Says what would be copied.
pub fn tell_plan(
    cx: &CommandContext,
    plan: &Plan,
    dst: &dyn Store,
    json: bool,
) -> Result<ExitStatus> {
    let missing = &plan.missing;
    let bytes = plan.nar_size();
    if json {
        let paths: Vec<_> = missing.iter().map(|info| entry(info, dst)).collect();
        ui::out(json!({
            "store": dst.to_string(),
            "wouldCopy": paths,
            "narSize": bytes,
            "upstream": list(dst.dir(), &plan.upstream),
            "wouldReplace": list(dst.dir(), &plan.replaced),
            "wouldSign": list(dst.dir(), plan.signatures.keys()),
            "warnings": lines(&plan.warnings),
        }))?;
    } else {
        ui::out_all(missing.iter().map(|info| dst.dir().display(&info.path)))?;
    }
    for warning in &plan.warnings {
        cx.ui.warn(warning);
    }
    let left = aside(&plan.replaced, &plan.upstream);
    let (paths, size) = (ui::paths(missing.len()), ui::size(bytes));
    cx.ui
        .say(format_args!("would copy {paths} ({size}) to {dst}{left}"));
    if !plan.signatures.is_empty() {
        let paths = ui::paths(plan.signatures.len());
        cx.ui
            .say(format_args!("would sign {paths} that are there already"));
    }
    Ok(ExitStatus::Yes)
}

/// Says what was copied: the roots that are there now on stdout, the rest on stderr.
pub fn tell_report(
    cx: &CommandContext,
    verb: &str,
    report: &CopyReport,
    roots: &[StorePath],
    dst: &dyn Store,
    start: Instant,
    json: bool,
) -> Result<ExitStatus> {
    let dir = dst.dir();
    let bytes: u64 = report.copied.iter().map(|info| info.nar_size).sum();
    let failed: BTreeSet<_> = report.failed.iter().map(|(path, _)| path).collect();
    if json {
        let path = |path: &StorePath| dir.path(path);
        let copied: Vec<_> = report.copied.iter().map(|info| entry(info, dst)).collect();
        let failures = report.failed.iter();
        let failures = failures.map(|(path, error)| failures::to_json(dir, path, error));
        ui::out(json!({
            "store": dst.to_string(),
            "roots": roots.iter().map(path).collect::<Vec<_>>(),
            "copied": copied,
            "present": report.present.iter().map(path).collect::<Vec<_>>(),
            "failed": failures.collect::<Vec<_>>(),
            "narSize": bytes,
            "written": report.written,
            "seconds": start.elapsed().as_secs_f64(),
            "replaced": list(dir, &report.replaced),
            "upstream": list(dir, &report.upstream),
            "realisations": report.realisations,
            "logs": list(dir, &report.logs),
            "signed": list(dir, &report.signed),
            "warnings": lines(&report.warnings),
        }))?;
    } else {
        let there = roots.iter().filter(|root| !failed.contains(root));
        ui::out_all(there.map(|root| dir.display(root)))?;
    }
    for warning in &report.warnings {
        cx.ui.warn(warning);
    }
    failures::tell(cx, report.failed.iter().map(|(path, error)| (path, error)));
    let (paths, there) = (ui::paths(report.copied.len()), report.present.len());
    let written = match report.written {
        0 => String::new(),
        written => format!(", {} written", ui::size(written)),
    };
    let (size, time) = (ui::size(bytes), ui::seconds(start.elapsed()));
    let left = aside(&report.replaced, &report.upstream);
    cx.ui.say(format_args!(
        "{verb} {paths} ({size}{written}) to {dst} in {time}; {there} {} there already{left}",
        ui::were(there)
    ));
    if !report.signed.is_empty() {
        let signed = report.signed.len();
        let (paths, were) = (ui::paths(signed), ui::were(signed));
        cx.ui
            .say(format_args!("signed {paths} that {were} there already"));
    }
    let (told, logs) = (report.realisations.len(), report.logs.len());
    if told + logs > 0 {
        cx.ui.say(format_args!(
            "{verb} {}, {}",
            ui::count(told, "realisation"),
            ui::count(logs, "build log")
        ));
    }
    if !report.failed.is_empty() {
        let paths = ui::paths(report.failed.len());
        cx.ui.error(format_args!(
            "{paths} could not be {verb}; the others are complete"
        ));
    }
    Ok(ExitStatus::after(
        report.failed.iter().map(|(_, error)| error),
    ))
}

/// What became of paths that were neither new nor left as they are.
fn aside(replaced: &BTreeSet<StorePath>, upstream: &BTreeSet<StorePath>) -> String {
    let mut text = String::new();
    for (paths, what) in [
        (replaced, "of them replaced"),
        (upstream, "left to an upstream cache"),
    ] {
        if !paths.is_empty() {
            text.push_str(&format!("; {} {what}", paths.len()));
        }
    }
    text
}

fn list<'a>(dir: &StoreDir, paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<String> {
    paths.into_iter().map(|path| dir.path(path)).collect()
}

fn lines(warnings: &[Warning]) -> Vec<String> {
    warnings.iter().map(Warning::to_string).collect()
}

fn entry(info: &PathInfo, store: &dyn Store) -> serde_json::Value {
    json!({
        "path": store.dir().path(&info.path),
        "narHash": info.nar_hash.to_string(),
        "narSize": info.nar_size,
    })
}
