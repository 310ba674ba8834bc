mod convert;

use super::shell::{FindOptions, Format, WhatArgs, held, plain_text, shell_word, shells};
use crate::{CommandContext, ExitStatus, failure::tell_failure, ui};
use anyhow::Result;
use serde_json::{Value, json};
use similar::TextDiff;
use std::path::PathBuf;
use tk_nix::shell::{EnvironmentKind, FoundEnvironment, Hook, ShellFormat, Shells};

/// The environments that `shell` and `run` keep: list, print, allow, collect, convert
#[derive(clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum Env {
    List(List),
    Gc(Gc),
    Allow(Allow),
    Export(Export),
    Convert(convert::Convert),
}

/// List the environments that are kept, and for whom
#[derive(clap::Args)]
#[command(after_help = "Example:\n  tk-store env list --json")]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// End leases that are over, and forget environments that nobody has a lease of
///
/// What nothing else keeps goes with the store's next collection of garbage. Evaluating does the
/// first part, too.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  tk-store env gc")]
pub struct Gc {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Let the code of an environment run that nobody names, as long as it is what it is now
///
/// That is its shellHook, the functions and variables that this mentions, and what shells run by
/// themselves: PROMPT_COMMAND, BASH_ENV, ENV, ZDOTDIR, prompts with code, functions by the name of a
/// command. Prints it: the first time all, later what is different from what was allowed before.
#[derive(clap::Args)]
#[command(after_help = ALLOW_EXAMPLES)]
pub struct Allow {
    #[command(flatten)]
    what: WhatArgs,
    /// Take the consent back
    #[arg(long)]
    revoke: bool,
    /// Print the code, and allow nothing
    #[arg(long, conflicts_with = "revoke")]
    show: bool,
    #[command(flatten)]
    find: FindOptions,
}

/// Print an environment as code for a shell, or as JSON
///
/// bash gets functions too, and the shellHook if it was allowed. Nobody gets what shells would run by
/// themselves and was not allowed (see env allow). direnv evaluates again when a file changes
/// that the environment depends on; zsh and fish get no variables with names that are their own.
#[derive(clap::Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct Export {
    #[command(flatten)]
    what: WhatArgs,
    /// For what
    #[arg(long, value_enum, default_value = "bash")]
    format: Format,
    #[command(flatten)]
    find: FindOptions,
}

impl Env {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let shells = || shells(cx);
        match self {
            Env::List(args) => args.run(&shells()?),
            Env::Gc(args) => args.run(cx, &shells()?),
            Env::Allow(args) => args.run(cx, &shells()?).await,
            Env::Export(args) => args.run(cx, &shells()?).await,
            Env::Convert(args) => args.run(cx),
        }
    }
}

impl List {
    fn run(self, shells: &Shells) -> Result<ExitStatus> {
        let all = shells.list()?;
        if self.json {
            let all = all.iter().map(|(entry, leases)| {
                json!({
                    "name": entry.name, "location": entry.location, "attribute": entry.attribute,
                    "nix": entry.nix, "made": entry.made, "storePaths": entry.paths,
                    "isThere": entry.is_there(), "leases": leases, "key": entry.key,
                })
            });
            ui::out(Value::from_iter(all))?;
            return Ok(ExitStatus::Yes);
        }
        for (entry, leases) in all {
            let there = entry.is_there();
            let owners: Vec<_> = leases.iter().map(|lease| lease.owner.to_string()).collect();
            let owners = if owners.is_empty() {
                "nobody".to_owned()
            } else {
                owners.join(", ")
            };
            let gone = if there { "" } else { " (gone)" };
            ui::out(format_args!(
                "{}{gone}  by {}, kept for {owners}",
                entry.name, entry.nix
            ))?;
        }
        Ok(ExitStatus::Yes)
    }
}

impl Gc {
    fn run(self, cx: &CommandContext, shells: &Shells) -> Result<ExitStatus> {
        let done = shells.collect()?;
        if self.json {
            ui::out(serde_json::to_string(&done)?)?
        } else {
            cx.ui.say(format_args!(
                "ended {} leases, forgot {} environments, kept {}",
                done.leases, done.environments, done.kept
            ))
        }
        Ok(ExitStatus::Yes)
    }
}

