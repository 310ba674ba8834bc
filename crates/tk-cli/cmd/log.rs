use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, open},
    output::{is_terminal, stdout},
    paths::{Named, named},
};
use anyhow::{Result, bail};
use futures::StreamExt;
use std::io::Write;
use tk_path::StorePath;
use tk_store::{Logs, StoreExt, log::strip_ansi};

/// Print the log of the build that made a path
///
/// As nix log. Takes a derivation, or a path that was built from one. The logs of a daemon's builds
/// are read from its log folder, those of a cache from the cache. Without a log the exit status
/// is 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LogCommand {
    /// A derivation, a store path, or a link to one
    #[arg(value_name = "STOREPATH")]
    path: String,
}

impl LogCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let opened = open(cx, &cx.store_uri(), &OpenOptions::default()).await?;
        let text = self.path.split('^').next().unwrap_or_default();
        let path = match named(&opened, text)? {
            Named::Path(path, _) => path,
            Named::File(file) => bail!("{} is not in the store", file.display()),
        };
        let abilities = opened.abilities();
        let store = &abilities.store;
        let Some(logs) = &abilities.logs else {
            bail!("{store} keeps no build logs that could be read");
        };
        for drv in [Some(path.clone()), deriver(&opened, &path).await?] {
            let Some(drv) = drv.filter(StorePath::is_derivation) else {
                continue;
            };
            if print(&**logs, &drv).await? {
                return Ok(ExitStatus::Yes);
            }
        }
        cx.ui.error(format_args!(
            "{store} has no build log of {path}; it may have been fetched, not built"
        ));
        Ok(ExitStatus::No)
    }
}

/// The derivation that `path` was built from, if that is known.
async fn deriver(opened: &crate::open::OpenStore, path: &StorePath) -> Result<Option<StorePath>> {
    let info = opened.store().info(path).await?;
    Ok(info.and_then(|info| info.deriver))
}

/// Whether there was a log to print.
async fn print(logs: &dyn Logs, drv: &StorePath) -> Result<bool> {
    let Some(mut log) = logs.build_log(drv).await? else {
        return Ok(false);
    };
    let mut out = stdout();
    let mut line = Vec::new();
    while let Some(chunk) = log.next().await {
        let chunk = chunk?;
        if !is_terminal() {
            out.write_all(&chunk)?;
            continue;
        }
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || line.len() > LONGEST_LINE {
                write!(out, "{}", strip_ansi(&String::from_utf8_lossy(&line)))?;
                line.clear();
            }
        }
    }
    write!(out, "{}", strip_ansi(&String::from_utf8_lossy(&line)))?;
    out.flush()?;
    Ok(true)
}

/// Bytes of a line that are looked at together, for a terminal.
const LONGEST_LINE: usize = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  tk-store log ./result
  tk-store log /nix/store/…-hello.drv --store file:///srv/cache";
