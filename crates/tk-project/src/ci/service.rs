//! Plans in the words of each service.
//!
//! A file opens with two lines of comment: the command that made it, and the digest of the rest, by which an edit
//! is told from a file that nobody touched.

use super::{
    CiError, CiJob, CiOptions, CiPlan, CiStep, CiTrigger, PinnedAction,
    pins::{CHECKOUT, INSTALL_NIX},
    yaml::{YamlNode, map, text, texts},
};
use std::collections::BTreeMap;
use tk_path::{Algorithm, Encoding, Hasher};

/// Who runs the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CiService {
    /// GitHub Actions.
    GitHub,
    /// GitLab CI/CD.
    GitLab,
    /// Forgejo Actions.
    Forgejo,
}

/// What there is in the place of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CiFileState {
    /// Nobody touched it since it was made here.
    Made,
    /// It was made here, and changed since.
    Edited,
    /// Somebody else wrote it.
    Foreign,
}

impl CiFileState {
    /// Whether `file` was made here, and how it is now.
    pub fn of(file: &str) -> CiFileState {
        let mut parts = file.splitn(3, '\n');
        let head = (parts.next(), parts.next(), parts.next());
        let (Some(made), Some(digest), Some(rest)) = head else {
            return CiFileState::Foreign;
        };
        match (made.strip_prefix(MADE), digest.strip_prefix(DIGEST)) {
            (Some(_), Some(said)) if said == digest_of(made, rest) => CiFileState::Made,
            (Some(_), _) => CiFileState::Edited,
            (None, _) => CiFileState::Foreign,
        }
    }

    /// The command that made `file`.
    pub fn command_of(file: &str) -> Option<&str> {
        file.lines().next()?.strip_prefix(MADE)
    }
}

impl CiService {
    /// All of them.
    pub const ALL: [CiService; 3] = [CiService::GitHub, CiService::GitLab, CiService::Forgejo];

    /// Where its file lies, below the root of the repository.
    pub fn place(self) -> &'static str {
        match self {
            CiService::GitHub => ".github/workflows/nix.yml",
            CiService::GitLab => ".gitlab-ci.yml",
            CiService::Forgejo => ".forgejo/workflows/nix.yml",
        }
    }

    /// As it calls itself.
    pub fn name(self) -> &'static str {
        match self {
            CiService::GitHub => "GitHub",
            CiService::GitLab => "GitLab",
            CiService::Forgejo => "Forgejo",
        }
    }

    /// The file that has the service carry out `plan`. `command` is what made it, for its first line.
    ///
    /// # Errors
    /// [`CiError::NoRunner`], [`CiError::Text`] if `command` is more than a line, and for GitLab
    /// [`CiError::NoImage`].
    pub fn file(
        self,
        plan: &CiPlan,
        options: &CiOptions,
        command: &str,
    ) -> Result<String, CiError> {
        let runners = self.runners(plan, options)?;
        let body = match self {
            CiService::GitHub => github(plan, &runners),
            CiService::Forgejo => forgejo(plan, &runners),
            CiService::GitLab => gitlab(plan, &runners, options)?,
        };
        let body = body.print();
        if command.contains(char::is_control) {
            return Err(CiError::Text {
                what: "the command",
                text: command.escape_debug().to_string(),
                why: "does not fit into the first line of the file: put what has several lines into a script",
            });
        }
        let made = format!("{MADE}{command}");
        let digest = digest_of(&made, &body);
        Ok(format!("{made}\n{DIGEST}{digest}\n{body}"))
    }

    fn runners(
        self,
        plan: &CiPlan,
        options: &CiOptions,
    ) -> Result<BTreeMap<String, String>, CiError> {
        let label = |system: &String| {
            let known = || Some(self.known_runner(system)?.to_owned());
            let label = options.runners.get(system).cloned().or_else(known);
            let label = label.ok_or_else(|| CiError::NoRunner {
                service: self.name(),
                system: system.clone(),
            })?;
            Ok((system.clone(), label))
        };
        plan.systems.keys().map(label).collect()
    }

    /// The label of a machine that the service itself offers. A Forgejo has none of its own; `docker` is what the
    /// documentation of its runner has.
    fn known_runner(self, system: &str) -> Option<&'static str> {
        let table: &[(&str, &str)] = match self {
            CiService::GitHub => &[
                ("x86_64-linux", "ubuntu-24.04"),
                ("aarch64-linux", "ubuntu-24.04-arm"),
                ("aarch64-darwin", "macos-15"),
                ("x86_64-darwin", "macos-15-intel"),
            ],
            CiService::GitLab => &[
                ("x86_64-linux", "saas-linux-small-amd64"),
                ("aarch64-linux", "saas-linux-small-arm64"),
            ],
            CiService::Forgejo => &[("x86_64-linux", "docker")],
        };
        let found = table.iter().find(|(own, _)| *own == system);
        found.map(|(_, label)| *label)
    }
}

