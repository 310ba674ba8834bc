use crate::{
    CommandContext, ExitStatus,
    build_log::LogPrinter,
    failure::tell_failure,
    open::{BuildArgs, NixOptions},
    ui,
};
use anyhow::{Result, bail};
use std::path::PathBuf;
use tk_nix::{Installable, InstallableSource, or_cancelled};
use tk_path::StoreDir;

/// Evaluate Nix code, and print its value as JSON
///
/// Needs nix, of any version from 2.8 on; the JSON is the same for all of them. Derivations are
/// their output paths, which are not built.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Eval {
    /// An attribute of a flake, FLAKE#ATTR; with --file or --expr an attribute of that
    #[arg(value_name = "REF", required_unless_present_any = ["expr", "file"])]
    what: Option<String>,
    /// Evaluate this code
    #[arg(long, short = 'E', value_name = "CODE", conflicts_with = "file")]
    expr: Option<String>,
    /// Evaluate this file
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The attribute of the file or the code
    #[arg(long, short = 'A', value_name = "ATTR", conflicts_with = "what")]
    attr: Option<String>,
    /// Print JSON, which is what it always does
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Print a text as it is, without quotes
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    nix: NixOptions,
    #[command(flatten)]
    build: BuildArgs,
}

impl Eval {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let what = self.installable()?;
        let nix = self.nix.find(cx, &self.build).await?;
        let log = LogPrinter::new(&cx.ui, true).without_errors();
        let options = self.nix.eval();
        let value = or_cancelled(&cx.cancel, nix.eval(&what, &options, &log)).await;
        log.clear();
        let value = match value {
            Ok(value) => value,
            Err(failure) => return Ok(tell_failure(cx, &what.to_string(), &failure)),
        };
        match (value.as_str(), self.raw) {
            (Some(text), true) => ui::out(text)?,
            (None, true) => bail!("its value is not text; leave out --raw"),
            (_, false) => ui::out(value)?,
        }
        Ok(ExitStatus::Yes)
    }

    fn installable(&self) -> Result<Installable> {
        let attr = self
            .attr
            .as_deref()
            .or(self.what.as_deref())
            .unwrap_or_default();
        let source = match (&self.expr, &self.file) {
            (Some(code), _) => InstallableSource::Expr(code.clone()),
            (_, Some(file)) => InstallableSource::File(file.clone()),
            // Nothing is read from the store, so that its folder makes no difference.
            _ => return Ok(Installable::parse(&StoreDir::default(), attr)?),
        };
        Ok(Installable::attribute(source, attr)?)
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store eval --expr '{ answer = 6 * 7; }'
  tk-store eval .#packages.x86_64-linux.default.name --raw
  tk-store eval --file default.nix -A version";
