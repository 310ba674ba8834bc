//! Pushing what was built, as it is built.

use crate::{
    CommandContext,
    copying::{UpstreamArgs, demand, keys_for, warn_unsigned},
    failures,
    keys::SignKeyArgs,
    open::{OpenOptions, OpenStore, open},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tk_narinfo::{Compression, SecretKey, build_result::BuildStatus};
use tk_nix::NixBuildResult;
use tk_path::{OutputName, OutputsSpec, StorePath};
use tk_store::{
    Abilities, Error, SigCheck, Store,
    copy::{CopyOptions, OutputPaths, Reach, Upstreams, plan, sign_present},
};
use tokio::sync::{Mutex, mpsc::UnboundedReceiver};

/// Where what was built goes.
#[derive(clap::Args)]
pub struct PushArgs {
    /// Push what is built, what had to be built for it, and all they refer to, into the cache at URI,
    /// each as soon as it is built (may be repeated)
    #[arg(long, value_name = "URI")]
    push: Vec<String>,
    /// Push only what was asked for and all it refers to, not what had to be built just to build it
    #[arg(long, requires = "push")]
    push_results_only: bool,
    #[command(flatten)]
    sign: SignKeyArgs,
    /// Compression of what is pushed [default: the URI's, or zstd]
    #[arg(long, value_name = "NAME", requires = "push")]
    compression: Option<Compression>,
    /// Level of the compression
    #[arg(
        long,
        value_name = "N",
        requires = "push",
        allow_negative_numbers = true
    )]
    level: Option<i32>,
    /// Push also into a store that is not a cache what no trusted key has signed
    #[arg(long, requires = "push")]
    no_check_sigs: bool,
    #[command(flatten)]
    upstream: UpstreamArgs,
}

impl PushArgs {
    /// Opens the caches, before anything is built that could not be pushed.
    /// With `dry_run` nothing is made that is not there.
    pub async fn open(
        &self,
        cx: &CommandContext,
        source: &OpenStore,
        dry_run: bool,
    ) -> Result<Pusher> {
        ensure!(
            !self.push.is_empty() || !self.sign.is_given(),
            "--sign-key is for what is pushed; say where to with --push"
        );
        let mut places = Vec::new();
        let sign = if self.push.is_empty() {
            Vec::new()
        } else {
            self.sign.keys()?
        };
        for uri in &self.push {
            let mut wish = OpenOptions::default();
            wish.write = !dry_run;
            wish.dry_run = dry_run;
            wish.compression = self.compression;
            wish.level = self.level;
            let cache = open(cx, uri, &wish).await?;
            let upstreams = self.upstream.open(cx, &cache).await?;
            places.push(PushTarget {
                check: if self.no_check_sigs {
                    SigCheck::Skip
                } else {
                    demand(cx, &cache, &[], 1)?
                },
                sign: keys_for(&cache, &sign),
                cache,
                upstreams,
                told_unsigned: AtomicBool::new(false),
                turn: Mutex::default(),
            });
        }
        let upstreams = if self.push.is_empty() {
            // Where to look for what need not be built.
            self.upstream.caches(cx).await?
        } else {
            Vec::new()
        };
        Ok(Pusher {
            source: source.store(),
            places,
            upstreams,
            results_only: self.push_results_only,
        })
    }
}

/// The caches that get what was built.
pub struct Pusher {
    source: Arc<dyn Store>,
    places: Vec<PushTarget>,
    upstreams: Vec<Arc<dyn Store>>,
    results_only: bool,
}

struct PushTarget {
    cache: OpenStore,
    upstreams: Upstreams,
    check: SigCheck,
    sign: Vec<Arc<SecretKey>>,
    /// Whether it was said that readers will not take what is pushed there.
    told_unsigned: AtomicBool,
    /// One push at a time: two closures have much in common, and each push is many at once.
    turn: Mutex<()>,
}

/// What went into one cache.
#[derive(Default)]
pub struct Pushed {
    /// The cache.
    pub store: String,
    /// Paths that went, each with the bytes of its NAR.
    pub copied: BTreeMap<StorePath, u64>,
    /// Bytes that were written.
    pub written: u64,
    /// Paths that were there already, or are left to upstream caches.
    pub present: BTreeSet<StorePath>,
    /// Why something could not be pushed.
    pub errors: Vec<String>,
}

