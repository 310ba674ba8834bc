use crate::{
    CommandContext, ExitStatus,
    open::FromArgs,
    paths::{NamedPaths, PathArgs, required},
    ui,
};
use anyhow::Result;
use tk_store::closure;

/// Print all that paths refer to, directly or not, each path after what it refers to
///
/// As nix-store --query --requisites. Paths that the store does not have are told on stderr, and
/// the exit status is 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("paths", required))]
pub struct ClosureCommand {
    #[command(flatten)]
    paths: PathArgs,
    #[command(flatten)]
    from: FromArgs,
    /// Print a list as JSON
    #[arg(long)]
    json: bool,
}

impl ClosureCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let texts = self.paths.texts()?;
        let opened = self.from.open(cx, &texts).await?;
        let roots = NamedPaths::find(&opened, &texts).await?.paths;
        let store = opened.store();
        let asked = ui::paths(roots.len());
        let found = cx.ui.asking(&asked, closure(&*store, roots)).await?;
        let order = found.references_first()?;
        let paths = order.iter().map(|info| store.dir().path(&info.path));
        if self.json {
            ui::out(serde_json::Value::from_iter(paths))?;
        } else {
            ui::out_all(paths)?;
        }
        Ok(super::tell_absent(cx, &found, &*store))
    }
}

const EXAMPLES: &str = "\
Example:
  tk-store closure --store file:///srv/cache /nix/store/…-hello";