impl Allow {
    async fn run(self, cx: &CommandContext, shells: &Shells) -> Result<ExitStatus> {
        let found = match found(cx, shells, &self.find, &self.what).await? {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let entry = &found.entry;
        if self.revoke {
            let there = shells.revoke(entry)?;
            return Ok(if there {
                ExitStatus::Yes
            } else {
                ExitStatus::No
            });
        }
        let code = shells.startup_code(entry);
        if code.is_empty() {
            let what = self.what.spelled();
            cx.ui.say(format_args!(
                "{what} has no shellHook, nor other code that would run without being named"
            ));
            return Ok(ExitStatus::Yes);
        }
        let (now, before) = (code.text(), shells.allowed_before(entry));
        let changes = match before.filter(|before| *before != now) {
            None => now,
            Some(before) => changes(&before, &now),
        };
        ui::out(plain_text(&changes).trim_end())?;
        if !self.show {
            shells.allow(entry)?;
        }
        Ok(ExitStatus::Yes)
    }
}

/// All lines of both, with what is different marked.
pub(super) fn changes(before: &str, now: &str) -> String {
    let diff = TextDiff::from_lines(before, now);
    let mut unified = diff.unified_diff();
    let all = unified.context_radius(usize::MAX >> 2);
    all.header("allowed before", "now").to_string()
}

impl Export {
    async fn run(self, cx: &CommandContext, shells: &Shells) -> Result<ExitStatus> {
        let found = match found(cx, shells, &self.find, &self.what).await? {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let session = shells.session(&found.entry, None)?;
        let format = match self.format {
            Format::Json => {
                ui::out(serde_json::to_string(&session.describe())?)?;
                return Ok(ExitStatus::Yes);
            }
            Format::Bash => ShellFormat::Bash,
            Format::Zsh => ShellFormat::Zsh,
            Format::Fish => ShellFormat::Fish,
            Format::Direnv => ShellFormat::Direnv,
        };
        let startup = shells.startup_code(&found.entry);
        if session.hook() == Hook::Held && startup.has_more_than_hook() {
            cx.ui.warn(held(&self.what.spelled(), &startup));
        }
        let mut code = session.environment().export(format, session.hook());
        if let Format::Direnv = self.format {
            code.push_str(&watch_file(&watched(shells, &found)));
        }
        ui::out(code.trim_end())?;
        Ok(ExitStatus::Yes)
    }
}

/// What direnv is to look at before every prompt: the files of the environment, and whether its code may run.
pub(super) fn watched(shells: &Shells, found: &FoundEnvironment) -> Vec<PathBuf> {
    let mut files = found.files.clone();
    files.truncate(MOST_WATCHED);
    if !shells.startup_code(&found.entry).is_empty() {
        files.push(shells.consent_file(&found.entry));
    }
    files
}

/// `watch_file`, of direnv's own library: once, since it is a process each time.
pub(super) fn watch_file(files: &[PathBuf]) -> String {
    let files = files.iter();
    let words: Vec<_> = files
        .map(|file| shell_word(&file.to_string_lossy()))
        .collect();
    if words.is_empty() {
        String::new()
    } else {
        format!("watch_file {}\n", words.join(" "))
    }
}

pub(super) async fn found(
    cx: &CommandContext,
    shells: &Shells,
    find: &FindOptions,
    what: &WhatArgs,
) -> Result<Result<FoundEnvironment, ExitStatus>> {
    let installable = what.installable(cx)?;
    let found = find
        .found(cx, shells, EnvironmentKind::Shell(installable))
        .await?;
    Ok(found.map_err(|failure| tell_failure(cx, &what.spelled(), &failure)))
}

const ALLOW_EXAMPLES: &str = "\
Examples:
  tk-store env allow --show .#ci
  tk-store env allow .#ci
  tk-store env allow -f shell.nix --revoke";
const EXPORT_EXAMPLES: &str = "\
Examples:
  source <(tk-store env export)
  tk-store env export .#ci --format fish | source  # fish
  eval \"$(tk-store env export -f shell.nix --format zsh)\"  # zsh
  echo 'eval \"$(tk-store env export --format direnv)\"' >.envrc && direnv allow";
/// Files that direnv looks at before every prompt.
pub(super) const MOST_WATCHED: usize = 1000;
const EXAMPLES: &str = "\
Examples:
  tk-store env list
  tk-store env allow .#ci
  tk-store env allow -f shell.nix
  source <(tk-store env export)
  tk-store env export --format fish | source
  tk-store env gc && nix-collect-garbage";
