use super::{CiError, CiOptions, CiProject};
use std::collections::{BTreeMap, BTreeSet};

/// What CI does, whichever service does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CiPlan {
    /// The branch whose pushes count.
    pub branch: String,
    /// What each system runs: the same steps, with its own values of the variables.
    pub nix: CiJob,
    /// The systems, each with the variables of its run.
    pub systems: BTreeMap<String, BTreeMap<String, String>>,
    /// Further jobs, which run on the main system alone.
    pub jobs: Vec<CiJob>,
}

/// Steps that are run one after the other, until one fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CiJob {
    /// Its name in the file.
    pub name: String,
    /// What it runs.
    pub steps: Vec<CiStep>,
}

/// One step of a job: a script that bash runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CiStep {
    /// What it does, for people.
    pub name: String,
    /// Code for bash, which is run with `-eo pipefail`.
    pub script: String,
    /// Names of variables that it takes of its system.
    pub variables: Vec<String>,
    /// Names of variables that are secrets.
    pub secrets: Vec<String>,
    /// When it runs.
    pub trigger: CiTrigger,
}

/// When a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CiTrigger {
    /// For pull requests, too.
    Always,
    /// For pushes to the branch alone.
    Push,
}

impl CiPlan {
    /// What is to be done for `project`.
    ///
    /// # Errors
    /// [`CiError::Nothing`], [`CiError::Text`] for options that cannot be written safely.
    pub fn new(project: &CiProject, options: &CiOptions) -> Result<CiPlan, CiError> {
        options.check()?;
        let wanted = |system: &&str| {
            options.systems.is_empty() || options.systems.iter().any(|own| own == system)
        };
        let systems = project.systems().into_iter().filter(wanted);
        let systems: BTreeMap<_, _> = systems
            .map(|system| {
                let packages = project.packages.get(system).into_iter().flatten();
                let build = packages.map(|name| format!(".#packages.{system}.{name}"));
                let build = build.collect::<Vec<_>>().join(" ");
                (system.to_owned(), [(BUILD.to_owned(), build)].into())
            })
            .collect();
        if systems.is_empty() {
            return Err(CiError::Nothing);
        }
        let jobs = options.jobs.iter().map(|(name, script)| CiJob {
            name: name.clone(),
            steps: vec![step("Run", script.clone())],
        });
        Ok(CiPlan {
            branch: options.branch.clone(),
            nix: CiJob {
                name: "nix".into(),
                steps: nix_steps(project, options),
            },
            systems,
            jobs: jobs.collect(),
        })
    }

    /// The system on which further jobs run: the most common one, if it is among them, else the first.
    pub fn main_system(&self) -> &str {
        let first = || self.systems.keys().next().map(String::as_str);
        let common = self.systems.contains_key(COMMON).then_some(COMMON);
        common.or_else(first).unwrap_or(COMMON)
    }

    /// Names of the secrets of other steps. A service hands `step` its own only: who runs it elsewhere takes these
    /// out of its variables, or what a pull request runs could read them.
    pub fn secrets_kept_from(&self, step: &CiStep) -> BTreeSet<&str> {
        let jobs = [&self.nix].into_iter().chain(&self.jobs);
        let all = jobs.flat_map(|job| &job.steps);
        let names = all.flat_map(|step| &step.secrets);
        let others = names.filter(|name| !step.secrets.contains(name));
        others.map(String::as_str).collect()
    }
}

fn nix_steps(project: &CiProject, options: &CiOptions) -> Vec<CiStep> {
    let mut steps = vec![step("Check", CHECK.to_owned())];
    if project.packages.is_empty() {
        return steps;
    }
    let mut build = step("Build", BUILD_SCRIPT.to_owned());
    build.variables.push(BUILD.to_owned());
    steps.push(build);
    if let Some(cache) = &options.cache {
        // A system without packages has no result.
        let script = format!(
            "if [ -e {RESULTS}/result ]; then\n  nix shell '{}' --command tk-store push {RESULTS}/result* \
             --to '{}'\nfi",
            cache.tk_store, cache.uri
        );
        steps.push(CiStep {
            secrets: cache.secrets.clone(),
            trigger: CiTrigger::Push,
            ..step("Push", script)
        });
    }
    steps
}

fn step(name: &str, script: String) -> CiStep {
    CiStep {
        name: name.to_owned(),
        script,
        variables: Vec::new(),
        secrets: Vec::new(),
        trigger: CiTrigger::Always,
    }
}

/// Where most machines are.
const COMMON: &str = "x86_64-linux";
/// The variable with the packages of a system.
const BUILD: &str = "BUILD";
/// A lock that would have to change fails: what is built is what is pinned.
const CHECK: &str = "nix flake check --no-update-lock-file --print-build-logs";
/// The variable is a list of words, and may be empty.
const BUILD_SCRIPT: &str = "if [ -n \"$BUILD\" ]; then\n  mkdir -p ./.tk-store-results\n  \
     # shellcheck disable=SC2086\n  nix build --out-link ./.tk-store-results/result \
     --no-update-lock-file --print-build-logs $BUILD\nfi";
/// Where the links to what was built are: what the repository has beside it, such as `results`, is not pushed.
const RESULTS: &str = "./.tk-store-results";
