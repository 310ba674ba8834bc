//! What push, pull and copy have in common: their arguments, and the copy itself.

mod report;

use crate::{
    CommandContext, ExitStatus,
    keys::{self, SignKeyArgs},
    open::{OpenOptions, OpenStore, open, open_several},
    paths::{NamedPaths, PathArgs},
    ui,
};
use anyhow::{Context as _, Result, bail};
use std::{collections::BTreeSet, num::NonZeroUsize, sync::Arc, time::Instant};
use tk_narinfo::{Compression, SecretKey};
use tk_open::keys::read_public_key;
use tk_path::StorePath;
use tk_store::{
    Error, Existing, SigCheck, Store, TreeStore, closure,
    copy::{CopyOptions, CopyReport, Plan, Reach, Unanswered, Upstreams, logs, plan, sign_present},
    log::{Level, LogEvent, strip_ansi},
};

/// What goes from where to where.
#[derive(clap::Args)]
pub struct CopyArgs {
    #[command(flatten)]
    pub paths: PathArgs,
    /// The store that has the paths [default: --store]; may be repeated: each path comes from the
    /// first that has it, by the priority of the caches and then in this order
    #[arg(long, value_name = "URI")]
    pub from: Vec<String>,
    /// The store that gets the paths [default: --store]
    #[arg(long, value_name = "URI")]
    pub to: Option<String>,
    /// Copy only the paths given, not what they refer to
    #[arg(long, visible_alias = "no-recursive")]
    pub no_closure: bool,
    #[command(flatten)]
    beside: CopyExtrasArgs,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Paths worked on at once [default: one for each processor]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

/// What the destination demands of signatures.
#[derive(clap::Args)]
pub struct TrustArgs {
    /// Trust the public key, name:base64 or a file (may be repeated)
    /// [default: trusted-public-keys of nix.conf]
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    /// How many trusted keys must have signed each path
    #[arg(long, value_name = "N", default_value_t = 1)]
    sigs_needed: usize,
    /// Take paths without a trusted signature
    #[arg(long, conflicts_with = "trusted_key")]
    no_check_sigs: bool,
}

impl TrustArgs {
    /// The demand on what is copied to `dst`.
    fn check(&self, cx: &CommandContext, verb: &CopyVerb, dst: &OpenStore) -> Result<SigCheck> {
        let unsigned = self.no_check_sigs || !keys::are_required(cx, &self.trusted_key, dst);
        match (unsigned, verb.checks_for_caches) {
            (true, _) => Ok(SigCheck::Skip),
            (false, true) => keys::signed(cx, &self.trusted_key, self.sigs_needed),
            (false, false) => demand(cx, dst, &self.trusted_key, self.sigs_needed),
        }
    }
}

/// What is demanded of what goes into `dst`. A binary cache takes what it is given: those who read it
/// ask for signatures.
pub fn demand(
    cx: &CommandContext,
    dst: &OpenStore,
    keys: &[String],
    needed: usize,
) -> Result<SigCheck> {
    if dst.cache().is_some() || !keys::are_required(cx, keys, dst) {
        Ok(SigCheck::Skip)
    } else {
        keys::signed(cx, keys, needed)
    }
}

/// Keys for what goes into `dst`: those that are `given`, and those that the cache signs with by
/// itself.
pub fn keys_for(dst: &OpenStore, given: &[Arc<SecretKey>]) -> Vec<Arc<SecretKey>> {
    given.iter().chain(dst.signing_keys()).cloned().collect()
}

/// Says that `paths` paths of the cache `dst` have nobody who vouches for them.
pub fn warn_unsigned(cx: &CommandContext, dst: &OpenStore, paths: usize) {
    if paths == 0 || dst.cache().is_none() {
        return;
    }
    let (paths, store) = (ui::paths(paths), dst.store());
    cx.ui.warn(format_args!(
        "{paths} in {store} without any signature: nobody takes them who checks signatures; \
         do this again with --sign-key FILE, which signs what is there already, too"
    ));
}

/// How what is new is written to a cache.
#[derive(clap::Args)]
pub struct WriteArgs {
    #[command(flatten)]
    pub sign: SignKeyArgs,
    /// Compression of new NARs of a cache: none, xz, zstd, bzip2, gzip or br
    /// [default: the URI's, or zstd]
    #[arg(long, value_name = "NAME")]
    compression: Option<Compression>,
    /// Level of the compression [default: the compression's own]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    level: Option<i32>,
    /// Write a listing (.ls) beside each new NAR of a cache
    #[arg(long)]
    listing: bool,
    #[command(flatten)]
    upstream: UpstreamArgs,
}

/// Which command it is.
pub struct CopyVerb {
    /// `push`.
    pub present: &'static str,
    /// `pushed`.
    pub past: &'static str,
    /// Whether signatures are demanded also of what goes into a binary cache.
    pub checks_for_caches: bool,
}

/// A copy between two open stores.
pub struct CopyJob<'a> {
    pub src: OpenStore,
    /// Files as they lie, before `src`.
    trees: Option<Arc<TreeStore>>,
    pub dst: OpenStore,
    args: &'a CopyArgs,
    verb: &'a CopyVerb,
    options: CopyOptions,
    /// Whether listings are wanted.
    listing: bool,
    start: Instant,
}