fn github(plan: &CiPlan, runners: &BTreeMap<String, String>) -> YamlNode {
    let group = "${{ github.workflow }}-${{ github.ref }}";
    let concurrency = map([
        ("group", text(group)),
        // A push that is checked is pushed to the cache, too.
        (
            "cancel-in-progress",
            text("${{ github.event_name == 'pull_request' }}"),
        ),
    ]);
    map([
        ("name", text("nix")),
        ("on", on(plan)),
        ("permissions", YamlNode::Empty),
        ("concurrency", concurrency),
        ("defaults", map([("run", map([("shell", text("bash"))]))])),
        (
            "jobs",
            jobs(plan, runners, |action| {
                format!("{}@{}", action.repository, action.commit)
            }),
        ),
    ])
}

/// Forgejo knows neither permissions nor defaults of its own for actions: they are named by whole URLs.
fn forgejo(plan: &CiPlan, runners: &BTreeMap<String, String>) -> YamlNode {
    let uses = |action: &PinnedAction| {
        format!("https://github.com/{}@{}", action.repository, action.commit)
    };
    map([
        ("name", text("nix")),
        ("on", on(plan)),
        ("permissions", YamlNode::Empty),
        ("defaults", map([("run", map([("shell", text("bash"))]))])),
        ("jobs", jobs(plan, runners, uses)),
    ])
}

fn on(plan: &CiPlan) -> YamlNode {
    map([
        ("push", map([("branches", texts([plan.branch.as_str()]))])),
        ("pull_request", YamlNode::Nothing),
    ])
}

fn jobs(
    plan: &CiPlan,
    runners: &BTreeMap<String, String>,
    uses: impl Fn(&PinnedAction) -> String + Copy,
) -> YamlNode {
    let include = plan.systems.iter().map(|(system, variables)| {
        let mut entries = vec![
            ("system".to_owned(), text(system)),
            ("runner".to_owned(), text(&runners[system])),
        ];
        let variables = variables.iter();
        entries.extend(variables.map(|(name, value)| (name.to_lowercase(), text(value))));
        YamlNode::Map(entries)
    });
    let matrix = map([("include", YamlNode::List(include.collect()))]);
    let strategy = map([("fail-fast", YamlNode::Bool(false)), ("matrix", matrix)]);
    let name = "nix (${{ matrix.system }})";
    let nix = job(
        &plan.nix,
        name,
        "${{ matrix.runner }}",
        Some(strategy),
        uses,
    );
    let mut all = vec![(plan.nix.name.clone(), nix)];
    let main = &runners[plan.main_system()];
    let more = plan.jobs.iter();
    all.extend(more.map(|one| (one.name.clone(), job(one, &one.name, main, None, uses))));
    YamlNode::Map(all)
}

