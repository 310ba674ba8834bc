mod download;
mod init;
mod inputs;
mod lock;
mod verify;

use crate::{CommandContext, ExitStatus};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use tk_project::FlakeLock;

/// Make flakes, lock and verify their inputs, without nix
#[derive(clap::Subcommand)]
pub enum Flake {
    Init(init::FlakeInit),
    Lock(lock::FlakeLockCommand),
    Update(lock::FlakeUpdate),
    Verify(verify::FlakeVerify),
    Inputs(inputs::FlakeInputs),
}

impl Flake {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            Flake::Lock(args) => args.run(cx).await,
            Flake::Update(args) => args.run(cx).await,
            Flake::Verify(args) => args.run(cx).await,
            Flake::Init(args) => args.run(cx),
            Flake::Inputs(args) => args.run(cx),
        }
    }
}

/// The folder with the flake.
#[derive(Debug, clap::Args)]
struct FlakeFolder {
    /// The folder with flake.nix
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

impl FlakeFolder {
    /// The file `name` in it.
    fn file(&self, name: &str) -> PathBuf {
        if self.folder == Path::new(".") {
            return name.into();
        }
        self.folder.join(name)
    }

    /// Its flake.lock; `None` if there is none, but a flake.nix.
    fn lock(&self) -> Result<Option<FlakeLock>> {
        let file = self.file("flake.lock");
        let name = file.display().to_string();
        let Some(text) = tk_project::read_bounded(&file, tk_project::lock::MAX_LOCK_BYTES)
            .with_context(|| format!("reading {name}"))?
        else {
            let flake = self.file("flake.nix");
            let is_there = flake
                .try_exists()
                .with_context(|| format!("looking for {}", flake.display()))?;
            anyhow::ensure!(
                is_there,
                "{} is no flake: it has neither flake.nix nor flake.lock",
                self.folder.display()
            );
            return Ok(None);
        };
        Ok(Some(FlakeLock::parse(&name, &text)?))
    }
}
