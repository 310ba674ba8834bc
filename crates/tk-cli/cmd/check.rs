mod show;
mod wanted;

use crate::{
    CommandContext, ExitStatus, failures, keys,
    open::{OpenOptions, OpenStore, open, substituters},
    paths::PathArgs,
};
use anyhow::{Context as _, Result};
use futures::StreamExt;
use show::CheckPrinter;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tk_cache::{
    checker::{
        CacheAnswer as Said, CheckedPath, Checker, SignatureTrust, Summary, UnreachableCache,
    },
    objects::NarInfos,
};
use tk_narinfo::Untrusted;
use tk_path::StoreDir;

/// Ask caches which paths they have
///
/// Without paths they are read from standard input, one a line.
///
/// All caches are asked at once, and about many paths at once. A path is there if one of them has
/// it. Prints a table on a terminal, otherwise a line for each path: the path, what each cache
/// said (present, absent, untrusted or error), the size of the NAR and of what is to be fetched,
/// in bytes, with tabs between.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CheckCommand {
    #[command(flatten)]
    paths: PathArgs,
    /// A cache, or any other store (may be repeated) [default: substituters of nix.conf]
    #[arg(long = "in", value_name = "URI")]
    caches: Vec<String>,
    /// Check all that the paths refer to as well, as --store knows it, or else as the caches do;
    /// of derivations also their inputs and all outputs
    #[arg(long, short = 'r', visible_alias = "recursive")]
    closure: bool,
    /// Of derivations check only the outputs
    #[arg(long)]
    outputs: bool,
    /// Print only the paths that no cache has, one a line
    #[arg(long, conflicts_with_all = ["present", "json"])]
    missing: bool,
    /// Print only the paths that are there, one a line
    #[arg(long, conflicts_with = "json")]
    present: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Demand a signature by one of the trusted-public-keys of nix.conf
    #[arg(long, conflicts_with = "trusted_key")]
    check_sigs: bool,
    /// Demand a signature by the public key, name:base64 or a file (may be repeated)
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    /// How many trusted keys must have signed each path
    #[arg(long, value_name = "N", default_value_t = 1)]
    sigs_needed: usize,
}

impl CheckCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let caches = self.open_caches(cx).await?;
        let opened = caches.iter().filter_map(|cache| cache.store.clone());
        let opened: Vec<_> = opened.collect();
        let wanted = wanted::find(cx, &self, &opened).await?;
        let all = caches.iter().map(|cache| cache.narinfos.clone()).collect();
        let mut checker = Checker::new(all);
        checker = checker.closure(self.closure);
        if let Some(store) = &wanted.store {
            checker = checker.references_from(store.store());
        }
        if self.check_sigs || !self.trusted_key.is_empty() {
            checker = checker.trust(keys::policy(cx, &self.trusted_key, self.sigs_needed)?);
        }
        let mut show = CheckPrinter::new(cx, &checker, self.what());
        let mut tally = Tally::new(&checker);
        let mut answers = checker.check(futures::stream::iter(wanted.paths));
        while let Some(checked) = answers.next().await {
            tally.add(&checked);
            show.path(&checked)?;
        }
        drop(answers);
        show.end(&tally.summary)?;
        let known = wanted.unknown_outputs == 0;
        let dead = caches.iter().filter(|cache| cache.store.is_none());
        let dead = dead.map(|cache| cache.narinfos.to_string()).collect();
        Ok(tally
            .tell(cx, &checker, &dead, wanted.store.is_some())
            .max(if known {
                ExitStatus::Yes
            } else {
                ExitStatus::Failed
            }))
    }

    /// The caches, each once. One that cannot be opened is told of at once, and stays as one that
    /// could not be asked.
    async fn open_caches(&self, cx: &CommandContext) -> Result<Vec<AskedCache>> {
        let uris = if self.caches.is_empty() {
            substituters(cx, "--in")?
        } else {
            self.caches.clone()
        };
        let wish = OpenOptions::default();
        let opening = uris.iter().map(|uri| async {
            let opened = open(cx, uri, &wish).await;
            // The only one is told of as the error of the command.
            if let Err(error) = &opened
                && uris.len() > 1
            {
                cx.ui.warn(format_args!("{error:#}; the others are asked"));
            }
            opened
        });
        let mut opened = futures::future::join_all(opening).await;
        let dir = opened.iter().flatten().next();
        let Some(dir) = dir.map(|cache| cache.store().dir().clone()) else {
            // Each was told of; the first is the answer.
            let first = opened.swap_remove(0).map(drop);
            return Err(first.err().context("there is no cache to ask")?);
        };
        let mut seen = BTreeSet::new();
        let mut places = Vec::new();
        for (uri, cache) in uris.into_iter().zip(opened) {
            let place = match cache {
                Ok(cache) if *cache.store().dir() == dir => AskedCache::open(cache),
                Ok(cache) => {
                    let store = cache.store();
                    let why = format!("it holds paths of {}, not of {dir}", store.dir());
                    cx.ui.warn(format_args!("{store} is not asked: {why}"));
                    AskedCache::unreachable(store.to_string(), &dir, why)
                }
                Err(error) => AskedCache::unreachable(uri, &dir, format!("{error:#}")),
            };
            if seen.insert(place.narinfos.to_string()) {
                places.push(place);
            }
        }
        Ok(places)
    }

    fn what(&self) -> CheckView {
        match (self.json, self.missing, self.present) {
            (true, ..) => CheckView::Json,
            (_, true, _) => CheckView::Missing,
            (_, _, true) => CheckView::Present,
            _ => CheckView::All,
        }
    }
}

