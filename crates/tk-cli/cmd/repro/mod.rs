mod audit;
mod check;

use crate::{CommandContext, ExitStatus};
use anyhow::{Result, bail};
use std::path::PathBuf;
use tk_nix::{Installable, InstallableSource};
use tk_path::StoreDir;

/// Check builds for reproducibility and impurities
#[derive(clap::Subcommand)]
pub enum Repro {
    Check(Box<check::ReproCheckCommand>),
    Audit(Box<audit::Audit>),
}

impl Repro {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            Repro::Check(args) => args.run(cx).await,
            Repro::Audit(args) => args.run(cx).await,
        }
    }
}

/// What is looked at.
#[derive(clap::Args)]
struct Refs {
    /// Attributes of flakes, FLAKE#ATTR^OUT,...; derivations of the store, DRV^OUT,...; paths of the
    /// store
    #[arg(value_name = "REF", required_unless_present_any = ["file", "expr"])]
    refs: Vec<String>,
    /// Take the attributes of this file
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["refs", "expr"])]
    file: Option<PathBuf>,
    /// Take the attributes of this code
    #[arg(long, short = 'E', value_name = "CODE", conflicts_with = "refs")]
    expr: Option<String>,
    /// An attribute of the file or the code (may be repeated)
    #[arg(long, short = 'A', value_name = "ATTR", conflicts_with = "refs")]
    attr: Vec<String>,
}

impl Refs {
    /// Whether the whole of it is paths of a store with the directory `dir`, so that nothing is to be
    /// evaluated.
    fn all_in_store(&self, dir: &StoreDir) -> bool {
        let in_store = |text: &String| text.starts_with(dir.as_str()) && !text.contains('#');
        self.file.is_none() && self.expr.is_none() && self.refs.iter().all(in_store)
    }

    fn installables(&self, dir: &StoreDir) -> Result<Vec<Installable>> {
        let source = match (&self.file, &self.expr) {
            (Some(file), _) => InstallableSource::File(file.clone()),
            (_, Some(code)) => InstallableSource::Expr(code.clone()),
            _ => {
                let parsed = self.refs.iter().map(|text| Installable::parse(dir, text));
                return Ok(parsed.collect::<Result<_, _>>()?);
            }
        };
        let attrs: Vec<&str> = if self.attr.is_empty() {
            vec![""]
        } else {
            self.attr.iter().map(String::as_str).collect()
        };
        let attrs = attrs.into_iter();
        let parsed = attrs.map(|attr| Installable::attribute(source.clone(), attr));
        Ok(parsed.collect::<Result<_, _>>()?)
    }
}

/// Fails if the paths of two stores have different directories.
fn require_one_dir(first: &dyn tk_store::Store, other: &dyn tk_store::Store) -> Result<()> {
    if first.dir() == other.dir() {
        Ok(())
    } else {
        bail!(
            "{first} holds paths of {}, {other} those of {}; they have no path in common",
            first.dir(),
            other.dir()
        )
    }
}
