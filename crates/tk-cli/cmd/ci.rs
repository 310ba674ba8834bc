mod outputs;
mod run;

use crate::{CommandContext, ExitStatus, ui};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use similar::TextDiff;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tk_project::{
    ci::{CiCache, CiFileState, CiOptions, CiPlan, CiProject, CiService, PINNED_ACTIONS},
    write_whole,
};

/// CI files for a flake: make them, check them, run what they say here
#[derive(clap::Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum Ci {
    /// Print the file that has a service check and build the flake, and push to a cache
    ///
    /// Each system of the flake is a run of its own: it checks (nix flake check), builds the packages,
    /// and for pushes to the branch, with --to, pushes them. Pull requests get no secret (on GitLab, if the
    /// secrets are protected variables), and tokens may read only. Actions are named by the commit that their release was when it was looked up (see --pins).
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(Box<GenerateArgs>),
    /// Run the steps of the file here, in the same order, in a fresh clone
    ///
    /// Told is which file: the one that tk-store made. Exit status 1 if a step fails, as the service
    /// would say. What is not committed is not seen, as there.
    #[command(after_help = RUN_EXAMPLES)]
    Run(run::RunArgs),
}

/// What is to be made.
#[derive(clap::Args)]
pub struct GenerateArgs {
    /// Who runs it
    #[arg(value_enum, value_name = "SERVICE")]
    service: ServiceName,
    /// The folder of the flake
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    settings: CiSettings,
    #[command(flatten)]
    outputs: outputs::OutputsArgs,
    /// Write it where the service reads it; what somebody edited stays
    #[arg(long)]
    write: bool,
    /// With --write: replace a file that somebody edited, or wrote
    #[arg(long, requires = "write")]
    force: bool,
    /// Say whether the file is what would be written; exit status 1 if not
    #[arg(long, conflicts_with = "write")]
    check: bool,
    /// Print the actions by their commits, with where and when each was looked up
    #[arg(long)]
    pins: bool,
}

/// What no flake says of its CI; all of it stands in the first line of the file.
#[derive(Debug, Clone, clap::Args)]
pub struct CiSettings {
    /// The branch whose pushes count
    #[arg(long, default_value = "main")]
    branch: String,
    /// Run this system only (may be repeated) [default: all of the flake]
    #[arg(long, value_name = "SYSTEM")]
    system: Vec<String>,
    /// Run a system on machines with this label of the service (may be repeated)
    #[arg(long, value_name = "SYSTEM=LABEL", value_parser = pair)]
    runner: Vec<(String, String)>,
    /// Push what was built to this cache
    #[arg(long, value_name = "CACHE", requires = "tk_store_flake")]
    to: Option<String>,
    /// The flake from which CI takes tk-store, to push
    #[arg(long = "tk-store", id = "tk_store_flake", value_name = "FLAKE")]
    tk_store: Option<String>,
    /// A secret of the service that the push gets as a variable (may be repeated) [default:
    /// TK_SIGN_KEY]
    #[arg(long, value_name = "NAME")]
    secret: Vec<String>,
    /// GitLab: the image to run in, NAME@sha256:DIGEST
    #[arg(long)]
    image: Option<String>,
    /// Another job, on x86_64-linux if that is run, else the first system (may be repeated)
    #[arg(long, value_name = "NAME=COMMAND", value_parser = pair)]
    job: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ServiceName {
    Github,
    Gitlab,
    Forgejo,
}

impl From<ServiceName> for CiService {
    fn from(name: ServiceName) -> Self {
        match name {
            ServiceName::Github => CiService::GitHub,
            ServiceName::Gitlab => CiService::GitLab,
            ServiceName::Forgejo => CiService::Forgejo,
        }
    }
}

impl Ci {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            Ci::Generate(args) => args.run(cx).await,
            Ci::Run(args) => args.run(cx).await,
        }
    }
}

