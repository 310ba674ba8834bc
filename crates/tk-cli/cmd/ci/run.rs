//! The steps of a file, here.

use super::{GenerateArgs, outputs::OutputsArgs, place_in_repository};
use crate::{CommandContext, ExitStatus, ui};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde_json::json;
use std::{
    collections::BTreeMap,
    env::consts,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;
use tk_project::ci::{CiFileState, CiJob, CiPlan, CiService, CiStep, CiTrigger};

/// What is to be run.
#[derive(clap::Args)]
pub struct RunArgs {
    /// The folder of the flake
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// What happened: a pull request has no secrets, and pushes nothing
    #[arg(long, value_enum, default_value = "pull-request")]
    event: CiEvent,
    #[command(flatten)]
    outputs: OutputsArgs,
    /// Print what became of each step as JSON; what steps print goes to stderr
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CiEvent {
    PullRequest,
    Push,
}

/// The words of the first line of a file, behind `tk-store ci generate`.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct MadeBy {
    #[command(flatten)]
    args: GenerateArgs,
}

/// What became of a step.
struct StepDone {
    job: String,
    name: String,
    status: i32,
}

impl RunArgs {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let (place, file) = self.file()?;
        let clone = self.clone_of(cx)?;
        let folder = clone.as_ref().map_or(self.dir.as_path(), TempDir::path);
        let made = made_by(&place, &file)?;
        let project = self.outputs.project(cx, folder).await?;
        let (plan, now) = made.made(&project)?;
        ensure!(
            now == file,
            "{} is not what the flake needs now, so that what it says is not known; make it anew (tk-store \
             ci generate … --write)",
            place.display()
        );
        let system = format!("{}-{}", consts::ARCH, os());
        let Some(variables) = plan.systems.get(&system) else {
            let all: Vec<_> = plan.systems.keys().map(String::as_str).collect();
            bail!(
                "{} runs {}, and this machine is {system}",
                place.display(),
                all.join(", ")
            );
        };
        let mut jobs = vec![&plan.nix];
        if plan.main_system() == system {
            jobs.extend(&plan.jobs);
        }
        for step in jobs.iter().flat_map(|job| &job.steps) {
            self.check_secrets(step)?;
        }
        let mut done = Vec::new();
        for job in jobs {
            self.run_job(cx, (&plan, job), variables, folder, &mut done)?;
        }
        if self.json {
            let steps = done.iter();
            let steps = steps
                .map(|step| json!({"job": step.job, "step": step.name, "exitCode": step.status}));
            ui::out(
                json!({ "file": place, "system": system, "steps": steps.collect::<Vec<_>>() }),
            )?;
        }
        Ok(if done.iter().all(|step| step.status == 0) {
            ExitStatus::Yes
        } else {
            ExitStatus::No
        })
    }

    /// The file that was made for this folder, with its text.
    fn file(&self) -> Result<(PathBuf, String)> {
        let mut found = Vec::new();
        for service in CiService::ALL {
            let place = self.dir.join(service.place());
            if let Ok(text) = fs::read_to_string(&place) {
                found.push((place, text));
            }
        }
        let made = found
            .iter()
            .position(|(_, text)| CiFileState::command_of(text).is_some());
        match (made, found.first()) {
            (Some(at), _) => Ok(found.swap_remove(at)),
            (None, Some((place, _))) => bail!(
                "tk-store did not write {}, and cannot tell what it does",
                place.display()
            ),
            (None, None) => bail!(
                "there is no CI file in {}; make one with tk-store ci generate",
                self.dir.display()
            ),
        }
    }

    /// What a service checks out: a clone of the commit. `None` where there is no repository.
    fn clone_of(&self, cx: &CommandContext) -> Result<Option<TempDir>> {
        if place_in_repository(&self.dir)?.as_deref() != Some("") {
            cx.ui.warn(format_args!(
                "{} is not the root of a git repository: steps run in it as it is",
                self.dir.display()
            ));
            return Ok(None);
        }
        let mut status = Command::new("git");
        status.arg("-C").arg(&self.dir);
        status.args(["status", "--porcelain"]).stdin(Stdio::null());
        if !status.output().context("running git")?.stdout.is_empty() {
            cx.ui.warn("what is not committed is not seen, as in CI");
        }
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let mut clone = Command::new("git");
        // A commit that no branch is at is no news here.
        clone.args([
            "-c",
            "advice.detachedHead=false",
            "-c",
            "init.defaultBranch=main",
        ]);
        clone.args(["clone", "--quiet", "--shared", "--"]);
        let done = clone.arg(&self.dir).arg(folder.path()).status();
        ensure!(
            done.context("running git")?.success(),
            "git does not clone {}",
            self.dir.display()
        );
        Ok(Some(folder))
    }

    /// Runs the steps of a job, until one fails.
    fn run_job(
        &self,
        cx: &CommandContext,
        (plan, job): (&CiPlan, &CiJob),
        variables: &BTreeMap<String, String>,
        folder: &Path,
        done: &mut Vec<StepDone>,
    ) -> Result<()> {
        for step in &job.steps {
            let (job, name) = (job.name.clone(), step.name.clone());
            if !self.runs(step) {
                cx.ui.say(format_args!("{job}: {name} is for pushes"));
                continue;
            }
            cx.ui.say(format_args!("{job}: {name}"));
            let status = self.run_step(plan, step, variables, folder)?;
            done.push(StepDone { job, name, status });
            if status != 0 {
                cx.ui
                    .error(format_args!("{} failed with {status}", step.name));
                return Ok(());
            }
        }
        Ok(())
    }

    fn runs(&self, step: &CiStep) -> bool {
        step.trigger == CiTrigger::Always || self.event == CiEvent::Push
    }

    /// Before anything is run: to build takes long, and then nothing could be pushed.
    fn check_secrets(&self, step: &CiStep) -> Result<()> {
        let mut secrets = step.secrets.iter();
        let missing = secrets.find(|name| std::env::var_os(name).is_none());
        match missing {
            Some(name) if self.runs(step) => bail!(
                "{} needs the secret {name}, which is no variable here",
                step.name
            ),
            _ => Ok(()),
        }
    }

    fn run_step(
        &self,
        plan: &CiPlan,
        step: &CiStep,
        variables: &BTreeMap<String, String>,
        folder: &Path,
    ) -> Result<i32> {
        // As GitHub runs bash.
        let mut bash = Command::new("bash");
        bash.args([
            "--noprofile",
            "--norc",
            "-eo",
            "pipefail",
            "-c",
            &step.script,
        ]);
        let own = variables.iter();
        bash.envs(own.filter(|(name, _)| step.variables.contains(name)));
        for name in plan.secrets_kept_from(step) {
            bash.env_remove(name);
        }
        bash.env("CI", "true")
            .current_dir(folder)
            .stdin(Stdio::null());
        if self.json {
            bash.stdout(std::io::stderr().as_fd().try_clone_to_owned()?);
        }
        let status = bash.status().context("running bash")?;
        use std::os::unix::process::ExitStatusExt;
        Ok(status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

/// How the file was made. One that was edited says something else by now.
fn made_by(place: &Path, file: &str) -> Result<GenerateArgs> {
    ensure!(
        CiFileState::of(file) == CiFileState::Made,
        "{} was edited since tk-store made it, so that what it says is not known; make it anew (tk-store ci \
         generate … --write --force)",
        place.display()
    );
    let line = CiFileState::command_of(file).unwrap_or_default();
    let words = shell_words::split(line).unwrap_or_default();
    let words = words.strip_prefix(&["tk-store", "ci", "generate"].map(str::to_owned));
    let words =
        words.with_context(|| format!("the first line of {} names no command", place.display()))?;
    let made = MadeBy::try_parse_from(words);
    let made = made.ok().with_context(|| {
        format!(
            "the first line of {} is of another version of tk-store",
            place.display()
        )
    })?;
    Ok(made.args)
}

fn os() -> &'static str {
    match consts::OS {
        "macos" => "darwin",
        os => os,
    }
}
