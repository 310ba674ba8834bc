use super::verify::whole_store::open_store;
use crate::{CommandContext, ExitStatus, ui};
use anyhow::Result;
use serde_json::json;

/// Make equal files of the store one, so that they take their space once
///
/// As nix-store --optimise: each file gets a second name below .links, and a file with the same
/// content and the same executable bit becomes a hard link to it. The paths stay what they are.
/// Files that may be written are left alone. It may run beside anything else, and be interrupted.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct OptimiseCommand {
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

impl OptimiseCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let store = open_store(cx).await?;
        let Some(maintenance) = store.abilities().maintenance else {
            let what = "has no files on disk that could be shared";
            return Err(store.abilities().unsupported(what).into());
        };
        let report = maintenance.optimise(&cx.ui.log()).await?;
        if self.json {
            ui::out(json!({
                "store": store.store().to_string(),
                "filesLinked": report.files_linked,
                "bytesSaved": report.bytes_saved,
                "failed": report.failed,
            }))?;
        }
        cx.ui.say(format_args!(
            "{} freed by hard-linking {} files",
            ui::size(report.bytes_saved),
            report.files_linked
        ));
        Ok(if report.failed > 0 {
            ExitStatus::Failed
        } else {
            ExitStatus::Yes
        })
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store optimise
  tk-store optimise --json";
