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

    /// Its flake.lock, or the devenv.lock of a project that is no flake; `None` if there is neither, but a
    /// flake.nix.
    fn lock(&self) -> Result<Option<FlakeLock>> {
        if let Some(lock) = self.lock_named("flake.lock")? {
            return Ok(Some(lock));
        }
        let flake = self.file("flake.nix");
        let is_there = flake
            .try_exists()
            .with_context(|| format!("looking for {}", flake.display()))?;
        if is_there {
            return Ok(None);
        }
        let lock = self.lock_named("devenv.lock")?;
        anyhow::ensure!(
            lock.is_some(),
            "{} is no flake: it has neither flake.nix nor flake.lock",
            self.folder.display()
        );
        Ok(lock)
    }

    fn lock_named(&self, name: &str) -> Result<Option<FlakeLock>> {
        let file = self.file(name);
        let name = file.display().to_string();
        let text = tk_project::read_bounded(&file, tk_project::lock::MAX_LOCK_BYTES)
            .with_context(|| format!("reading {name}"))?;
        let Some(text) = text else {
            return Ok(None);
        };
        Ok(Some(FlakeLock::parse(&name, &text)?))
    }
}
