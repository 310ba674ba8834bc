use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, open},
    paths::{AddArgs, add_file},
    ui,
};
use anyhow::{Result, bail};
use serde_json::json;
use std::path::PathBuf;
use tk_path::{Algorithm, Method};

/// Add files and folders to the store, and print their store paths
///
/// As nix store add: the path follows from the content and the name, so that the same content has
/// the same path everywhere.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Add {
    /// Files, folders or links
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    how: AddArgs,
    /// What is hashed: nar (the whole tree), flat or text (a file's bytes), git (a git object)
    #[arg(long, default_value = "nar", value_name = "MODE", alias = "method")]
    mode: Method,
    /// The hash: sha256, sha512, sha1, md5 or blake3
    #[arg(long, default_value = "sha256", value_name = "ALGO")]
    hash_algo: Algorithm,
    /// Say what path each file would get, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the paths with hash and size as JSON
    #[arg(long)]
    json: bool,
}

impl Add {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        if self.how.name.is_some() && self.files.len() > 1 {
            bail!(
                "--name names one path; {} files were given",
                self.files.len()
            );
        }
        let mut wish = OpenOptions::default();
        wish.write = !self.dry_run;
        let store = open(cx, &cx.store_uri(), &wish).await?;
        let dir = store.store().dir().clone();
        let mut report = Vec::new();
        for file in &self.files {
            let (name, how) = (self.how.name.as_deref(), (self.mode, self.hash_algo));
            let info = add_file(cx, &store, file, name, how, self.dry_run).await?;
            if self.json {
                report.push(json!({
                    "path": dir.path(&info.path),
                    "narHash": info.nar_hash.to_string(),
                    "narSize": info.nar_size,
                    "ca": info.ca.as_ref().map(ToString::to_string),
                }));
            } else {
                ui::out(dir.display(&info.path))?;
            }
        }
        if self.json {
            ui::out(serde_json::Value::from(report))?;
        }
        Ok(ExitStatus::Yes)
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store add ./some-folder
  tk-store add --mode flat --name source.tar.gz download.tar.gz";