impl GenerateArgs {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        if self.pins {
            for pin in PINNED_ACTIONS {
                let (name, commit, version) = (pin.repository, pin.commit, pin.version);
                ui::out(format_args!(
                    "{name}@{commit}\t{version}\t{}\t{}",
                    pin.looked_up, pin.source
                ))?;
            }
            return Ok(ExitStatus::Yes);
        }
        let project = self.outputs.project(cx, &self.dir).await?;
        for name in &project.left_out {
            let name = crate::output::plain(name);
            cx.ui.warn(format_args!(
                "the package '{name}' is left out: its name is no plain word"
            ));
        }
        let (_, new) = self.made(&project)?;
        let place = self.dir.join(CiService::from(self.service).place());
        let old = match fs::read_to_string(&place) {
            Ok(old) => Some(old),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| place.display().to_string()),
        };
        let is_same = old.as_ref() == Some(&new);
        if self.check {
            if !is_same {
                ui::out(difference(old.as_deref().unwrap_or_default(), &new).trim_end())?;
                cx.ui.error(format_args!(
                    "{} is not what would be written now",
                    place.display()
                ));
            }
            return Ok(if is_same {
                ExitStatus::Yes
            } else {
                ExitStatus::No
            });
        }
        if !self.write {
            ui::out(new.trim_end())?;
            return Ok(ExitStatus::Yes);
        }
        match old.as_deref().map(CiFileState::of) {
            _ if is_same => {
                cx.ui.say(format_args!("{} is up to date", place.display()));
                return Ok(ExitStatus::Yes);
            }
            Some(CiFileState::Edited) if !self.force => {
                ui::out(difference(old.as_deref().unwrap_or_default(), &new).trim_end())?;
                bail!(
                    "{} was edited since it was made; see the difference, and replace it with --force",
                    place.display()
                )
            }
            Some(CiFileState::Foreign) if !self.force => bail!(
                "tk-store did not write {}; replace it with --force",
                place.display()
            ),
            _ => {}
        }
        let folder = place.parent().unwrap_or(&place);
        let made = fs::create_dir_all(folder).and_then(|()| write_whole(&place, &new));
        made.with_context(|| format!("writing {}", place.display()))?;
        cx.ui.say(format_args!("wrote {}", place.display()));
        let below = place_in_repository(&self.dir).ok().flatten();
        if below.is_some_and(|below| !below.is_empty()) {
            cx.ui.warn(format_args!(
                "no service reads {}: it is not below the root of the repository",
                place.display()
            ));
        }
        Ok(ExitStatus::Yes)
    }

    /// The plan for `project`, and the file.
    fn made(&self, project: &CiProject) -> Result<(CiPlan, String)> {
        let options = self.settings.options()?;
        let plan = CiPlan::new(project, &options)?;
        let service = CiService::from(self.service);
        let file = service.file(&plan, &options, &self.spelled())?;
        Ok((plan, file))
    }

    /// The command, with what stands in no flake.
    fn spelled(&self) -> String {
        let name = self.service.to_possible_value();
        let name = name.map_or_else(String::new, |value| value.get_name().to_owned());
        let settings = &self.settings;
        let mut words = vec!["tk-store".into(), "ci".into(), "generate".into(), name];
        let mut add = |flag: &str, value: &str| words.extend([flag.to_owned(), value.to_owned()]);
        if settings.branch != "main" {
            add("--branch", &settings.branch);
        }
        settings
            .system
            .iter()
            .for_each(|system| add("--system", system));
        let pairs = |pairs: &[(String, String)]| -> Vec<String> {
            let texts = pairs.iter().map(|(name, value)| format!("{name}={value}"));
            texts.collect()
        };
        pairs(&settings.runner)
            .iter()
            .for_each(|pair| add("--runner", pair));
        settings.to.iter().for_each(|to| add("--to", to));
        settings
            .tk_store
            .iter()
            .for_each(|flake| add("--tk-store", flake));
        settings
            .secret
            .iter()
            .for_each(|name| add("--secret", name));
        settings
            .image
            .iter()
            .for_each(|image| add("--image", image));
        pairs(&settings.job)
            .iter()
            .for_each(|pair| add("--job", pair));
        shell_words::join(words)
    }
}

impl CiSettings {
    fn options(&self) -> Result<CiOptions> {
        let mut options = CiOptions::default();
        options.branch = self.branch.clone();
        options.systems = self.system.clone();
        options.runners = self.runner.iter().cloned().collect();
        options.image = self.image.clone();
        options.jobs = self.job.clone();
        if let Some(uri) = &self.to {
            let Some(tk_store) = self.tk_store.clone() else {
                return Err(tk_project::ci::CiError::NoTkStore.into());
            };
            let mut secrets = self.secret.clone();
            if secrets.is_empty() {
                secrets.push("TK_SIGN_KEY".into());
            }
            let uri = uri.clone();
            options.cache = Some(CiCache {
                uri,
                tk_store,
                secrets,
            });
        }
        Ok(options)
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn difference(old: &str, new: &str) -> String {
    let diff = TextDiff::from_lines(old, new);
    diff.unified_diff().header("there", "new").to_string()
}

/// Where `dir` lies below the root of its git repository: empty for the root, `None` outside of one.
fn place_in_repository(dir: &Path) -> Result<Option<String>> {
    let mut git = Command::new("git");
    git.arg("-C").arg(dir).args(["rev-parse", "--show-prefix"]);
    let done = git.stdin(Stdio::null()).output().context("running git")?;
    let place = String::from_utf8_lossy(&done.stdout);
    Ok(done.status.success().then(|| place.trim().to_owned()))
}

const EXAMPLES: &str = "\
Examples:
  tk-store ci generate github --outputs outputs.json
  tk-store ci run --event push  # with nix";
const GENERATE_EXAMPLES: &str = "\
Examples:
  tk-store ci generate github --pins
  tk-store ci generate github --outputs outputs.json
  tk-store ci generate forgejo --outputs outputs.json --job 'docs=make docs' --write
  tk-store ci generate github --write --to s3://my-cache --tk-store github:OWNER/tk-store/COMMIT

outputs.json is what 'nix flake show --json' prints, or {\"packages\": {\"x86_64-linux\": [\"default\"]}, \
\"checks\": {…}};
without --outputs nix is asked.";
const RUN_EXAMPLES: &str = "\
Examples:
  tk-store ci run  # with nix: as for a pull request
  tk-store ci run --event push --json  # with nix";