impl CopyArgs {
    /// Opens the stores: the source at `from`, as `source` wants it, and the destination.
    pub async fn open<'a>(
        &'a self,
        cx: &CommandContext,
        verb: &'a CopyVerb,
        (from, source): (Vec<String>, OpenOptions),
        write: Option<&WriteArgs>,
        trust: &TrustArgs,
        reach: Reach,
    ) -> Result<CopyJob<'a>> {
        let start = Instant::now();
        let sign = write.map(|write| write.sign.keys()).transpose()?;
        // Before anything is opened: what is no key is noticed first.
        keys::policy(cx, &trust.trusted_key, trust.sigs_needed)?;
        let to = self.to.clone().unwrap_or_else(|| cx.store_uri());
        let src = open_several(cx, &from, &source).await?;
        let mut wish = OpenOptions::default();
        wish.from_afar = src.is_far();
        wish.write = !self.dry_run;
        wish.dry_run = self.dry_run;
        wish.compression = write.and_then(|write| write.compression);
        wish.level = write.and_then(|write| write.level);
        wish.jobs = self.jobs;
        wish.incomplete = self.no_closure;
        wish.listing = write.is_some_and(|write| write.listing);
        let dst = open(cx, &to, &wish).await?;
        let check = trust.check(cx, verb, &dst)?;
        let mut options = CopyOptions::new(check);
        options.reach = if self.no_closure { Reach::Roots } else { reach };
        options.sign = keys_for(&dst, &sign.unwrap_or_default());
        options.existing = self.beside.existing();
        options.upstreams = match write {
            Some(write) => write.upstream.open(cx, &dst).await?,
            None => Upstreams::default(),
        };
        Ok(CopyJob {
            src: src.preferring(&options.check),
            trees: None,
            dst,
            args: self,
            verb,
            options,
            listing: wish.listing,
            start,
        })
    }
}

