use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, OpenStore, open},
    ui,
    units::{bytes, duration},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tk_local::{
    LocalConfig,
    profiles::{GenerationAction, OldGenerations, ProfileGeneration, delete_old_generations},
};
use tk_store::{
    GarbageCollector, GcAction, GcOptions, GcReport, blocking,
    log::{Level, LogEvent, LogSink},
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
    #[arg(long, conflicts_with_all = ["dry_run", "max_freed", "delete_old", "delete_older_than"])]
    print_live: bool,
    /// Delete all generations of profiles but the current ones first, those of a rollback too
    #[arg(long, short = 'd')]
    delete_old: bool,
    /// Delete generations of profiles that were last in use so long ago first, such as 30d
    #[arg(long, value_name = "DAYS", conflicts_with = "delete_old")]
    delete_older_than: Option<String>,
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
        let opened = open_to_collect(cx).await?;
        // Generations are not to go for nothing.
        collector(&opened)?;
        let is_here = opened.local().is_some();
        let of_machine = matches!(&*cx.store_uri(), "auto" | "daemon");
        let wants_old = self.delete_old || self.delete_older_than.is_some();
        ensure!(
            !wants_old || is_here || of_machine,
            "generations of profiles are deleted for a store on disk, and for the daemon of this machine"
        );
        ensure!(
            is_here || options.keep_newer_than.is_none(),
            "--keep-newer-than needs the store on disk: a daemon cannot do that"
        );
        let old = match &self.delete_older_than {
            Some(days) => Some(OldGenerations::older_than(days, SystemTime::now())?),
            None => self.delete_old.then_some(OldGenerations::AllButCurrent),
        };
        let old = match old {
            Some(which) => Some(self.old_generations(cx, &opened, which).await?),
            None => None,
        };
        collect(cx, &opened, &options, old, self.json).await
    }

    /// Deletes them, or tells them for a dry run.
    async fn old_generations(
        &self,
        cx: &CommandContext,
        opened: &OpenStore,
        which: OldGenerations,
    ) -> Result<Vec<ProfileGeneration>> {
        let environment = &cx.settings.environment;
        let config = match opened.local() {
            Some(local) => local.config().clone(),
            // Profiles are no part of a daemon's store: whoever uses it changes them himself.
            None => {
                let mut config = LocalConfig::system();
                config.state = environment.nix_state();
                config
            }
        };
        let home = environment.path("HOME");
        let state = environment.path("XDG_STATE_HOME");
        let state = state.or_else(|| Some(home.as_ref()?.join(".local/state")));
        let state = state.filter(|_| !rustix::process::geteuid().is_root());
        let folders = config.profile_folders(home.as_deref(), state.as_deref());
        let (action, verb) = if self.dry_run {
            (GenerationAction::Tell, "would delete")
        } else {
            (GenerationAction::Delete, "deleted")
        };
        let work = move || delete_old_generations(&folders, which, action);
        let old = blocking(work).await?;
        for generation in &old {
            let profile = generation.profile.display();
            let number = generation.number;
            cx.ui
                .say(format_args!("{verb} generation {number} of {profile}"));
        }
        if self.dry_run && !old.is_empty() {
            cx.ui
                .say("what only these generations keep is not among the paths");
        }
        Ok(old)
    }
}

/// Opens the store of `cx` as it is now.
pub async fn open_to_collect(cx: &CommandContext) -> Result<OpenStore> {
    let mut wish = OpenOptions::default();
    wish.refresh = true;
    open(cx, &cx.store_uri(), &wish).await
}

/// Collects garbage, and prints what was found or deleted; with the generations that were deleted before.
pub async fn collect(
    cx: &CommandContext,
    opened: &OpenStore,
    options: &GcOptions,
    old: Option<Vec<ProfileGeneration>>,
    json: bool,
) -> Result<ExitStatus> {
    let store = opened.store();
    let gc = collector(opened)?;
    let report = gc.collect_garbage(options, &log_to(cx)).await?;
    let GcReport {
        paths,
        bytes_freed,
        failed,
    } = report;
    // Daemons do not say how much would go.
    let is_known = opened.local().is_some() || options.action != GcAction::ReturnDead;
    if !is_known {
        cx.ui.warn(
            "Nix's daemon deletes odd entries of the store folder even when it is only asked",
        );
    }
    let (count, size) = (ui::paths(paths.len()), ui::size(bytes_freed));
    let deletes = !matches!(options.action, GcAction::ReturnLive | GcAction::ReturnDead);
    if json {
        let mut value = json!({
            "store": store.to_string(),
            "deleted": deletes,
            "paths": paths,
            "bytes": is_known.then_some(bytes_freed),
        });
        if !failed.is_empty() {
            value["failed"] = failed.iter().cloned().collect();
        }
        if let Some(old) = old {
            let of = |g: &ProfileGeneration| json!({ "profile": g.profile, "number": g.number, "link": g.link });
            value["generations"] = old.iter().map(of).collect();
        }
        ui::out(value)?;
    } else {
        ui::out_all(&paths)?;
    }
    match options.action {
        GcAction::ReturnLive => cx.ui.say(format_args!("{count} of {store} are alive")),
        GcAction::ReturnDead => {
            let about = if is_known {
                format!(", about {size}")
            } else {
                String::new()
            };
            cx.ui
                .say(format_args!("{count} of {store} would be deleted{about}"));
        }
        _ => cx
            .ui
            .say(format_args!("deleted {count} of {store}, {size} freed")),
    }
    // Each was told when it happened.
    Ok(if failed.is_empty() {
        ExitStatus::Yes
    } else {
        ExitStatus::Failed
    })
}

/// The store, if it collects garbage.
fn collector(opened: &OpenStore) -> Result<Arc<dyn GarbageCollector>> {
    let store = opened.store();
    let gc = opened.abilities().gc;
    gc.with_context(|| format!("{store} does not collect garbage"))
}

/// What is told of each path that goes stands on stdout anyhow.
fn log_to(cx: &CommandContext) -> impl LogSink {
    let log = cx.ui.log();
    move |event| {
        log.event(match event {
            LogEvent::Message {
                level: Level::Info,
                text,
            } => LogEvent::message(Level::Talkative, text),
            event => event,
        });
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store gc --dry-run
  tk-store gc --max-freed 10G --keep-newer-than 2d
  tk-store gc --delete-older-than 30d
  tk-store gc --dry-run --json";
