mod push;
mod tell;

use crate::{
    CommandContext, ExitStatus,
    build_log::LogPrinter,
    keys,
    open::{BuildArgs, NixOptions, OpenOptions, OpenStore, RemoteArgs, open, store_dir},
    out_link::OutLink,
};
use anyhow::{Context as _, Result, bail};
use futures::{StreamExt, stream};
use push::{PushArgs, Pusher};
use std::{path::PathBuf, sync::Arc, time::Instant};
use tell::Outcome;
use tk_builders::{FetchReport, Fetchable};
use tk_nix::{
    BuildTracker, Cause, Installable, InstallableSource, NixBuilder, NixFailure, StoreBuilder,
    Target, or_cancelled,
};
use tk_path::{DerivedPath, StoreDir};
use tk_store::{Abilities, BuildMode, SigCheck, log::LogSink as _};

/// Build packages of flakes, files or derivations, and push what was built
///
/// REF is an attribute of a flake (.#hello, nixpkgs#hello^out,dev; the default package without
/// #ATTR), or a derivation with its outputs (DRV^OUT,... or DRV^*). nix is run to evaluate only;
/// derivations are built by a daemon, and for a store without one by a nix-daemon of its own. The
/// builders' log is shown as it comes; the output paths are printed. A build that fails makes the
/// exit status 1, and its last log lines are told; the others go on with --keep-going.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct BuildCommand {
    /// Flakes with an attribute, derivations with outputs, or paths to fetch [default: .]
    #[arg(value_name = "REF")]
    refs: Vec<String>,
    /// Build from this file of Nix code, or a folder with a default.nix
    #[arg(long, short, value_name = "FILE", conflicts_with = "refs")]
    file: Option<PathBuf>,
    /// Build from this Nix code
    #[arg(long, short = 'E', value_name = "CODE", conflicts_with_all = ["refs", "file"])]
    expr: Option<String>,
    /// The attribute of the file, the code or else ./default.nix, perhaps with ^OUT,… (may be
    /// repeated) [default: all]
    #[arg(long, short = 'A', value_name = "ATTR", conflicts_with = "refs")]
    attr: Vec<String>,
    #[command(flatten)]
    push: PushArgs,
    /// Fetch from the caches of --push, --upstream and --from what they have, instead of building it
    #[arg(long)]
    prefer_cache: bool,
    /// A further cache for --prefer-cache (may be repeated)
    #[arg(long, value_name = "URI", requires = "prefer_cache")]
    from: Vec<String>,
    /// Trust the public key for what is fetched by --prefer-cache, name:base64 or a file (may be
    /// repeated) [default: nix.conf's]
    #[arg(long, value_name = "KEY", requires = "prefer_cache")]
    trusted_key: Vec<String>,
    /// Say what would be built and fetched, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Build again what is there, and compare
    #[arg(long, visible_alias = "check", conflicts_with = "repair")]
    rebuild: bool,
    /// Build or fetch again what is damaged
    #[arg(long)]
    repair: bool,
    /// Leave out what builders print
    #[arg(long)]
    no_log: bool,
    /// Make LINK a link to the first output (more: LINK-dev, LINK-1, LINK-1-dev, …), and a root
    #[arg(long, short, value_name = "LINK")]
    out_link: Option<PathBuf>,
    #[command(flatten)]
    machines: RemoteArgs,
    #[command(flatten)]
    nix: NixOptions,
    #[command(flatten)]
    options: BuildArgs,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// What builds, and the store of the command.
struct Ready {
    builder: StoreBuilder,
    nix: Option<NixBuilder>,
    opened: OpenStore,
}

/// Caches that are asked before anything is built.
struct Preferred {
    caches: Vec<Abilities>,
    check: SigCheck,
}

