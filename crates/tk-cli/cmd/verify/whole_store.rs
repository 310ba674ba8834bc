use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, OpenStore, open, sources_of},
    ui,
};
use anyhow::Result;
use serde_json::{Value, json};
use tk_store::{
    MetadataCheck, RepairSource, StoreFault, StoreVerifyOptions, StoreVerifyReport, VerifyDepth,
};

/// What is asked of a whole store, where no paths are named.
#[derive(clap::Args)]
#[command(next_help_heading = "The whole store")]
pub struct WholeStoreArgs {
    /// Check that each path that is registered is there; one that is gone and that nothing needs is
    /// unregistered
    #[arg(long, conflicts_with_all = OF_PATHS)]
    database: bool,
    /// The same, and that the content of each path and of .links is what is registered
    #[arg(long, conflicts_with_all = OF_PATHS)]
    check_contents: bool,
    /// Put whole content in the place of what is damaged or gone, from the stores of --from, else
    /// from the caches of nix.conf
    #[arg(long, conflicts_with_all = OF_PATHS)]
    repair: bool,
    /// With --check-contents: modes, times, owners and attributes must be those of a store
    #[arg(long, requires = "check_contents", conflicts_with_all = OF_PATHS)]
    check_metadata: bool,
}

impl WholeStoreArgs {
    /// Whether the whole store is meant.
    pub fn is_meant(&self) -> bool {
        self.database || self.check_contents || self.repair
    }

    /// Checks the store, and repairs it from the stores that `from` names.
    pub async fn run(self, cx: &CommandContext, from: &[String], json: bool) -> Result<ExitStatus> {
        anyhow::ensure!(
            self.repair || from.is_empty(),
            "--from names the stores to repair from; it goes with --repair. The store to check \
             is that of --store"
        );
        let store = open_store(cx).await?;
        let Some(maintenance) = store.abilities().maintenance else {
            let what = "has no database to check; to check its paths: verify --all";
            return Err(store.abilities().unsupported(what).into());
        };
        let mut options = StoreVerifyOptions::default();
        if self.check_contents {
            options.depth = VerifyDepth::Contents;
        }
        if self.check_metadata {
            options.metadata = MetadataCheck::Canonical;
        }
        // What stays open while it is read from.
        let mut sources = Vec::new();
        if self.repair {
            for uri in repair_uris(cx, &store, from) {
                match open(cx, &uri, &OpenOptions::default()).await {
                    Ok(source) => sources.push(source),
                    // Who names it wants it; of those of nix.conf another one may do.
                    Err(error) if from.is_empty() => cx.ui.warn(format_args!("{error:#}")),
                    Err(error) => return Err(error),
                }
            }
            if sources.is_empty() && store.local().is_some() {
                cx.ui
                    .warn("there is no store to repair from; name one with --from");
            }
            options.repair = if sources.is_empty() {
                RepairSource::Substituters
            } else {
                RepairSource::Stores(sources.iter().map(OpenStore::store).collect())
            };
        }
        let report = maintenance.verify_store(&options, &cx.ui.log()).await?;
        if json {
            ui::out(to_json(&store.store().to_string(), &report))?;
        }
        tell(cx, &store, &report, self.repair);
        Ok(if report.errors_left {
            ExitStatus::No
        } else {
            ExitStatus::Yes
        })
    }
}

/// The store to look after: the one of `--store`, which is not made.
pub async fn open_store(cx: &CommandContext) -> Result<OpenStore> {
    let [uri] = &sources_of(cx, &[], &[])[..] else {
        anyhow::bail!("name one store with --store");
    };
    open(cx, uri, &OpenOptions::default()).await
}

/// Where to repair from: a store on disk has nobody else to ask.
fn repair_uris(cx: &CommandContext, store: &OpenStore, from: &[String]) -> Vec<String> {
    if !from.is_empty() || store.local().is_none() {
        return from.to_vec();
    }
    let caches = cx.settings.nix_conf.list("substituters");
    let caches = caches.unwrap_or_default();
    caches.into_iter().map(str::to_owned).collect()
}

fn to_json(store: &str, report: &StoreVerifyReport) -> Value {
    let fault = |fault: &StoreFault| {
        let path = (!fault.subject.is_empty()).then_some(&fault.subject);
        json!({
            "path": path,
            "kind": fault.kind.name(),
            "error": fault.line,
            "mended": fault.mended,
        })
    };
    json!({
        "store": store,
        "verified": report.verified,
        "errorsLeft": report.errors_left,
        "faults": report.faults.iter().map(fault).collect::<Vec<_>>(),
    })
}

fn tell(cx: &CommandContext, store: &OpenStore, report: &StoreVerifyReport, repair: bool) {
    let store = store.store();
    let mended = report.faults.iter().filter(|fault| fault.mended).count();
    let left = report.faults.len() - mended;
    let paths = match report.verified {
        Some(paths) => ui::paths(paths as usize),
        None => "the paths".to_owned(),
    };
    cx.ui.say(format_args!(
        "verified {paths} of {store}: {left} bad, {mended} mended"
    ));
    if report.errors_left && repair {
        cx.ui.warn("not all store errors were fixed");
    } else if report.errors_left {
        cx.ui
            .warn("not all store errors were fixed; --repair mends what it can");
    }
}

/// What only a check of named paths knows.
const OF_PATHS: [&str; 8] = [
    "paths",
    "stdin",
    "all",
    "recursive",
    "no_contents",
    "no_trust",
    "trusted_key",
    "jobs",
];
