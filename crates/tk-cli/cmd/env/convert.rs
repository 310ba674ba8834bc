use crate::{CommandContext, ExitStatus, ui};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use tk_project::dev_shell::{DevShellForm, ShellFiles, ShellLoss, read_shell, write_shell};

/// Say the dev shell of a project in the words of another tool
///
/// Reads one of flake.nix, shell.nix, devenv.nix with devenv.yaml, or .envrc, and prints what it is in another of
/// them. Nothing is evaluated: of Nix code the literal part is read. Whatever else there is, and whatever
/// the other form cannot carry, is told with its file and line.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Convert {
    /// The folder with the files
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// What to read
    #[arg(long, value_enum, value_name = "FORM")]
    from: ShellForm,
    /// What to make
    #[arg(long, value_enum, value_name = "FORM")]
    to: ShellForm,
    /// Write the files, beside those that were read
    #[arg(long)]
    write: bool,
    /// Replace files that are there
    #[arg(long, requires = "write")]
    force: bool,
    /// Print the files, and what was left out, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ShellForm {
    /// flake.nix
    Flake,
    /// shell.nix
    ShellNix,
    /// devenv.nix and devenv.yaml
    Devenv,
    /// .envrc
    Envrc,
}

impl ShellForm {
    fn form(self) -> DevShellForm {
        match self {
            ShellForm::Flake => DevShellForm::Flake,
            ShellForm::ShellNix => DevShellForm::ShellNix,
            ShellForm::Devenv => DevShellForm::Devenv,
            ShellForm::Envrc => DevShellForm::Envrc,
        }
    }
}

impl Convert {
    /// Runs the command.
    pub fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let (shell, mut lost) = read_shell(self.from.form(), &self.texts()?)?;
        let (files, left_out) = write_shell(self.to.form(), &shell)?;
        lost.extend(left_out);
        if self.write {
            self.write(&files)?;
        }
        if self.json {
            ui::out(to_json(&files, &lost, self.write))?;
            return Ok(ExitStatus::Yes);
        }
        for loss in &lost {
            cx.ui.warn(format_args!("left out: {loss}"));
        }
        for (name, text) in &files {
            if self.write {
                cx.ui
                    .say(format_args!("wrote {}", self.folder.join(name).display()));
                continue;
            }
            if files.len() > 1 {
                ui::out(format_args!("# {name}"))?;
            }
            ui::out(text.trim_end())?;
        }
        Ok(ExitStatus::Yes)
    }

    /// The texts of the files; the first must be there.
    fn texts(&self) -> Result<Vec<Option<String>>> {
        let names = self.from.form().files();
        let mut texts = Vec::new();
        for name in names {
            let file = self.folder.join(name);
            let text = tk_project::read_bounded(&file, LARGEST_FILE)
                .with_context(|| format!("reading {}", file.display()))?;
            texts.push(text);
        }
        ensure!(
            texts[0].is_some(),
            "{} is not there",
            self.folder.join(names[0]).display()
        );
        Ok(texts)
    }

    /// Writes the files, none if one is in the way.
    fn write(&self, files: &ShellFiles) -> Result<()> {
        for (name, _) in files {
            let file = self.folder.join(name);
            ensure!(
                self.force || file.symlink_metadata().is_err(),
                "{} is there: --force replaces it",
                file.display()
            );
        }
        for (name, text) in files {
            let file = self.folder.join(name);
            tk_project::write_whole(&file, text)
                .with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}

fn to_json(files: &ShellFiles, lost: &[ShellLoss], written: bool) -> Value {
    let files = files
        .iter()
        .map(|(name, text)| json!({ "name": name, "text": text }));
    let lost = lost
        .iter()
        .map(|loss| json!({ "file": loss.file, "line": loss.line, "what": loss.what }));
    json!({ "files": Value::from_iter(files), "lost": Value::from_iter(lost), "written": written })
}

/// Bytes of the largest file that is read.
const LARGEST_FILE: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  tk-store env convert --from devenv --to flake
  tk-store env convert some-project --from shell-nix --to devenv --write
  tk-store env convert --from flake --to envrc --json";