impl BuildCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let start = Instant::now();
        if let Some(link) = &self.out_link {
            OutLink::new(link, "")?;
        }
        let installables = self.installables(cx)?;
        let ready = self.ready(cx, &installables).await?;
        let dir = ready.opened.store().dir().clone();
        let log = LogPrinter::new(&cx.ui, !self.no_log).without_errors();
        let found = self.targets(cx, &ready, &installables, &dir, &log).await;
        let (what, targets) = match found {
            Ok(found) => found.into_iter().unzip::<_, _, Vec<String>, Vec<Target>>(),
            Err((what, failure)) => {
                log.clear();
                return tell::not_evaluated(cx, &what, &failure, self.json);
            }
        };
        if self.dry_run && !self.prefer_cache {
            log.clear();
            return tell::missing(cx, &ready, &targets, None, self.json).await;
        }
        let pusher = self.push.open(cx, &ready.opened, self.dry_run).await?;
        let preferred = if self.prefer_cache {
            Some(self.preferred(cx, &pusher).await?)
        } else {
            None
        };
        if self.dry_run {
            log.clear();
            return tell::missing(cx, &ready, &targets, preferred.as_ref(), self.json).await;
        }
        let fetched = match &preferred {
            Some(preferred) => preferred.fetch(cx, &ready, &targets).await?,
            None => FetchReport::default(),
        };
        let outcomes = self.build(cx, &ready, &pusher, &targets, &log).await;
        log.clear();
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(failure) => {
                return tell::not_evaluated(cx, &what.join(", "), &failure, self.json);
            }
        };
        let answer = tell::results(cx, &what, &targets, &outcomes, &dir, self.json)?;
        tell::summary(cx, &log.done(), &fetched, &outcomes, start);
        if answer == ExitStatus::Yes {
            self.link(cx, &ready.opened, &outcomes).await?;
        }
        Ok(answer)
    }

    fn installables(&self, cx: &CommandContext) -> Result<Vec<Installable>> {
        let source = match (&self.file, &self.expr) {
            (Some(file), _) => InstallableSource::File(file.clone()),
            (_, Some(code)) => InstallableSource::Expr(code.clone()),
            _ if !self.attr.is_empty() => InstallableSource::File("default.nix".into()),
            _ => {
                let refs = if self.refs.is_empty() {
                    &[".".to_owned()]
                } else {
                    &self.refs[..]
                };
                let dir = store_dir(cx)?;
                let all = refs.iter().map(|text| Installable::parse(&dir, text));
                return Ok(all.collect::<Result<_, _>>()?);
            }
        };
        let attrs = if self.attr.is_empty() {
            &[String::new()]
        } else {
            &self.attr[..]
        };
        let all = attrs
            .iter()
            .map(|attr| Installable::attribute(source.clone(), attr));
        Ok(all.collect::<Result<_, _>>()?)
    }

    /// Finds nix if it is needed: to evaluate, or for a store that cannot build by itself.
    async fn ready(&self, cx: &CommandContext, installables: &[Installable]) -> Result<Ready> {
        let code = |what: &Installable| !matches!(what.source, InstallableSource::Store(_));
        let evaluates = installables.iter().any(code);
        if !evaluates {
            let mut wish = OpenOptions::default();
            self.options.apply(cx, &mut wish);
            let opened = open(cx, &cx.store_uri(), &wish).await?;
            let store = self
                .machines
                .abilities(cx, opened.abilities(), &self.options)?;
            if store.build.is_some() {
                return Ok(Ready {
                    builder: StoreBuilder::new(store),
                    nix: None,
                    opened,
                });
            }
            if opened.local().is_none() {
                bail!(
                    "{} cannot build; name a daemon, such as --store daemon or ssh-ng://host",
                    store.store
                );
            }
        }
        let (nix, opened) = if evaluates {
            self.nix.builder(cx, &self.options).await?
        } else {
            self.nix.builder_of_derivations(cx, &self.options).await?
        };
        let store = nix.store().clone();
        let store = self.machines.abilities(cx, store, &self.options)?;
        Ok(Ready {
            builder: StoreBuilder::new(store),
            nix: Some(nix),
            opened,
        })
    }

    /// What is to be built, each with how it was named.
    async fn targets(
        &self,
        cx: &CommandContext,
        ready: &Ready,
        installables: &[Installable],
        dir: &StoreDir,
        log: &LogPrinter,
    ) -> Result<Vec<(String, Target)>, (String, NixFailure)> {
        let mut all = Vec::new();
        for what in installables {
            let targets = match (&what.source, &ready.nix) {
                (InstallableSource::Store(path), _) => Ok(vec![Target::of(path.clone())]),
                (_, Some(builder)) => {
                    let eval = self.nix.eval();
                    let found = builder.nix().targets(what, dir, &eval, log);
                    or_cancelled(&cx.cancel, found).await
                }
                (_, None) => Err(NixFailure::new(
                    Cause::NoNix,
                    "nix is needed to evaluate it",
                )),
            };
            let targets = targets.map_err(|failure| (what.to_string(), failure))?;
            all.extend(targets.into_iter().map(|target| (what.to_string(), target)));
        }
        Ok(all)
    }

    /// The caches that are asked before anything is built.
    async fn preferred(&self, cx: &CommandContext, pusher: &Pusher) -> Result<Preferred> {
        let mut caches = pusher.caches();
        for uri in &self.from {
            caches.push(open(cx, uri, &OpenOptions::default()).await?.abilities());
        }
        if caches.is_empty() {
            bail!("--prefer-cache knows no cache; name one with --push, --upstream or --from");
        }
        let check = keys::signed(cx, &self.trusted_key, 1)?;
        Ok(Preferred { caches, check })
    }

    /// Builds all together; or, if they are pushed, each by itself, and what is built for it is pushed
    /// as soon as it is built.
    async fn build(
        &self,
        cx: &CommandContext,
        ready: &Ready,
        pusher: &Pusher,
        targets: &[Target],
        log: &LogPrinter,
    ) -> Result<Vec<Outcome>, NixFailure> {
        let mut options = tk_nix::NixBuildOptions::default();
        options.eval = self.nix.eval();
        options.mode = match (self.rebuild, self.repair) {
            (true, _) => BuildMode::Check,
            (_, true) => BuildMode::Repair,
            _ => BuildMode::Normal,
        };
        options.cancel = cx.cancel.clone();
        if pusher.is_empty() {
            let results = ready.builder.build_targets(targets, &options, log).await?;
            return Ok(results.into_iter().map(Outcome::of).collect());
        }
        let (options, failed) = (&options, &std::sync::atomic::AtomicBool::new(false));
        let building = targets.iter().map(|target| async move {
            use std::sync::atomic::Ordering::Relaxed;
            if failed.load(Relaxed) && !self.options.keep_going() {
                let words = "not built, since another build failed; --keep-going goes on";
                return Ok::<_, NixFailure>(Outcome::of(Err(NixFailure::new(
                    Cause::Cancelled,
                    words,
                ))));
            }
            let dir = ready.opened.store().dir().clone();
            let (sink, ended) = BuildTracker::new(dir, |event| log.event(event));
            let building = async move {
                let one = std::slice::from_ref(target);
                ready.builder.build_targets(one, options, &sink).await
            };
            let pushing = pusher.follow(cx, &ready.opened, target.derivation(), ended);
            let (results, pushed) = futures::join!(building, pushing);
            // One that is turned down does not take along what became of the others.
            let result = results.and_then(|mut results| results.remove(0));
            let mut outcome = Outcome { result, pushed };
            match &outcome.result {
                Ok(built) => {
                    let pushed = &mut outcome.pushed;
                    let done = pusher.push(cx, &ready.opened, built, pushed).await;
                    done.map_err(|e| NixFailure::new(Cause::Other, format!("{e:#}")))?;
                }
                Err(_) => failed.store(true, Relaxed),
            }
            Ok(outcome)
        });
        let mut all = stream::iter(building).buffered(AT_ONCE);
        let mut outcomes = Vec::with_capacity(targets.len());
        while let Some(outcome) = all.next().await {
            outcomes.push(outcome?);
        }
        Ok(outcomes)
    }

    /// Makes the links that were asked for.
    async fn link(
        &self,
        cx: &CommandContext,
        opened: &OpenStore,
        outcomes: &[Outcome],
    ) -> Result<()> {
        let Some(link) = &self.out_link else {
            return Ok(());
        };
        let dir = opened.store().dir().clone();
        for (i, outcome) in outcomes.iter().enumerate() {
            let Ok(built) = &outcome.result else { continue };
            for (output, path) in &built.outputs {
                let path = dir.parse(path)?;
                OutLink::new(link, &suffix(i, output))?
                    .make(cx, opened, &path)
                    .await?;
            }
        }
        Ok(())
    }
}

