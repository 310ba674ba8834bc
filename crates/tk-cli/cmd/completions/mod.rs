mod complete;

pub use complete::Complete;

use crate::{Cli, ExitStatus, output::stdout};
use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;
use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
};

/// Print completions for a shell
///
/// In bash, zsh and fish commands, options, their values, the substituters of nix.conf, and store paths
/// are completed. The code asks the program itself, so that it need not be made again for a new version.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    pub fn run(self) -> Result<ExitStatus> {
        let code = match self.shell {
            Shell::Bash => include_str!("tk-store.bash").to_owned(),
            Shell::Zsh => include_str!("_tk-store").to_owned(),
            Shell::Fish => include_str!("tk-store.fish").to_owned(),
            other => fixed(other),
        };
        let mut out = stdout();
        out.write_all(code.replace("@PROGRAM@", &program()).as_bytes())?;
        out.flush()?;
        Ok(ExitStatus::Yes)
    }
}

/// The commands and options, for shells that nobody has written more for.
fn fixed(shell: Shell) -> String {
    // It would panic if it could not write.
    let mut code = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tk-store", &mut code);
    String::from_utf8_lossy(&code).into_owned()
}

/// What the shell runs to find out: where this program is, unless the shell finds it by its name.
fn program() -> String {
    let called = env::args_os().next().map(PathBuf::from);
    let named = called.filter(|called| called.components().count() > 1);
    let place = named.and_then(|called| std::path::absolute(called).ok());
    let place = place.unwrap_or_else(|| Path::new("tk-store").to_owned());
    shell_words::quote(&place.to_string_lossy()).into_owned()
}

/// Write manual pages, one a command, into a folder
#[derive(clap::Args)]
#[command(after_help = "Example:\n  tk-store man ~/.local/share/man/man1")]
pub struct Man {
    /// The folder; it must exist
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Man {
    /// Runs the command.
    pub fn run(self) -> Result<ExitStatus> {
        clap_mangen::generate_to(Cli::command(), &self.folder)?;
        Ok(ExitStatus::Yes)
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store completions bash > ~/.local/share/bash-completion/completions/tk-store
  tk-store completions zsh > ~/.local/share/zsh/site-functions/_tk-store
  tk-store completions fish > ~/.config/fish/completions/tk-store.fish";
