use super::shell::{FindOptions, Format, WhatArgs, shell_word, shells};
use crate::{Answer, Context, failure::tell_failure, ui};
use anyhow::Result;
use serde_json::{Value, json};
use tk_nix::shell::{Found, Owner, ShellFormat, Shells, What};

/// The environments that `shell` and `run` keep: list, print, allow, collect
#[derive(clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum Env {
    List(List),
    Gc(Gc),
    Allow(Allow),
    Export(Export),
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

/// Let the shellHook of an environment run, as long as its text is what it is now
///
/// Prints the text.
#[derive(clap::Args)]
#[command(after_help = ALLOW_EXAMPLES)]
pub struct Allow {
    #[command(flatten)]
    what: WhatArgs,
    /// Take the consent back
    #[arg(long)]
    revoke: bool,
    #[command(flatten)]
    find: FindOptions,
}

/// Print an environment as code for a shell, or as JSON
///
/// bash gets functions too, and the shellHook if it was allowed. direnv evaluates again when a file changes
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
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let shells = shells(cx)?;
        match self {
            Env::List(args) => args.run(&shells),
            Env::Gc(args) => args.run(cx, &shells),
            Env::Allow(args) => args.run(cx, &shells).await,
            Env::Export(args) => args.run(cx, &shells).await,
        }
    }
}

impl List {
    fn run(self, shells: &Shells) -> Result<Answer> {
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
            return Ok(Answer::Yes);
        }
        for (entry, leases) in all {
            let there = entry.is_there();
            let owners: Vec<_> = leases.iter().map(|lease| owner(&lease.owner)).collect();
            let owners = match owners.is_empty() {
                true => "nobody".to_owned(),
                false => owners.join(", "),
            };
            let gone = if there { "" } else { " (gone)" };
            ui::out(format_args!(
                "{}{gone}  by {}, kept for {owners}",
                entry.name, entry.nix
            ))?;
        }
        Ok(Answer::Yes)
    }
}

fn owner(owner: &Owner) -> String {
    match owner {
        Owner::Name(name) => name.clone(),
        Owner::Process { pid, .. } => format!("process {pid}"),
    }
}

impl Gc {
    fn run(self, cx: &Context, shells: &Shells) -> Result<Answer> {
        let done = shells.collect()?;
        match self.json {
            true => ui::out(serde_json::to_string(&done)?)?,
            false => cx.ui.say(format_args!(
                "ended {} leases, forgot {} environments, kept {}",
                done.leases, done.environments, done.kept
            )),
        }
        Ok(Answer::Yes)
    }
}

impl Allow {
    async fn run(self, cx: &Context, shells: &Shells) -> Result<Answer> {
        let found = match found(cx, shells, &self.find, &self.what).await? {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let entry = &found.entry;
        if self.revoke {
            let there = shells.revoke(entry)?;
            return Ok(if there { Answer::Yes } else { Answer::No });
        }
        match entry.environment.hook() {
            "" => cx
                .ui
                .say(format_args!("{} has no shellHook", self.what.spelled())),
            hook => {
                ui::out(hook)?;
                shells.allow(entry)?;
            }
        }
        Ok(Answer::Yes)
    }
}

impl Export {
    async fn run(self, cx: &Context, shells: &Shells) -> Result<Answer> {
        let found = match found(cx, shells, &self.find, &self.what).await? {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let session = shells.session(&found.entry, None)?;
        let format = match self.format {
            Format::Json => {
                ui::out(serde_json::to_string(&session.describe())?)?;
                return Ok(Answer::Yes);
            }
            Format::Bash => ShellFormat::Bash,
            Format::Zsh => ShellFormat::Zsh,
            Format::Fish => ShellFormat::Fish,
            Format::Direnv => ShellFormat::Direnv,
        };
        let allowed = shells.is_allowed(&found.entry)?;
        let mut code = session.environment().export(format, allowed);
        if let Format::Direnv = self.format {
            code.push_str(&watches(&found));
        }
        ui::out(code.trim_end())?;
        Ok(Answer::Yes)
    }
}

/// `watch_file`, of direnv's own library: once, since it is a process each time.
fn watches(found: &Found) -> String {
    let files = found.files.iter().take(MOST_WATCHED);
    let words: Vec<_> = files
        .map(|file| shell_word(&file.to_string_lossy()))
        .collect();
    match words.is_empty() {
        true => String::new(),
        false => format!("watch_file {}\n", words.join(" ")),
    }
}

async fn found(
    cx: &Context,
    shells: &Shells,
    find: &FindOptions,
    what: &WhatArgs,
) -> Result<Result<Found, Answer>> {
    let installable = what.installable(cx)?;
    let found = find.found(cx, shells, What::Shell(installable)).await?;
    Ok(found.map_err(|failure| tell_failure(cx, &what.spelled(), &failure)))
}

const ALLOW_EXAMPLES: &str = "\
Examples:
  tk-store env allow .#ci
  tk-store env allow -f shell.nix --revoke";
const EXPORT_EXAMPLES: &str = "\
Examples:
  source <(tk-store env export)
  tk-store env export .#ci --format fish | source  # fish
  eval \"$(tk-store env export -f shell.nix --format zsh)\"  # zsh
  echo 'eval \"$(tk-store env export --format direnv)\"' >.envrc && direnv allow";
/// Files that direnv looks at before every prompt.
const MOST_WATCHED: usize = 1000;
const EXAMPLES: &str = "\
Examples:
  tk-store env list
  tk-store env allow .#ci
  tk-store env allow -f shell.nix
  source <(tk-store env export)
  tk-store env export --format fish | source
  tk-store env gc && nix-collect-garbage";
