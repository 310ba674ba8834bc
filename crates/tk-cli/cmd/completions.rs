use crate::{Answer, Cli};
use anyhow::Result;
use clap::CommandFactory;
use std::{io, path::PathBuf};

/// Print completions for a shell
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  tk-store completions fish > ~/.config/fish/completions/tk-store.fish"
)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    /// Runs the command.
    pub fn run(self) -> Result<Answer> {
        clap_complete::generate(
            self.shell,
            &mut Cli::command(),
            "tk-store",
            &mut io::stdout(),
        );
        Ok(Answer::Yes)
    }
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
    pub fn run(self) -> Result<Answer> {
        clap_mangen::generate_to(Cli::command(), &self.folder)?;
        Ok(Answer::Yes)
    }
}
