pub mod options;

use crate::{
    Answer, Context, failures,
    keys::{self, SignKeyArgs},
    open::{Wish, open},
    ui,
};
use anyhow::{Context as _, Result};
use options::{Beside, BesideArgs, Sources, UpstreamArgs, is_cache};
use serde_json::json;
use std::{collections::BTreeSet, num::NonZeroUsize, sync::Arc, time::Instant};
use tk_narinfo::{Compression, PathInfo};
use tk_path::{StoreDir, StorePath};
use tk_store::{
    SigCheck, Store,
    copy::{CopyOptions, CopyReport, Plan, Reach, Warning, plan},
};

/// Copy paths and all they refer to from one store to another
///
/// As nix copy. A store takes only paths that are signed by a trusted key, or that are
/// content-addressed; a binary cache takes what it is given. A daemon that does not trust you also
/// asks for signatures by keys that it trusts itself.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Copy {
    /// Store paths, links to them, or outputs of derivations: DRV^OUT
    #[arg(value_name = "STOREPATH", required_unless_present = "all")]
    paths: Vec<String>,
    /// The store that has the paths [default: --store]
    #[arg(long, value_name = "URI", required_unless_present = "to")]
    from: Option<String>,
    /// The store that gets them [default: --store]
    #[arg(long, value_name = "URI")]
    to: Option<String>,
    /// Copy every path of the source
    #[arg(long, conflicts_with = "paths")]
    all: bool,
    /// Copy only the paths given, not what they refer to
    #[arg(long, visible_alias = "no-recursive")]
    no_closure: bool,
    /// Take paths without a trusted signature
    #[arg(long)]
    no_check_sigs: bool,
    /// Trust the public key, name:base64 or a file (may be repeated) [default: nix.conf's]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    #[command(flatten)]
    sign: SignKeyArgs,
    /// Compression of a cache's new NARs [default: the URI's, or zstd]
    #[arg(long, value_name = "NAME")]
    compression: Option<Compression>,
    /// Level of the compression
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    level: Option<i32>,
    /// Write a listing (.ls) beside each new NAR of a cache
    #[arg(long)]
    listing: bool,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    beside: BesideArgs,
    /// Say what would be copied, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Paths worked on at once [default: one for each processor]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

impl Copy {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let start = Instant::now();
        let from = self.from.clone().unwrap_or_else(|| cx.store_uri());
        let to = self.to.clone().unwrap_or_else(|| cx.store_uri());
        let src = open(cx, &from, &Wish::default()).await?;
        let dst = open(cx, &to, &self.wish(src.is_far())).await?;
        let Sources { paths, outputs } = match self.all {
            false => Sources::find(&src, &self.paths).await?,
            true => Sources {
                paths: src.all_paths().await?,
                ..Sources::default()
            },
        };
        let check = match is_cache(&dst) || self.no_check_sigs {
            true => SigCheck::Skip,
            false => SigCheck::Require(Arc::new(keys::policy(cx, &self.trusted_key, 1)?)),
        };
        let options = CopyOptions {
            reach: if self.no_closure {
                Reach::Roots
            } else {
                Reach::Closure
            },
            check,
            sign: self.sign.keys()?,
            existing: self.beside.existing(),
            upstreams: self.upstream.open(cx, &dst).await?,
        };
        let failed = || format!("cannot copy from {} to {}", src.store(), dst.store());
        let roots = paths.iter().cloned().collect();
        let (from, to) = (src.store(), dst.store());
        let plan = plan(&*from, &*to, &roots, &options);
        let plan = cx.ui.asking(&ui::paths(roots.len()), plan).await;
        let plan = plan.with_context(failed)?;
        if self.dry_run {
            return tell_plan(cx, &plan, &*to, self.json);
        }
        let beside = Beside {
            args: &self.beside,
            outputs,
            check: options.check,
            sign: options.sign,
        };
        let report = beside.run(cx, "copy", plan, (&src, &dst)).await;
        let report = report.with_context(failed)?;
        tell_report(cx, "copied", &report, &paths, &*to, start, self.json)
    }

    fn wish(&self, from_afar: bool) -> Wish {
        Wish {
            from_afar,
            write: !self.dry_run,
            compression: self.compression,
            level: self.level,
            jobs: self.jobs,
            incomplete: self.no_closure,
            listing: self.listing,
            ..Wish::default()
        }
    }
}

/// Says what would be copied.
pub fn tell_plan(cx: &Context, plan: &Plan, dst: &dyn Store, json: bool) -> Result<Answer> {
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
            "warnings": lines(&plan.warnings),
        }))?;
    } else {
        for info in missing {
            ui::out(dst.dir().display(&info.path))?;
        }
    }
    for warning in &plan.warnings {
        cx.ui.warn(warning);
    }
    let left = aside(&plan.replaced, &plan.upstream);
    let (paths, size) = (ui::paths(missing.len()), ui::size(bytes));
    cx.ui
        .say(format_args!("would copy {paths} ({size}) to {dst}{left}"));
    Ok(Answer::Yes)
}

/// Says what was copied: the roots that are there now on stdout, the rest on stderr.
pub fn tell_report(
    cx: &Context,
    verb: &str,
    report: &CopyReport,
    roots: &[StorePath],
    dst: &dyn Store,
    start: Instant,
    json: bool,
) -> Result<Answer> {
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
            "warnings": lines(&report.warnings),
        }))?;
    } else {
        for root in roots.iter().filter(|root| !failed.contains(root)) {
            ui::out(dir.display(root))?;
        }
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
        "{verb} {paths} ({size}{written}) to {dst} in {time}; {there} were there already{left}"
    ));
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
    Ok(Answer::after(report.failed.iter().map(|(_, error)| error)))
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

const EXAMPLES: &str = "\
Examples:
  tk-store copy /nix/store/…-hello --to file:///srv/cache
  tk-store copy --all --from file:///srv/cache --to ~/my-store --trusted-key my.pub
  tk-store copy /nix/store/…-hello.drv^out --to s3://my-cache --logs
  tk-store copy /nix/store/…-hello --to https://cache.example --upstream https://cache.nixos.org
  tk-store copy /nix/store/…-hello --from https://cache.example --repair";