impl Pushed {
    /// For `--json`.
    pub fn to_json(&self) -> Value {
        json!({
            "store": self.store,
            "copied": self.copied.len(),
            "narSize": self.copied.values().sum::<u64>(),
            "written": self.written,
            "present": self.present.len(),
            "errors": self.errors,
        })
    }

    /// With what went there after.
    fn and(&mut self, later: Pushed) {
        self.store = later.store;
        self.copied.extend(later.copied);
        self.written += later.written;
        self.present.extend(later.present);
        self.present.retain(|path| !self.copied.contains_key(path));
        for error in later.errors {
            if !self.errors.contains(&error) {
                self.errors.push(error);
            }
        }
    }
}

impl Pusher {
    /// Whether there is nowhere to push to.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All caches that may have what need not be built.
    pub fn caches(&self) -> Vec<Abilities> {
        let places = self.places.iter();
        let own = places.flat_map(|place| {
            let upstreams = place.upstreams.caches.iter().cloned();
            std::iter::once(place.cache.abilities()).chain(upstreams.map(Abilities::of))
        });
        let upstreams = self.upstreams.iter().cloned().map(Abilities::of);
        let mut all: Vec<_> = own.chain(upstreams).collect();
        let mut seen = BTreeSet::new();
        all.retain(|cache| seen.insert(cache.store.to_string()));
        all
    }

    /// Pushes what is `built` for `target` as it is built, and `target` itself when it is done.
    pub async fn follow(
        &self,
        cx: &CommandContext,
        source: &OpenStore,
        target: Option<&StorePath>,
        mut built: UnboundedReceiver<StorePath>,
    ) -> Vec<Pushed> {
        let mut all = self.nothing();
        let mut late = BTreeSet::new();
        while let Some(drv) = built.recv().await {
            // The target itself is pushed as what was asked for.
            if self.results_only || target == Some(&drv) {
                continue;
            }
            if !self.push_built(cx, source, &drv, &mut all).await {
                late.insert(drv);
            }
        }
        for drv in late {
            // It has failed, or came from another machine after its build ended.
            self.push_built(cx, source, &drv, &mut all).await;
        }
        all
    }

    /// Pushes those outputs of `drv` that are there; whether there were any.
    async fn push_built(
        &self,
        cx: &CommandContext,
        source: &OpenStore,
        drv: &StorePath,
        all: &mut [Pushed],
    ) -> bool {
        match self.there(source, drv).await {
            Ok(outputs) if outputs.is_empty() => false,
            Ok(outputs) => {
                let pushed = self.push_outputs(cx, source, Some(drv), &outputs).await;
                merge(all, pushed);
                true
            }
            Err(error) => {
                let line = error.to_line();
                let words = format_args!("{drv} was built but not pushed: {line}");
                cx.ui.error(words);
                for pushed in all {
                    pushed.errors.push(words.to_string());
                }
                true
            }
        }
    }

    /// The outputs of `drv` that are there.
    async fn there(
        &self,
        source: &OpenStore,
        drv: &StorePath,
    ) -> Result<BTreeMap<OutputName, StorePath>, Error> {
        let outputs = source.abilities().output_map(drv).await?;
        let paths: BTreeSet<_> = outputs.values().flatten().cloned().collect();
        let there = self.source.valid(&paths).await?;
        let there = outputs
            .into_iter()
            .filter_map(|(name, path)| Some((name, path.filter(|p| there.contains(p))?)));
        Ok(there.collect())
    }

