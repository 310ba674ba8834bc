mod caches;
mod round_trip;

use crate::{
    CommandContext, ExitStatus,
    open::{BuildArgs, OpenMachine, OpenOptions, RemoteArgs, open, slots},
    output::plain,
    ui,
};
use anyhow::Result;
use futures::future::{BoxFuture, FutureExt, join_all};
use rustix::fs::statvfs;
use serde_json::json;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tk_builders::probe;
use tk_nix::{Flavour, Nix, NixConfig};
use tk_open::{OpenStore, nix_conf::DEFAULT_SUBSTITUTER, without_password};
use tk_project::doctor::{
    DirenvLibrary, DoctorFinding, DoctorOutcome, DoctorReport, SpaceSeen, judge_direnv,
    judge_features, judge_nix, judge_sandbox, judge_space, judge_trust,
};
use tk_store::StoreDescription;
use tokio::{process::Command, time::timeout};

/// Look for what is wrong with this machine's Nix: the program, the store, caches, keys, builders, disk, clock
///
/// Each line is pass, warn, fail or unproven (nobody could tell), with what to do below it. All is
/// looked at side by side, and nothing is waited for longer than --timeout. Nothing is changed, but
/// for a cache that --to names: a small path is written there, read back and removed.
///
/// Exit status 0: nothing failed (warnings are no failure), 1: something did, 2: it could not look.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    /// Look at this cache, too, beside those of nix.conf (may be repeated)
    #[arg(long, value_name = "CACHE")]
    from: Vec<String>,
    /// Write a small path to this cache, read it back, and remove it
    #[arg(long, value_name = "CACHE")]
    to: Option<String>,
    /// The nix program that evaluates
    #[arg(long, value_name = "PROGRAM", env = "TK_NIX", default_value = "nix")]
    nix: PathBuf,
    /// How long to wait for any answer
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    timeout: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let patience = Duration::from_secs(self.timeout.max(1).into());
        let mut checks: Vec<BoxFuture<'_, Vec<DoctorFinding>>> = vec![
            nix(cx, &self.nix, patience).boxed(),
            store(cx, patience).boxed(),
        ];
        for cache in caches_of(cx, &self.from) {
            checks.push(async move { caches::examine(cx, &cache, patience).await }.boxed());
        }
        if let Some(to) = &self.to {
            checks.push(round_trip::try_writing(cx, to, patience).map(one).boxed());
        }
        checks.push(builders(cx, patience).boxed());
        checks.push(direnv(cx, patience).map(one).boxed());
        let report = DoctorReport {
            findings: join_all(checks).await.into_iter().flatten().collect(),
        };
        if self.json {
            ui::out(json!({ "sound": report.is_sound(), "findings": report.findings }))?;
        } else {
            for finding in &report.findings {
                tell(finding)?;
            }
        }
        let counts = [
            DoctorOutcome::Pass,
            DoctorOutcome::Warn,
            DoctorOutcome::Fail,
            DoctorOutcome::Unproven,
        ];
        let counts = counts.map(|outcome| format!("{} {outcome}", report.count(outcome)));
        cx.ui.say(counts.join(", "));
        Ok(if report.is_sound() {
            ExitStatus::Yes
        } else {
            ExitStatus::No
        })
    }
}

fn one(finding: DoctorFinding) -> Vec<DoctorFinding> {
    vec![finding]
}

fn tell(finding: &DoctorFinding) -> io::Result<()> {
    let (outcome, check) = (finding.outcome, finding.check);
    ui::out(format_args!(
        "{outcome:<9}{check:<12}{}",
        plain(&finding.message)
    ))?;
    let failed = finding.advice.iter();
    for advice in failed {
        ui::out(format_args!("{:21}→ {}", "", plain(advice)))?;
    }
    Ok(())
}

/// The caches of nix.conf, and `more`.
fn caches_of(cx: &CommandContext, more: &[String]) -> Vec<String> {
    let set = cx.settings.nix_conf.list("substituters");
    let set = set.unwrap_or_else(|| vec![DEFAULT_SUBSTITUTER]);
    let all = set.into_iter().map(str::to_owned);
    let mut all: Vec<_> = all.chain(more.iter().cloned()).collect();
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|uri| seen.insert(uri.trim_end_matches('/').to_owned()));
    all
}

/// The nix program, and what nix.conf switches on.
async fn nix(cx: &CommandContext, program: &Path, patience: Duration) -> Vec<DoctorFinding> {
    let mut config = NixConfig::default();
    config.program = program.to_owned();
    let conf = &cx.settings.nix_conf;
    let default = if cfg!(target_os = "linux") {
        "true"
    } else {
        "false"
    };
    let sandbox = |default| judge_sandbox(conf.get("sandbox"), default);
    let found = match timeout(patience, Nix::find(config)).await {
        Ok(found) => found.map_err(|failure| failure.message.clone()),
        Err(_) => Err(format!("{} does not answer", program.display())),
    };
    let nix = match found {
        Ok(nix) => nix,
        Err(why) => return vec![judge_nix(Err(&why)), sandbox(None)],
    };
    let version = nix.version();
    let numbers = match version.flavour {
        // It counts in its own way from 2.90 on, and is like 2.18.
        Flavour::Lix => (2, 18),
        _ => (version.major, version.minor),
    };
    let mut enabled = conf.list("experimental-features").unwrap_or_default();
    if version.flavour == Flavour::Determinate {
        enabled.extend(["nix-command", "flakes"]);
    }
    vec![
        judge_nix(Ok((&version.to_string(), numbers))),
        judge_features(&enabled),
        sandbox(Some(default)),
    ]
}

