pub mod whole_store;

use crate::{
    CommandContext, ExitStatus, failures, keys,
    open::{FromArgs, Looked},
    paths::{NamedPaths, PathsOrAll},
    ui,
};
use anyhow::Result;
use futures::{StreamExt, stream};
use serde_json::json;
use std::num::NonZeroUsize;
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{Error, SigCheck, Store, copy::Progress, verify};
use whole_store::WholeStoreArgs;

/// Check that content is what its hash says, and that trusted keys signed it
///
/// As nix store verify. Each bad path is told with the reason, and the exit status is 1 (2 if a
/// path could not be looked at).
///
/// Without paths and with --database, --check-contents or --repair it is the whole store that is
/// checked, as by nix-store --verify, and mended.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("paths", |arg| {
    arg.required_unless_present_any(["all", "stdin", "database", "check_contents", "repair"])
}))]
pub struct VerifyCommand {
    #[command(flatten)]
    paths: PathsOrAll,
    /// All that the paths refer to as well
    #[arg(long, short)]
    recursive: bool,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    whole: WholeStoreArgs,
    /// Do not read the content
    #[arg(long)]
    no_contents: bool,
    /// Do not look at the signatures
    #[arg(long, visible_alias = "no-check-sigs")]
    no_trust: bool,
    /// How many trusted keys must have signed each path
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1)]
    sigs_needed: usize,
    /// Trust the public key, name:base64 or a file (may be repeated) [default: nix.conf's]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    /// Paths read at once [default: one for each processor]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

impl VerifyCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        if self.whole.is_meant() {
            return self.whole.run(cx, self.from.uris(), self.json).await;
        }
        let trust = if self.no_trust {
            SigCheck::Skip
        } else {
            keys::signed(cx, &self.trusted_key, self.sigs_needed)?
        };
        // What counts is what is there, not what is remembered of it.
        let texts = self.paths.texts()?;
        let opened = self.from.open_anew(cx, &texts).await?;
        let looked = if self.paths.all {
            Looked {
                listed: opened.all().await?,
                absent: Vec::new(),
            }
        } else {
            let roots = NamedPaths::find(&opened, &texts).await?.paths;
            if self.recursive {
                opened.look_at_closure(&roots).await
            } else {
                opened.look(&roots).await
            }
        };
        let store = opened.store();
        let Looked { listed, absent } = looked;
        let unreadable = listed.unreadable.iter();
        let infos: Vec<_> = listed.narinfos.values().map(|n| &n.info).collect();
        let nar_size = infos
            .iter()
            .fold(0u64, |sum, i| sum.saturating_add(i.nar_size));
        let jobs = self
            .jobs
            .map_or_else(|| opened.at_once(), NonZeroUsize::get);
        let jobs = jobs.min(tk_nar::fs::trees_at_once().get());
        let meter = cx.ui.progress("verify", store.dir(), infos.len(), nar_size);
        let checks = stream::iter(&infos)
            .map(|info| self.check(&*store, info, &trust, &meter))
            .buffer_unordered(jobs);
        let bad: Vec<_> = checks.filter_map(|bad| async { bad }).collect().await;
        meter.clear();
        let errors = bad.iter().map(|(_, error)| error);
        let mut answer =
            ExitStatus::after(errors.chain(unreadable.clone().map(|(_, error)| error)));
        if !absent.is_empty() {
            answer = answer.max(ExitStatus::No);
        }
        let dir = store.dir();
        let absent = absent.iter().map(|path| {
            let referrer = infos.iter().find(|info| info.references.contains(path));
            let why = match referrer {
                None => format!("{path} is not in {store}"),
                Some(info) => {
                    format!("{path}, which {} refers to, is not in {store}", info.path)
                }
            };
            (dir.path(path), why)
        });
        let unreadable = unreadable.map(|(name, error)| {
            let path = StorePath::parse(name);
            let name = path.map_or_else(|_| name.clone(), |path| dir.path(&path));
            (name, failures::line_of(error), error.kind())
        });
        let unreadable: Vec<_> = unreadable.collect();
        let absent: Vec<_> = absent.collect();
        failures::tell(cx, bad.iter().map(|(info, error)| (&info.path, error)));
        for (_, line) in &absent {
            cx.ui.error(line);
        }
        for (_, line, _) in &unreadable {
            cx.ui.error(line);
        }
        let count = bad.len() + absent.len() + unreadable.len();
        if self.json {
            let bad = bad
                .iter()
                .map(|(info, error)| failures::to_json(dir, &info.path, error));
            let absent = absent
                .iter()
                .map(|(path, line)| json!({ "path": path, "error": line, "kind": "notFound" }));
            let unreadable = unreadable
                .iter()
                .map(|(name, line, kind)| json!({ "path": name, "error": line, "kind": kind }));
            let bad: Vec<_> = bad.chain(absent).chain(unreadable).collect();
            ui::out(json!({ "store": store.to_string(), "verified": infos.len(), "bad": bad }))?;
        }
        let (paths, size) = (ui::paths(infos.len()), ui::size(nar_size));
        cx.ui.say(format_args!(
            "verified {paths} ({size}) of {store}: {count} bad"
        ));
        Ok(answer)
    }

    async fn check<'a>(
        &self,
        store: &dyn Store,
        info: &'a PathInfo,
        trust: &SigCheck,
        meter: &ui::Meter,
    ) -> Option<(&'a PathInfo, Error)> {
        meter.started(&info.path);
        let trusted = trust.check(store.dir(), info);
        let checked = match (trusted, self.no_contents) {
            (Ok(()), false) => verify(store, info).await,
            (trusted, _) => trusted,
        };
        meter.moved(info.nar_size);
        meter.done(&info.path);
        checked.err().map(|error| (info, error))
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store verify --all --no-trust
  tk-store verify --check-contents
  tk-store verify --check-contents --repair --from file:///srv/cache
  tk-store verify --store file:///srv/cache --all --trusted-key my.pub";