impl Preferred {
    /// Fetches what the caches have.
    async fn fetch(
        &self,
        cx: &CommandContext,
        ready: &Ready,
        targets: &[Target],
    ) -> Result<FetchReport> {
        let (store, check) = (ready.builder.store(), &self.check);
        let paths: Vec<_> = targets.iter().map(|target| target.path.clone()).collect();
        let fetched = tk_builders::fetch(store, &self.caches, &paths, check, Arc::new(())).await;
        let fetched = fetched.context("cannot find out what the caches have")?;
        for (path, error) in &fetched.failed {
            let why = error.to_line();
            cx.ui
                .warn(format_args!("{path} is built, not fetched: {why}"));
        }
        Ok(fetched)
    }

    /// What would be fetched.
    async fn fetchable(&self, ready: &Ready, paths: &[DerivedPath]) -> Result<Fetchable> {
        let (store, check) = (ready.builder.store(), &self.check);
        let found = tk_builders::fetchable(store, &self.caches, paths, check).await;
        found.context("cannot find out what the caches have")
    }
}

/// What Nix adds to the name of a link.
fn suffix(number: usize, output: &str) -> String {
    let number = match number {
        0 => String::new(),
        n => format!("-{n}"),
    };
    match output {
        "out" => number,
        output => format!("{number}-{output}"),
    }
}

/// Targets that are built at once where each is pushed by itself; the daemon has its own limit of
/// builds for each.
const AT_ONCE: usize = 4;

const EXAMPLES: &str = "\
Examples:
  tk-store build .#hello --out-link result
  tk-store build .#hello .#world --push 's3://my-cache?region=eu-central-1' --sign-key my.key
  tk-store build -f default.nix -A tests --json
  tk-store build nixpkgs#hello --prefer-cache --from https://cache.nixos.org
  tk-store build '/nix/store/…-hello.drv^*' --store ssh-ng://builder --json
  tk-store build .#hello --builder 'ssh-ng://me@fast aarch64-linux'
  tk-store build --dry-run /nix/store/…-hello.drv^out,dev";
