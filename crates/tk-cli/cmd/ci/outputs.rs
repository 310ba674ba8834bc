//! What the flake has: told by a file, or by nix.

use crate::{CommandContext, build_log::LogPrinter};
use anyhow::{Context as _, Result};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};
use tk_nix::{EvalOptions, Installable, InstallableSource, Nix, NixConfig, or_cancelled};
use tk_project::ci::CiProject;

/// Where the outputs of the flake are told.
#[derive(Debug, Clone, clap::Args)]
pub struct OutputsArgs {
    /// Read the outputs of the flake here, as JSON; - is stdin [default: nix is asked]
    #[arg(long, value_name = "FILE")]
    outputs: Option<PathBuf>,
    /// The nix program that evaluates
    #[arg(long, value_name = "PROGRAM", env = "TK_NIX", default_value = "nix")]
    nix: PathBuf,
}

impl OutputsArgs {
    /// The outputs of the flake in `dir`.
    pub async fn project(&self, cx: &CommandContext, dir: &Path) -> Result<CiProject> {
        let value = match &self.outputs {
            Some(file) => {
                let text = read(file).with_context(|| format!("reading {}", file.display()))?;
                serde_json::from_str(&text)
                    .with_context(|| format!("{} is not JSON", file.display()))?
            }
            None => self.ask(cx, dir).await?,
        };
        Ok(CiProject::of_json(&value)?)
    }

    /// Names alone: to evaluate what they stand for would take long, and needs what no other system has.
    async fn ask(&self, cx: &CommandContext, dir: &Path) -> Result<serde_json::Value> {
        let dir = dir
            .canonicalize()
            .with_context(|| dir.display().to_string())?;
        let flake = dir.join("flake.nix");
        anyhow::ensure!(flake.is_file(), "there is no {}", flake.display());
        let text = dir.to_str().context("the name of the folder is no text")?;
        let code = NAMES.replace("@FLAKE@", &escaped(text));
        let what = Installable::attribute(InstallableSource::Expr(code), "")?;
        let mut config = NixConfig::default();
        config.program = self.nix.clone();
        let nix = Nix::find(config).await?;
        let mut options = EvalOptions::default();
        // A folder is no pinned place.
        options.impure = true;
        let log = LogPrinter::new(&cx.ui, true);
        let value = or_cancelled(&cx.cancel, nix.eval(&what, &options, &log)).await;
        log.clear();
        value.with_context(|| format!("asking nix for the outputs of {}", flake.display()))
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().take(MOST).read_to_string(&mut text)?;
    } else {
        File::open(file)?.take(MOST).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// `text` inside of quotes of the Nix language.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('$', "\\$")
}

const NAMES: &str = "let flake = builtins.getFlake \"@FLAKE@\"; \
    names = outputs: builtins.mapAttrs (_: builtins.attrNames) outputs; \
    in { packages = names (flake.packages or { }); checks = names (flake.checks or { }); }";
/// Bytes of the JSON.
const MOST: u64 = 64 << 20;
