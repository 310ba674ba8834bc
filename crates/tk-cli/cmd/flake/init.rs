use super::FlakeFolder;
use crate::{CommandContext, ExitStatus, ui};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use similar::TextDiff;
use std::path::Path;
use tk_project::{
    detect::{ProjectNote, detect},
    flake_facts::{FlakeFact, FlakeFactKind, FlakeReason},
    flake_merge::{ExistingFlake, FlakeChange, FlakeLineReason, FlakePlan, plan_flake},
};

/// Make flake.nix for a project, with a reason for every line
///
/// Looks at Cargo.toml and Cargo.lock, rust-toolchain.toml, go.mod, package.json with its lock file,
/// pyproject.toml, CMakeLists.txt, meson.build, Makefile, .tool-versions, mise.toml and .python-version. Runs
/// nothing, and asks nobody. Prints what would change, and changes it with --write.
///
/// A flake.nix that this made and you changed keeps your changes: they are merged with those of the project,
/// and where both concern the same lines nothing is written. One that this did not make is replaced with
/// --force only. A hash that no file says is lib.fakeHash, with a comment that says how to get the right one.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct FlakeInit {
    #[command(flatten)]
    folder: FlakeFolder,
    /// Print each line of it with its reason: the file, the line and what stands there
    #[arg(long)]
    explain: bool,
    /// Write it
    #[arg(long)]
    write: bool,
    /// Replace whatever flake.nix is there
    #[arg(long)]
    force: bool,
    /// The nixpkgs to take [default: what the flake has, else a release]
    #[arg(long, value_name = "FLAKE")]
    nixpkgs: Option<String>,
    /// Print the text, the reasons, what is known and what to know as JSON
    #[arg(long)]
    json: bool,
}

impl FlakeInit {
    /// Runs the command.
    pub fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let file = self.folder.file(FILE);
        let found = detect(&self.folder.folder)?;
        let mut facts = found.facts;
        if let Some(flake) = &self.nixpkgs {
            facts.push(FlakeFact {
                what: FlakeFactKind::Nixpkgs(flake.clone()),
                because: FlakeReason::new("", "--nixpkgs", None),
            });
        }
        let there = read(&file)?;
        let existing = if self.force {
            ExistingFlake::Replace
        } else {
            ExistingFlake::Keep
        };
        let plan = plan_flake(there.as_deref(), facts, existing)
            .with_context(|| file.display().to_string())?;
        self.show(
            cx,
            &file,
            there.as_deref().unwrap_or_default(),
            &plan,
            &found.notes,
        )?;
        let changes = plan.change != FlakeChange::Same;
        if self.write && changes {
            // What somebody wrote in between is not lost.
            ensure!(
                read(&file)? == there,
                "{} has just been changed by somebody else",
                file.display()
            );
            tk_project::write_whole(&file, &plan.text)
                .with_context(|| format!("writing {}", file.display()))?;
        }
        if !self.json {
            self.tell(cx, &file, &plan);
        }
        Ok(ExitStatus::Yes)
    }

    fn show(
        &self,
        cx: &CommandContext,
        file: &Path,
        there: &str,
        plan: &FlakePlan,
        notes: &[ProjectNote],
    ) -> Result<()> {
        if self.json {
            ui::out(self.to_json(file, plan, notes))?;
            return Ok(());
        }
        for note in notes {
            cx.ui.say(note);
        }
        if self.explain {
            ui::out(explained(plan).trim_end())?;
        } else if plan.change != FlakeChange::Same {
            let name = file.display().to_string();
            let diff = TextDiff::from_lines(there, &plan.text);
            let mut diff = diff.unified_diff();
            ui::out(diff.header(&name, &name).to_string().trim_end())?;
        }
        Ok(())
    }

    /// What became of it, in words.
    fn tell(&self, cx: &CommandContext, file: &Path, plan: &FlakePlan) {
        let file = file.display();
        let kept = match plan.change {
            FlakeChange::Same => return cx.ui.say(format_args!("{file} is as it should be")),
            FlakeChange::Merged => ", with what was changed by hand",
            _ => "",
        };
        if !self.write {
            return cx
                .ui
                .say(format_args!("nothing is written: --write does it{kept}"));
        }
        cx.ui.say(format_args!("wrote {file}{kept}"));
        if plan.change == FlakeChange::New && self.folder.file(".git").exists() {
            cx.ui
                .say("nix sees only files that git knows: git add flake.nix");
        }
    }

    fn to_json(&self, file: &Path, plan: &FlakePlan, notes: &[ProjectNote]) -> Value {
        let lines = plan.text.lines().zip(&plan.lines).enumerate();
        let lines = lines.map(|(at, (text, why))| {
            let (origin, reasons) = match why {
                FlakeLineReason::Project(reasons) => ("project", reasons.as_slice()),
                FlakeLineReason::Every => ("every", &[][..]),
                FlakeLineReason::ByHand => ("hand", &[][..]),
            };
            json!({ "line": at + 1, "text": text, "origin": origin, "reasons": reasons })
        });
        let notes = notes
            .iter()
            .map(|note| json!({ "about": note.because, "text": note.text }));
        let facts = plan
            .facts
            .iter()
            .map(|fact| json!({ "what": fact.what, "reason": fact.because }));
        json!({
            "file": file,
            "change": change_word(plan.change),
            "written": self.write && plan.change != FlakeChange::Same,
            "text": plan.text,
            "lines": Value::from_iter(lines),
            "facts": Value::from_iter(facts),
            "notes": Value::from_iter(notes),
        })
    }
}

fn read(file: &Path) -> Result<Option<String>> {
    tk_project::read_bounded(file, LARGEST_FLAKE)
        .with_context(|| format!("reading {}", file.display()))
}

fn change_word(change: FlakeChange) -> &'static str {
    match change {
        FlakeChange::New => "new",
        FlakeChange::Same => "same",
        FlakeChange::Updated => "updated",
        FlakeChange::Merged => "merged",
        FlakeChange::Replaced => "replaced",
    }
}

/// The lines of the flake, each behind its number and before its reason.
fn explained(plan: &FlakePlan) -> String {
    let mut out = String::new();
    for (at, (text, why)) in plan.text.lines().zip(&plan.lines).enumerate() {
        let why = match why {
            // What it was made from is said above.
            FlakeLineReason::Project(_) if text.starts_with('#') => continue,
            FlakeLineReason::Project(reasons) => {
                let all: Vec<_> = reasons.iter().map(ToString::to_string).collect();
                all.join(", ")
            }
            FlakeLineReason::Every => String::new(),
            FlakeLineReason::ByHand => "written by hand".to_owned(),
        };
        let line = if why.is_empty() {
            format!("{:>4}  {text}", at + 1)
        } else {
            format!("{:>4}  {text:<COLUMN$}  <- {why}", at + 1)
        };
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

const FILE: &str = "flake.nix";
/// Bytes of the largest flake.nix that is read.
const LARGEST_FLAKE: u64 = 4 << 20;
/// Where the reasons stand.
const COLUMN: usize = 60;

const EXAMPLES: &str = "\
Examples:
  tk-store flake init some-project
  tk-store flake init some-project --explain
  tk-store flake init some-project --write
  tk-store flake init some-project --json";