fn job(
    job: &CiJob,
    name: &str,
    runner: &str,
    strategy: Option<YamlNode>,
    uses: impl Fn(&PinnedAction) -> String,
) -> YamlNode {
    let action = |name: &str, action: &PinnedAction| {
        let uses = YamlNode::Noted(uses(action), action.version.to_owned());
        vec![("name".to_owned(), text(name)), ("uses".to_owned(), uses)]
    };
    let mut checkout = action("Check out", &CHECKOUT);
    let with = map([("persist-credentials", YamlNode::Bool(false))]);
    checkout.push(("with".to_owned(), with));
    let mut steps = vec![
        YamlNode::Map(checkout),
        YamlNode::Map(action("Install Nix", &INSTALL_NIX)),
    ];
    steps.extend(job.steps.iter().map(step));
    let mut entries = vec![
        ("name", text(name)),
        ("runs-on", text(runner)),
        ("permissions", map([("contents", text("read"))])),
        ("timeout-minutes", YamlNode::Number(MINUTES)),
    ];
    entries.extend(strategy.map(|strategy| ("strategy", strategy)));
    entries.push(("steps", YamlNode::List(steps)));
    let entries = entries.into_iter();
    YamlNode::Map(
        entries
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}

fn step(step: &CiStep) -> YamlNode {
    let mut entries = vec![("name".to_owned(), text(&step.name))];
    if step.trigger == CiTrigger::Push {
        entries.push(("if".to_owned(), text("github.event_name == 'push'")));
    }
    let variables = step.variables.iter();
    let mut env: Vec<_> = variables
        .map(|name| {
            let value = format!("${{{{ matrix.{} }}}}", name.to_lowercase());
            (name.clone(), text(value))
        })
        .collect();
    let secrets = step.secrets.iter();
    env.extend(secrets.map(|name| (name.clone(), text(format!("${{{{ secrets.{name} }}}}")))));
    if !env.is_empty() {
        entries.push(("env".to_owned(), YamlNode::Map(env)));
    }
    entries.push(("run".to_owned(), text(&step.script)));
    YamlNode::Map(entries)
}

fn gitlab(
    plan: &CiPlan,
    runners: &BTreeMap<String, String>,
    options: &CiOptions,
) -> Result<YamlNode, CiError> {
    let image = options.image.as_deref().ok_or(CiError::NoImage)?;
    let of_branch = format!(
        "$CI_PIPELINE_SOURCE == \"push\" && $CI_COMMIT_BRANCH == \"{}\"",
        plan.branch
    );
    let rules = [
        of_branch.as_str(),
        "$CI_PIPELINE_SOURCE == \"merge_request_event\"",
    ];
    let rules = rules.map(|rule| map([("if", text(rule))])).into();
    let matrix = plan.systems.iter().map(|(system, variables)| {
        let mut entries = vec![
            ("SYSTEM".to_owned(), text(system)),
            ("RUNNER".to_owned(), text(&runners[system])),
        ];
        let variables = variables.iter();
        entries.extend(variables.map(|(name, value)| (name.clone(), text(value))));
        YamlNode::Map(entries)
    });
    let parallel = map([("matrix", YamlNode::List(matrix.collect()))]);
    let mut all = vec![
        (
            "workflow".to_owned(),
            map([("rules", YamlNode::List(rules))]),
        ),
        ("default".to_owned(), map([("image", text(image))])),
        (
            "variables".to_owned(),
            map([(
                "NIX_CONFIG",
                text("experimental-features = nix-command flakes"),
            )]),
        ),
    ];
    let nix = [
        ("parallel", parallel),
        ("tags", texts(["$RUNNER"])),
        ("script", script(&plan.nix, &plan.branch)),
    ];
    all.push((plan.nix.name.clone(), map(nix)));
    let main = &runners[plan.main_system()];
    for job in &plan.jobs {
        let entries = [
            ("tags", texts([main.as_str()])),
            ("script", script(job, &plan.branch)),
        ];
        all.push((job.name.clone(), map(entries)));
    }
    Ok(YamlNode::Map(all))
}

/// A secret of GitLab is a variable of each job; that it is "protected" keeps it from merge requests.
fn script(job: &CiJob, branch: &str) -> YamlNode {
    let lines = job.steps.iter().map(|step| match step.trigger {
        CiTrigger::Always => step.script.clone(),
        CiTrigger::Push => format!(
            "if [ \"$CI_PIPELINE_SOURCE\" = push ] && [ \"$CI_COMMIT_BRANCH\" = '{branch}' ]; then\n\
             {PROTECT}\n{}\nfi",
            step.script
        ),
    });
    YamlNode::List(lines.map(text).collect())
}

/// The SHA-256 of what is below the two lines, and of the command.
fn digest_of(made: &str, body: &str) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(made.as_bytes());
    hasher.update(b"\n");
    hasher.update(body.as_bytes());
    hasher.finish().digits(Encoding::Base16)
}

const MADE: &str = "# Made by: ";
const DIGEST: &str = "# Unedited: sha256 ";
/// The one thing that a file for GitLab cannot see to.
const PROTECT: &str = "# The secrets must be protected variables: merge requests get all others.";
/// A build that hangs is not paid for all day.
const MINUTES: u32 = 120;