/// The store that commands work on: whether it answers, whom it trusts, and its disk.
async fn store(cx: &CommandContext, patience: Duration) -> Vec<DoctorFinding> {
    let uri = cx.store_uri();
    let name = &*without_password(&uri);
    let asking = async {
        let mut wish = OpenOptions::default();
        wish.refresh = true;
        let opened = open(cx, &uri, &wish).await?;
        let description = opened.describe().await?;
        anyhow::Ok((opened, description))
    };
    let advice =
        "start its daemon (systemctl start nix-daemon), or name another store with --store";
    let failed = |why: String| DoctorFinding::fail("store", why, advice).of(name);
    let (opened, description) = match timeout(patience, asking).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => {
            let mut findings = vec![failed(crate::output::line_of(&error))];
            findings.extend(space(&PathBuf::from(DEFAULT_STORE)));
            return findings;
        }
        Err(_) => return vec![failed(format!("the store {name} does not answer"))],
    };
    let mut findings = vec![DoctorFinding::pass("store", answers(&opened, &description))];
    if description.kind == "daemon" {
        findings.push(judge_trust(description.trusted));
    }
    findings.extend(opened.real_dir().and_then(space));
    findings
}

fn answers(opened: &OpenStore, description: &StoreDescription) -> String {
    let mut words = format!("{} answers ({}", opened.store(), description.kind);
    for (what, said) in [("Nix", &description.version), ("", &description.protocol)] {
        if let Some(said) = said {
            let space = if what.is_empty() { "" } else { " " };
            words += &format!(", {what}{space}{said}");
        }
    }
    words + ")"
}

/// The disk on which `folder` lies; nothing if it is not there.
fn space(folder: &Path) -> Option<DoctorFinding> {
    let seen = statvfs(folder).ok()?;
    let space = SpaceSeen {
        free_bytes: seen.f_bavail.saturating_mul(seen.f_frsize),
        free_inodes: seen.f_favail,
        inodes: seen.f_files,
    };
    Some(judge_space(&folder.display().to_string(), space))
}

/// The lines that name machines, and the machines.
async fn builders(cx: &CommandContext, patience: Duration) -> Vec<DoctorFinding> {
    let looked = async {
        let mut read = RemoteArgs::default().machines(cx)?;
        read.faults.append(&mut read.absent);
        let connect = OpenMachine::new(cx, &BuildArgs::default());
        let probes = probe(&read.all, &connect, &slots(cx)?, patience).await;
        anyhow::Ok((read.faults, probes))
    };
    let (faults, probes) = match looked.await {
        Ok(looked) => looked,
        Err(error) => {
            let line = crate::output::line_of(&error);
            return vec![DoctorFinding::unproven("builders", line)];
        }
    };
    if faults.is_empty() && probes.is_empty() {
        return vec![DoctorFinding::pass(
            "builders",
            "no machines are named, which is fine",
        )];
    }
    let mend = "mend the line in nix.conf or /etc/nix/machines (tk-store builders check)";
    let reach = "try 'ssh HOST nix-store --version' as the user who builds, or take it out of nix.conf's builders";
    let faults = faults
        .iter()
        .map(|fault| DoctorFinding::fail("builders", fault.to_string(), mend));
    let probes = probes.iter().map(|probe| {
        let machine = without_password(&probe.machine.uri.to_string()).into_owned();
        let finding = match &probe.answer {
            Ok(_) => DoctorFinding::pass("builders", format!("{machine} answers")),
            Err(error) => DoctorFinding::fail(
                "builders",
                format!("{machine} does not answer: {}", error.to_line()),
                reach,
            ),
        };
        finding.of(machine)
    });
    faults.chain(probes).collect()
}

/// direnv, and the library that it reads of ours.
async fn direnv(cx: &CommandContext, patience: Duration) -> DoctorFinding {
    let mut command = Command::new("direnv");
    command
        .arg("version")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let version = match timeout(patience, command.output()).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Ok(Err(error)) => Some(Err(error.to_string())),
        Ok(Ok(done)) if done.status.success() => {
            Some(Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned()))
        }
        Ok(Ok(done)) => Some(Err(format!("it ended with {}", done.status))),
        Err(_) => Some(Err("it does not answer".to_owned())),
    };
    let library = super::direnv::library_file(&cx.settings.environment);
    let library = match library.and_then(|file| fs::read_to_string(file).ok()) {
        None => DirenvLibrary::Absent,
        Some(text) if super::direnv::is_current(&text) => DirenvLibrary::Current,
        Some(_) => DirenvLibrary::Other,
    };
    let version = version
        .as_ref()
        .map(|v| v.as_deref().map_err(String::as_str));
    judge_direnv(version, library)
}

/// Where the disk is looked at if the store does not answer.
const DEFAULT_STORE: &str = "/nix/store";
const EXAMPLES: &str = "\
Examples:
  tk-store doctor
  tk-store doctor --from https://cache.example.org --timeout 3
  tk-store doctor --to s3://my-cache --json";
