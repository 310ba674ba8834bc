use super::{FlakeFolder, download::HttpClientDownload};
use crate::{CommandContext, ExitStatus, ui};
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use tk_project::{
    FlakeLock, InputPath,
    fetch::{AccessTokens, FetchOptions},
    lock::{LockUpdates, SolvedLock, solve_lock},
};

/// Make flake.lock what flake.nix asks for, without nix
///
/// Inputs that are locked as flake.nix asks for them stay as they are. Locked are folders, repositories of git and
/// tarballs of this machine, tarballs and files of servers, and github, gitlab and sourcehut, with the access-tokens of
/// nix.conf. The file is, byte for byte, that of Nix 2.34.
#[derive(clap::Args)]
#[command(after_help = LOCK_EXAMPLES)]
pub struct FlakeLockCommand {
    #[command(flatten)]
    folder: FlakeFolder,
    /// Print the lock instead of writing it
    #[arg(long)]
    json: bool,
}

/// Look inputs up anew, all or those that are named, and write flake.lock
#[derive(clap::Args)]
#[command(after_help = UPDATE_EXAMPLES)]
pub struct FlakeUpdate {
    /// Inputs, an input of an input as a/nixpkgs [default: all]
    #[arg(value_name = "INPUT")]
    inputs: Vec<String>,
    /// The folder with flake.nix
    #[arg(long = "flake", value_name = "DIR", default_value = ".")]
    folder: std::path::PathBuf,
    /// Print the lock instead of writing it
    #[arg(long)]
    json: bool,
}

impl FlakeLockCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        lock(cx, self.folder, LockUpdates::Needed, target(self.json)).await
    }
}

impl FlakeUpdate {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let folder = FlakeFolder {
            folder: self.folder,
        };
        let mut inputs = BTreeSet::new();
        for input in &self.inputs {
            inputs.insert(InputPath::parse(input).map_err(anyhow::Error::msg)?);
        }
        let updates = if inputs.is_empty() {
            LockUpdates::All
        } else {
            LockUpdates::Inputs(inputs)
        };
        lock(cx, folder, updates, target(self.json)).await
    }
}

/// Where the lock goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LockTarget {
    File,
    Stdout,
}

fn target(json: bool) -> LockTarget {
    if json {
        LockTarget::Stdout
    } else {
        LockTarget::File
    }
}

async fn lock(
    cx: &CommandContext,
    folder: FlakeFolder,
    updates: LockUpdates,
    target: LockTarget,
) -> Result<ExitStatus> {
    let old = folder.lock()?;
    let solved = solve(cx, &folder, old.clone(), updates).await?;
    for warning in &solved.warnings {
        cx.ui.warn(warning);
    }
    let file = folder.file("flake.lock");
    if target == LockTarget::Stdout {
        ui::out(solved.lock.to_text().trim_end())?;
    } else if solved.is_changed {
        tk_project::write_whole(&file, &solved.lock.to_text())
            .with_context(|| format!("writing {}", file.display()))?;
        tell_changes(cx, &old.unwrap_or_else(FlakeLock::empty), &solved.lock);
    } else {
        cx.ui.say(format_args!(
            "{} is what flake.nix asks for",
            file.display()
        ));
    }
    Ok(ExitStatus::Yes)
}

/// To fetch blocks, so that it has a thread of its own.
async fn solve(
    cx: &CommandContext,
    folder: &FlakeFolder,
    old: Option<FlakeLock>,
    updates: LockUpdates,
) -> Result<SolvedLock> {
    let place = folder.folder.canonicalize();
    let place = place.with_context(|| format!("looking for {}", folder.folder.display()))?;
    let scratch = std::env::temp_dir();
    let http = HttpClientDownload::new(cx, scratch.clone())?;
    let tokens = cx
        .settings
        .nix_conf
        .get("access-tokens")
        .unwrap_or_default();
    let tokens = AccessTokens::parse(tokens);
    let solved = tokio::task::spawn_blocking(move || {
        let mut options = FetchOptions::default();
        options.scratch = scratch;
        options.http = Some(&http);
        options.tokens = tokens;
        solve_lock(&place, old.as_ref(), updates, &options)
    });
    Ok(solved.await??)
}

/// Says which inputs are others now.
fn tell_changes(cx: &CommandContext, before: &FlakeLock, after: &FlakeLock) {
    let (before, after) = (shown(before), shown(after));
    let mut names: BTreeSet<_> = before.iter().map(|(name, _)| name).collect();
    names.extend(after.iter().map(|(name, _)| name));
    for name in names {
        let find = |all: &[(String, String)]| {
            let found = all.iter().find(|(other, _)| other == name);
            found.map(|(_, what)| what.clone())
        };
        match (find(&before), find(&after)) {
            (None, Some(new)) => cx.ui.say(format_args!("added {name}: {new}")),
            (Some(_), None) => cx.ui.say(format_args!("removed {name}")),
            (Some(old), Some(new)) if old != new => {
                cx.ui.say(format_args!("updated {name}: {old} → {new}"));
            }
            _ => (),
        }
    }
}

/// What each input is.
fn shown(lock: &FlakeLock) -> Vec<(String, String)> {
    let inputs = lock.graph().inputs.into_iter().map(|input| {
        let what = match (input.edge, input.pin) {
            (_, Some(pin)) => {
                let hash = pin.locked.text("narHash").unwrap_or_default();
                format!("{} {hash}", pin.locked.to_url())
            }
            (tk_project::LockEdge::Follows(path), None) => format!("follows {path}"),
            _ => String::new(),
        };
        (input.path.to_string(), what)
    });
    inputs.collect()
}

const LOCK_EXAMPLES: &str = "\
Examples:
  tk-store flake lock
  tk-store flake lock ./project --json";

const UPDATE_EXAMPLES: &str = "\
Examples:
  tk-store flake update
  tk-store flake update nixpkgs home-manager/nixpkgs --flake ./project";
