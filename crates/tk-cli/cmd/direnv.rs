mod watches;

use super::{
    env::{MOST_WATCHED, changes, found, watch_file, watched},
    shell::{FindOptions, WhatArgs, plain_text, shells},
};
use crate::{CommandContext, ExitStatus, output::tell_lines, ui};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use tk_nix::shell::{EnvironmentKind, Hook, ShellFormat, Shells, StartupCode};
use tk_open::Environment;

/// Enter environments by direnv, without waiting for nix
#[derive(clap::Subcommand)]
#[command(after_help = HOOK_EXAMPLES)]
pub enum Direnv {
    /// Print the library file for direnv: it gives 'use tk-store [REF]', and makes 'use flake' fast
    ///
    /// Once it is in ~/.config/direnv/lib, a .envrc with 'use flake' enters the environment that 'tk-store shell'
    /// keeps. nix runs only if a file changed that the environment depends on; direnv watches just
    /// these. A shellHook runs if it was allowed (tk-store env allow); when it changes, it is held back,
    /// and the change is shown. TMPDIR and its like stay those of the user.
    #[command(after_help = HOOK_EXAMPLES)]
    Hook,
    /// Print an environment as code for the library file
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(Box<DirenvExport>),
}

/// What is entered.
#[derive(clap::Args)]
pub struct DirenvExport {
    #[command(flatten)]
    what: WhatArgs,
    #[command(flatten)]
    find: FindOptions,
}

impl Direnv {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            Direnv::Hook => {
                ui::out(library()?.trim_end())?;
                Ok(ExitStatus::Yes)
            }
            Direnv::Export(args) => args.run(cx).await,
        }
    }
}

impl DirenvExport {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let shells = shells(cx)?;
        let found = match found(cx, &shells, &self.find, &self.what).await? {
            Ok(found) => found,
            Err(answer) => {
                // So that it is tried again once they are mended.
                let what = EnvironmentKind::Shell(self.what.installable(cx)?);
                let files = self.find.files(cx, &shells, what).await;
                let mut files = files.unwrap_or_default();
                files.truncate(MOST_WATCHED);
                ui::out(watch_code(cx, &files).trim_end())?;
                return Ok(answer);
            }
        };
        let session = shells.session(&found.entry, None)?;
        let hook = session.hook();
        if hook == Hook::Held {
            let what = self.what.spelled();
            let code = shells.startup_code(&found.entry);
            cx.ui.warn(super::shell::held(&what, &code));
            tell_change(&shells, &found.entry, &code);
        }
        // direnv keeps what is exported; functions are for a hook alone.
        let format = match hook {
            Hook::Allowed => ShellFormat::Bash,
            Hook::None | Hook::Held => ShellFormat::Direnv,
        };
        let code = session.environment().export(format, hook);
        let watch = watch_code(cx, &watched(&shells, &found));
        ui::out(format_args!("{watch}{}", code.trim_end()))?;
        Ok(ExitStatus::Yes)
    }
}

/// Code by which direnv watches `files`, without a process of its own if the form of its list is known.
fn watch_code(cx: &CommandContext, files: &[PathBuf]) -> String {
    let old = cx.settings.environment.text("DIRENV_WATCHES");
    match old.and_then(|old| watches::with_files(old, files)) {
        Some(new) => format!("export DIRENV_WATCHES={new}\n"),
        None => watch_file(files),
    }
}

/// Shows how code differs from what was allowed before, if something was.
fn tell_change(shells: &Shells, entry: &tk_nix::shell::EnvironmentEntry, code: &StartupCode) {
    let now = code.text();
    if let Some(before) = shells.allowed_before(entry).filter(|before| *before != now) {
        tell_lines(&plain_text(&changes(&before, &now)));
    }
}

/// The library file of this program.
fn library() -> Result<String> {
    let program = std::env::current_exe().context("finding this program")?;
    let program = program.to_string_lossy();
    Ok(LIBRARY.replace("@PROGRAM@", &shell_words::quote(&program)))
}

/// Where direnv reads the library file, if the user has a home.
pub fn library_file(environment: &Environment) -> Option<PathBuf> {
    let config = environment.path("XDG_CONFIG_HOME");
    let config = config.or_else(|| Some(environment.home.as_ref()?.join(".config")))?;
    Some(config.join("direnv/lib/tk-store.sh"))
}

/// Whether `text` is the library file of this version, wherever its program lies.
pub fn is_current(text: &str) -> bool {
    let mut theirs = text.trim_end().lines();
    let all = LIBRARY
        .trim_end()
        .lines()
        .all(|line| match line.split_once("@PROGRAM@") {
            None => theirs.next() == Some(line),
            Some((before, _)) => theirs.next().is_some_and(|own| own.starts_with(before)),
        });
    all && theirs.next().is_none()
}

const LIBRARY: &str = include_str!("direnv/library.sh");
const HOOK_EXAMPLES: &str = "\
Examples:
  mkdir -p ~/.config/direnv/lib && tk-store direnv hook >~/.config/direnv/lib/tk-store.sh
  echo 'use flake' >.envrc && direnv allow
  echo 'use tk-store .#ci' >.envrc && direnv allow";
const EXPORT_EXAMPLES: &str = "\
Example:
  eval \"$(tk-store direnv export .#ci)\"  # in a .envrc, without the library file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_current_wherever_the_program_lies() {
        let own = library().unwrap();
        assert!(is_current(&own));
        assert!(is_current(
            &LIBRARY.replace("@PROGRAM@", "/nix/store/x/bin/tk-store")
        ));
        assert!(!is_current(&own.replace("shift 3", "shift 2")));
        assert!(!is_current(&format!("{own}\nmore")));
        assert!(!is_current(""));
    }
}