impl CopyJob<'_> {
    /// Lets the destination fetch what others have of `roots` and all that they refer to.
    async fn substitute(
        &self,
        cx: &CommandContext,
        src: &dyn Store,
        roots: &BTreeSet<StorePath>,
    ) -> Result<()> {
        let dst = self.dst.abilities();
        let Some(fetching) = dst.substitutes else {
            bail!(
                "{} has no substituters of its own: --substitute-on-destination is for daemons \
                 and stores over ssh",
                dst.store
            );
        };
        let wanted = match self.options.reach {
            Reach::Roots => roots.clone(),
            _ => {
                let found = closure(src, roots.iter().cloned()).await?;
                found.infos.into_keys().collect()
            }
        };
        let ui = cx.ui;
        let log = move |event: LogEvent| {
            if let LogEvent::Message { level, text } = event
                && level <= Level::Notice
            {
                ui.say(strip_ansi(&text));
            }
        };
        fetching.valid_or_fetched(&wanted, &log).await?;
        Ok(())
    }

    /// Copies files as well, as they lie. The store behind them is the source.
    pub fn with_trees(mut self, trees: Arc<TreeStore>) -> Self {
        self.trees = Some(trees);
        self
    }

    /// What is copied from.
    fn from(&self) -> Arc<dyn Store> {
        match &self.trees {
            Some(trees) => trees.clone(),
            None => self.src.store(),
        }
    }

    /// Copies what is missing of `sources`; in a dry run only says what would go, and gives `None`.
    pub async fn run(
        &self,
        cx: &CommandContext,
        sources: NamedPaths,
    ) -> Result<Option<CopyReport>> {
        let (src, dst) = (self.from(), self.dst.store());
        let failed = || format!("cannot {} from {src} to {dst}", self.verb.present);
        let roots: BTreeSet<_> = sources.paths.iter().cloned().collect();
        if self.args.beside.substitute_on_destination && !self.args.dry_run {
            let fetched = self.substitute(cx, &*src, &roots).await;
            fetched.with_context(failed)?;
        }
        let plan = plan(&*src, &*dst, &roots, &self.options);
        let plan = cx.ui.asking(&ui::paths(roots.len()), plan).await;
        let plan = plan.with_context(failed)?;
        if self.args.dry_run {
            warn_unsigned(cx, &self.dst, plan.unsigned.len());
            report::tell_plan(cx, &plan, &*dst, self.args.json)?;
            return Ok(None);
        }
        let (derivers, signatures) = (plan.derivers.clone(), plan.signatures.clone());
        warn_unsigned(cx, &self.dst, plan.unsigned.len());
        let mut report = self.transfer(cx, plan).await.with_context(failed)?;
        self.try_other_sources(cx, &mut report).await?;
        self.tell_listings(cx, &report);
        let dst = self.dst.abilities();
        sign_present(&dst, signatures, &mut report).await;
        let CopyOptions { check, sign, .. } = &self.options;
        sources.outputs.copy(&dst, check, sign, &mut report).await;
        if self.args.beside.logs {
            logs(&self.src.abilities(), &dst, &derivers, &mut report).await;
        }
        Ok(Some(report))
    }

    /// Copies by `plan`.
    async fn transfer(&self, cx: &CommandContext, plan: Plan) -> Result<CopyReport> {
        let src = self.from();
        self.tell_decisions(cx, &plan);
        let (verb, paths, size) = (self.verb.present, plan.missing.len(), plan.nar_size());
        let meter = Arc::new(cx.ui.progress(verb, src.dir(), paths, size));
        let report = plan.run(&src, &*self.dst.store(), meter.clone()).await;
        meter.clear();
        Ok(report?)
    }

    /// Where one of several sources gave what was not as it should be, takes it from the next that has
    /// it, as nix does.
    async fn try_other_sources(&self, cx: &CommandContext, report: &mut CopyReport) -> Result<()> {
        let Some((stores, _)) = self.src.members() else {
            return Ok(());
        };
        loop {
            let is_of_source = |error: &Error| {
                !matches!(
                    error,
                    Error::Untrusted { .. } | Error::MissingReference { .. }
                )
            };
            let failed = report.failed.iter();
            let barred = failed.filter(|(path, error)| is_of_source(error) && stores.bar(path));
            if barred.count() == 0 {
                return Ok(());
            }
            let roots = report.failed.iter().map(|(path, _)| path.clone()).collect();
            let plan = plan(&*self.from(), &*self.dst.store(), &roots, &self.options).await;
            // No other one has it.
            let Ok(plan) = plan else { return Ok(()) };
            cx.ui.warn(format_args!(
                "{} could not be taken from the first source that has them, and are tried from the next",
                ui::paths(roots.len())
            ));
            let later = self.transfer(cx, plan).await?;
            report.copied.extend(later.copied);
            report.replaced.extend(later.replaced);
            report.written += later.written;
            report.failed = later.failed;
            report.warnings.extend(later.warnings);
        }
    }

    /// Says where each path comes from, and why the others stay where they are.
    fn tell_decisions(&self, cx: &CommandContext, plan: &Plan) {
        for info in &plan.missing {
            let why = if plan.replaced.contains(&info.path) {
                "to be replaced"
            } else {
                "missing"
            };
            let (path, size) = (&info.path, ui::size(info.nar_size));
            let file = self.trees.as_ref().and_then(|trees| trees.file(path));
            let from = match (file, self.src.members()) {
                (Some(file), _) => file.display().to_string(),
                (None, Some((several, stores))) => {
                    let origin = several.origin(path).and_then(|index| stores.get(index));
                    origin.unwrap_or(&self.src).store().to_string()
                }
                (None, None) => self.src.store().to_string(),
            };
            cx.ui
                .detail(format_args!("{path}: {why}, {size} from {from}"));
        }
        for (paths, why) in [
            (&plan.present, "there already"),
            (&plan.upstream, "left to an upstream cache"),
        ] {
            for path in paths {
                cx.ui.detail(format_args!("{path}: {why}"));
            }
        }
    }

    /// Says which listings that were wanted (`--listing`) are not written.
    fn tell_listings(&self, cx: &CommandContext, report: &CopyReport) {
        if !self.listing {
            return;
        }
        if self.dst.cache().is_none() {
            let store = self.dst.store();
            cx.ui.warn(format_args!(
                "only binary caches have listings; {store} gets none"
            ));
        } else if !report.present.is_empty() {
            let paths = ui::paths(report.present.len());
            cx.ui.warn(format_args!(
                "listings of {paths} that were there already are not written; --repair writes them"
            ));
        }
    }

    /// Says what was copied; the answer that follows.
    pub fn tell(
        &self,
        cx: &CommandContext,
        report: &CopyReport,
        roots: &[StorePath],
    ) -> Result<ExitStatus> {
        let (dst, json) = (self.dst.store(), self.args.json);
        report::tell_report(cx, self.verb.past, report, roots, &*dst, self.start, json)
    }
}

