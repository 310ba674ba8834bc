use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, open},
    ui,
    units::{bytes, duration},
};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::time::{Duration, SystemTime};
use tk_store::{
    GcAction, GcOptions, GcReport,
    log::{Level, LogEvent, LogSink, strip_ansi},
};

/// Delete the paths of a store that nothing needs
///
/// As nix-store --gc and nix store gc: what roots reach stays (see tk-store roots list), and what is in
/// use by a running process. It may run beside builds and copies. The deleted paths are printed;
/// --dry-run prints what would go, and changes nothing at all.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct GcCommand {
    /// Print what would be deleted, and how much, and change nothing
    #[arg(long, short = 'n', visible_alias = "print-dead")]
    dry_run: bool,
    /// Print what is alive instead, and change nothing
    #[arg(long, conflicts_with_all = ["dry_run", "max_freed"])]
    print_live: bool,
    /// Stop when more than this was freed, such as 10G
    #[arg(long, visible_alias = "max", value_name = "SIZE", value_parser = bytes)]
    max_freed: Option<u64>,
    /// Keep what came into the store within this time, such as 2d, with all that it needs
    #[arg(long, value_name = "TIME", value_parser = duration)]
    keep_newer_than: Option<Duration>,
    /// Print the paths and the bytes as JSON
    #[arg(long)]
    json: bool,
}

impl GcCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut options = GcOptions::new(match (self.print_live, self.dry_run) {
            (true, _) => GcAction::ReturnLive,
            (_, true) => GcAction::ReturnDead,
            _ => GcAction::DeleteDead,
        });
        options.max_freed = self.max_freed.unwrap_or(u64::MAX);
        if let Some(age) = self.keep_newer_than {
            let since = SystemTime::now().checked_sub(age);
            options.keep_newer_than = Some(since.context("--keep-newer-than is too long")?);
        }
        collect(cx, &options, self.json).await?;
        Ok(ExitStatus::Yes)
    }
}

/// Collects garbage in the store of `cx`, and prints what was found or deleted.
pub async fn collect(cx: &CommandContext, options: &GcOptions, json: bool) -> Result<()> {
    let mut wish = OpenOptions::default();
    wish.refresh = true;
    let opened = open(cx, &cx.store_uri(), &wish).await?;
    let store = opened.store();
    let gc = opened.abilities().gc;
    let gc = gc.with_context(|| format!("{store} does not collect garbage"))?;
    let GcReport { paths, bytes_freed } = gc.collect_garbage(options, &log_to(cx)).await?;
    let (count, size) = (ui::paths(paths.len()), ui::size(bytes_freed));
    let deletes = !matches!(options.action, GcAction::ReturnLive | GcAction::ReturnDead);
    if json {
        ui::out(json!({
            "store": store.to_string(),
            "deleted": deletes,
            "paths": paths,
            "bytes": bytes_freed,
        }))?;
    } else {
        ui::out_all(&paths)?;
    }
    match options.action {
        GcAction::ReturnLive => cx.ui.say(format_args!("{count} of {store} are alive")),
        GcAction::ReturnDead => {
            cx.ui.say(format_args!(
                "{count} of {store} would be deleted, about {size}"
            ));
        }
        _ => cx
            .ui
            .say(format_args!("deleted {count} of {store}, {size} freed")),
    }
    Ok(())
}

/// Messages, each as its level is told; those that Nix shows by default only with --verbose.
fn log_to(cx: &CommandContext) -> impl LogSink {
    let ui = cx.ui;
    move |event| {
        if let LogEvent::Message { level, text } = event {
            let text = strip_ansi(&text);
            match level {
                Level::Error => ui.error(text),
                Level::Warn => ui.warn(text),
                Level::Notice => ui.say(text),
                _ => ui.detail(text),
            }
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store gc --dry-run
  tk-store gc --max-freed 10G --keep-newer-than 2d
  tk-store gc --store local?root=/srv/store --json";