/// A cache that is asked, or that would be.
struct AskedCache {
    /// It, or who tells why it cannot be asked.
    narinfos: Arc<dyn NarInfos>,
    store: Option<OpenStore>,
}

impl AskedCache {
    fn open(store: OpenStore) -> Self {
        AskedCache {
            narinfos: store.narinfos(),
            store: Some(store),
        }
    }

    fn unreachable(uri: String, dir: &StoreDir, why: String) -> Self {
        AskedCache {
            narinfos: Arc::new(UnreachableCache::new(uri, dir.clone(), why)),
            store: None,
        }
    }
}

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CheckView {
    All,
    Missing,
    Present,
    Json,
}

/// Counts, and what is to be told on stderr.
struct Tally {
    summary: Summary,
    /// The first error of each cache.
    errors: Vec<Option<String>>,
    /// Why paths are nowhere trusted, by the reason, each with how many there are.
    untrusted: BTreeMap<String, (Untrusted, usize)>,
}

impl Tally {
    fn new(checker: &Checker) -> Self {
        Tally {
            summary: Summary::default(),
            errors: vec![None; checker.caches().len()],
            untrusted: BTreeMap::new(),
        }
    }

    fn add(&mut self, checked: &CheckedPath) {
        self.summary.add(checked);
        for (first, answer) in self.errors.iter_mut().zip(&checked.answers) {
            if let Said::NotAsked(error) = answer {
                first.get_or_insert_with(|| error.to_line());
            }
        }
        if checked.is_present()
            && !checked.is_trusted()
            && let Some((.., SignatureTrust::Untrusted(why))) = checked.first()
        {
            let reason = why.of_many(0);
            if self.untrusted.len() < TOLD || self.untrusted.contains_key(&reason) {
                let first = || ((**why).clone(), 0);
                self.untrusted.entry(reason).or_insert_with(first).1 += 1;
            }
        }
    }

    /// Says what was found, and gives the answer that follows.
    fn tell(
        &self,
        cx: &CommandContext,
        checker: &Checker,
        dead: &BTreeSet<String>,
        store: bool,
    ) -> ExitStatus {
        let summary = &self.summary;
        let caches = checker
            .caches()
            .iter()
            .zip(&summary.caches)
            .zip(&self.errors);
        for ((cache, said), error) in caches {
            let Some(error) = error else { continue };
            if dead.contains(&cache.to_string()) && summary.unknown == 0 {
                // It was told of when it was opened.
                continue;
            }
            let paths = crate::ui::paths(said.not_asked);
            let line = format!("{cache} could not be asked about {paths}: {error}");
            // Where the others make up for it, it is not what decides.
            match summary.unknown {
                0 => cx.ui.warn(line),
                _ => cx.ui.error(line),
            }
        }
        let told: usize = self.untrusted.values().map(|(_, count)| count).sum();
        for (why, count) in self.untrusted.values() {
            cx.ui.error(failures::untrusted(why, *count));
        }
        let rest = summary.untrusted.saturating_sub(told);
        if rest > 0 {
            cx.ui.error(format_args!("{rest} more are not trusted"));
        }
        if summary.not_followed > 0 {
            let paths = crate::ui::paths(summary.not_followed);
            let refer = if summary.not_followed == 1 {
                "refers"
            } else {
                "refer"
            };
            let hint = if store {
                ""
            } else {
                "; give a store that has them with --store"
            };
            cx.ui.warn(format_args!(
                "what {paths} {refer} to is not known, and was not checked{hint}"
            ));
        }
        cx.ui.say(show::sum(summary));
        self.answer()
    }

    fn answer(&self) -> ExitStatus {
        let summary = &self.summary;
        match (summary.unknown, summary.missing + summary.untrusted) {
            (0, 0) => ExitStatus::Yes,
            (0, _) => ExitStatus::No,
            _ => ExitStatus::Failed,
        }
    }
}

/// Reasons why paths are not trusted that are told.
const TOLD: usize = 10;

const EXAMPLES: &str = "\
Examples:
  tk-store check ./result --closure --in https://cache.nixos.org
  tk-store check --closure --missing --in https://cache.example.org /nix/store/…-system \\
    --store daemon | xargs -r tk-store push --to s3://my-cache
  nix-store -qR ./result | tk-store check --in file:///srv/cache --in https://cache.nixos.org
  tk-store check --closure --outputs /nix/store/…-hello.drv --in https://cache.nixos.org

Exit status: 0 all are there, 1 something is missing (or not signed as demanded), 2 a cache could
not be asked about something that no other one has.";