/// What is left to other caches.
#[derive(clap::Args)]
pub struct UpstreamArgs {
    /// Leave out what the cache at URI has: those who read the destination use both, such as
    /// https://cache.nixos.org (may be repeated)
    #[arg(long, value_name = "URI")]
    upstream: Vec<String>,
    /// Leave out what KEY has validly signed, the public key of such a cache (name:base64 or a
    /// file), without asking anybody (may be repeated)
    #[arg(long, value_name = "KEY")]
    upstream_key: Vec<String>,
    /// If an --upstream cannot be asked, warn and copy what it may have, instead of stopping
    #[arg(long, requires = "upstream")]
    upstream_optional: bool,
}

impl UpstreamArgs {
    /// Opens the caches. `dst` is where the copy goes.
    pub async fn open(&self, cx: &CommandContext, dst: &OpenStore) -> Result<Upstreams> {
        let none = self.upstream.is_empty() && self.upstream_key.is_empty();
        if !none && dst.cache().is_none() {
            bail!(
                "{} is not a binary cache: all that a path refers to must be in it, \
                 so nothing can be left to an --upstream",
                dst.store()
            );
        }
        let mut upstreams = Upstreams {
            unanswered: if self.upstream_optional {
                Unanswered::Copy
            } else {
                Unanswered::Fail
            },
            ..Upstreams::default()
        };
        for key in &self.upstream_key {
            upstreams.keys.insert(read_public_key(key)?);
        }
        for uri in &self.upstream {
            match open(cx, uri, &OpenOptions::default()).await {
                Ok(opened) => upstreams.caches.push(opened.store()),
                Err(error) if self.upstream_optional => {
                    cx.ui.warn(format_args!("{error:#}; nothing is left to it"))
                }
                Err(error) => return Err(error),
            }
        }
        Ok(upstreams)
    }
}

impl UpstreamArgs {
    /// The caches alone, as places where paths may be found.
    pub async fn caches(&self, cx: &CommandContext) -> Result<Vec<Arc<dyn Store>>> {
        let mut caches = Vec::new();
        for uri in &self.upstream {
            caches.push(open(cx, uri, &OpenOptions::default()).await?.store());
        }
        Ok(caches)
    }
}

/// What goes again, and what goes along.
#[derive(clap::Args)]
pub struct CopyExtrasArgs {
    /// Send also what is there already, and replace it: its content and what is known of it
    #[arg(long, visible_alias = "force")]
    repair: bool,
    /// Take along the build logs of the paths' derivations, as far as there are any
    #[arg(long)]
    logs: bool,
    /// Let the destination fetch from its own substituters what they have, and send the rest. For
    /// daemons and stores over ssh
    #[arg(long)]
    substitute_on_destination: bool,
}

impl CopyExtrasArgs {
    /// What becomes of paths that are there.
    pub fn existing(&self) -> Existing {
        if self.repair {
            Existing::Replace
        } else {
            Existing::Keep
        }
    }
}
