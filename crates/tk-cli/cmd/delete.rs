use super::gc::{collect, open_to_collect};
use crate::{
    CommandContext, ExitStatus,
    paths::{NamedPaths, PathArgs, required},
};
use anyhow::Result;
use std::collections::BTreeSet;
use tk_store::{Error, GcAction, GcOptions, closure};

/// Delete certain paths of a store, if nothing needs them
///
/// As nix store delete: a path that a root reaches, or to which another path refers, is not deleted, and
/// then none of the others is either, unless --skip-live is given: the exit status is 1. Paths that are not
/// there are no error.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("paths", required))]
pub struct Delete {
    #[command(flatten)]
    paths: PathArgs,
    /// All that the paths refer to as well
    #[arg(long, short)]
    recursive: bool,
    /// Leave what is alive, and delete the others
    #[arg(long)]
    skip_live: bool,
    /// Delete even what a root reaches; what a process has just begun to use, and what others refer to, stays
    #[arg(long, conflicts_with = "skip_live")]
    ignore_liveness: bool,
    /// Print the paths and the bytes as JSON
    #[arg(long)]
    json: bool,
}

impl Delete {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let texts = self.paths.texts()?;
        let opened = open_to_collect(cx).await?;
        let roots = NamedPaths::find(&opened, &texts).await?.paths;
        let mut paths: BTreeSet<_> = roots.iter().cloned().collect();
        if self.recursive {
            paths.extend(closure(&*opened.store(), roots).await?.infos.into_keys());
        }
        let mut options = GcOptions::new(GcAction::DeleteSpecific(paths));
        options.skip_live = self.skip_live;
        options.ignore_liveness = self.ignore_liveness;
        let done = collect(cx, &opened, &options, None, self.json).await;
        let refused =
            |error: &anyhow::Error| matches!(error.downcast_ref(), Some(Error::Refused { .. }));
        match done {
            Err(error) if refused(&error) => {
                cx.ui.error(error);
                Ok(ExitStatus::No)
            }
            done => done,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store delete /nix/store/…-hello
  tk-store delete --recursive --skip-live ./result";