    /// Pushes what was built into each cache, after what went there before.
    pub async fn push(
        &self,
        cx: &CommandContext,
        source: &OpenStore,
        built: &NixBuildResult,
        before: &mut [Pushed],
    ) -> Result<()> {
        let dir = self.source.dir();
        let outputs = built.outputs.iter().map(|(name, path)| {
            let name = name.parse().map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
            Ok((name, dir.parse(path)?))
        });
        let outputs = outputs.collect::<Result<BTreeMap<_, _>>>()?;
        let drv = built.drv_path.as_deref().map(|drv| dir.parse(drv));
        let drv = drv.transpose()?;
        // A build makes all outputs, whichever were asked for.
        let is_built = built.status == BuildStatus::Built.name() && !self.results_only;
        let outputs = match &drv {
            Some(drv) if is_built => {
                let mut all = self.there(source, drv).await?;
                all.extend(outputs);
                all
            }
            _ => outputs,
        };
        let pushed = self.push_outputs(cx, source, drv.as_ref(), &outputs).await;
        merge(before, pushed);
        Ok(())
    }

    /// What went into each cache before anything did.
    fn nothing(&self) -> Vec<Pushed> {
        let places = self.places.iter().map(|place| Pushed {
            store: place.cache.store().to_string(),
            ..Pushed::default()
        });
        places.collect()
    }

    async fn push_outputs(
        &self,
        cx: &CommandContext,
        source: &OpenStore,
        drv: Option<&StorePath>,
        outputs: &BTreeMap<OutputName, StorePath>,
    ) -> Vec<Pushed> {
        let mut all = self.nothing();
        for (place, all) in self.places.iter().zip(&mut all) {
            let _turn = place.turn.lock().await;
            let pushed = tokio::select! {
                biased;
                pushed = self.push_to(cx, place, source, drv, outputs) => pushed,
                () = cx.cancel.cancelled() => Err(anyhow::anyhow!("it was given up")),
            };
            match pushed {
                Ok(pushed) => *all = pushed,
                Err(error) => all.errors.push(format!("{error:#}")),
            }
            for error in &all.errors {
                let store = &all.store;
                cx.ui.error(format_args!("cannot push to {store}: {error}"));
            }
            if !all.copied.is_empty() {
                let (paths, store) = (crate::ui::paths(all.copied.len()), &all.store);
                cx.ui.say(format_args!("pushed {paths} to {store}"));
            }
        }
        all
    }

    async fn push_to(
        &self,
        cx: &CommandContext,
        place: &PushTarget,
        source: &OpenStore,
        drv: Option<&StorePath>,
        built: &BTreeMap<OutputName, StorePath>,
    ) -> Result<Pushed> {
        let cache = place.cache.store();
        let mut outputs = OutputPaths::default();
        let roots = built.values().cloned().collect();
        if let Some(drv) = drv {
            let wanted = OutputsSpec::Names(built.keys().cloned().collect());
            // What content-addressed outputs turned out to be goes along.
            let found = outputs.find(&source.abilities(), drv, &wanted).await;
            found.context("finding what its outputs are")?;
        }
        let mut options = CopyOptions::new(place.check.clone());
        options.reach = Reach::Closure;
        options.sign = place.sign.clone();
        options.upstreams = place.upstreams.clone();
        let plan = plan(&*self.source, &*cache, &roots, &options).await?;
        if !plan.unsigned.is_empty() && !place.told_unsigned.swap(true, Ordering::Relaxed) {
            warn_unsigned(cx, &place.cache, plan.unsigned.len());
        }
        let signatures = plan.signatures.clone();
        let mut report = plan.run(&self.source, &*cache, Arc::new(())).await?;
        let target = place.cache.abilities();
        sign_present(&target, signatures, &mut report).await;
        outputs
            .copy(&target, &place.check, &place.sign, &mut report)
            .await;
        for warning in &report.warnings {
            cx.ui.warn(format_args!("{warning}"));
        }
        let failed = report.failed.iter().map(|(path, error)| (path, error));
        let failed = failures::lines(failed);
        let copied = report.copied.iter();
        Ok(Pushed {
            store: cache.to_string(),
            errors: failed,
            copied: copied
                .map(|info| (info.path.clone(), info.nar_size))
                .collect(),
            written: report.written,
            present: report.present.into_iter().chain(report.upstream).collect(),
        })
    }
}

fn merge(all: &mut [Pushed], later: Vec<Pushed>) {
    for (pushed, later) in all.iter_mut().zip(later) {
        pushed.and(later);
    }
}
