//! Pushing what was built, as it is built.

use crate::{
    Context,
    cmd::copy::options::UpstreamArgs,
    open::{self, Opened, Wish, open},
};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{path::PathBuf, sync::Arc};
use tk_narinfo::{Compression, SecretKey};
use tk_nix::BuildResult;
use tk_store::{
    Error, SigCheck, Store,
    copy::{CopyOptions, Outputs, Reach, Upstreams, plan},
};
use tokio::sync::Mutex;

/// Where what was built goes.
#[derive(clap::Args)]
pub struct PushArgs {
    /// Push what was built, and all it refers to, into the cache at URI as soon as it is built (may
    /// be repeated)
    #[arg(long, value_name = "URI")]
    push: Vec<String>,
    /// Sign each path that is pushed with the secret key in FILE (may be repeated)
    #[arg(long, value_name = "FILE", requires = "push")]
    sign_key: Vec<PathBuf>,
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
    #[command(flatten)]
    upstream: UpstreamArgs,
}

impl PushArgs {
    /// Opens the caches, before anything is built that could not be pushed.
    pub async fn open(&self, cx: &Context, source: &Opened) -> Result<Pusher> {
        let mut places = Vec::new();
        for uri in &self.push {
            let wish = Wish {
                write: true,
                compression: self.compression,
                level: self.level,
                ..Wish::default()
            };
            let cache = open(cx, uri, &wish).await?;
            let upstreams = self.upstream.open(cx, &cache).await?;
            places.push(Place {
                cache,
                upstreams,
                turn: Mutex::default(),
            });
        }
        let upstreams = match self.push.is_empty() {
            // Where to look for what need not be built.
            true => self.upstream.caches(cx).await?,
            false => Vec::new(),
        };
        Ok(Pusher {
            source: source.store(),
            places,
            upstreams,
            sign: open::secret_keys(&self.sign_key)?,
        })
    }
}

/// The caches that get what was built.
pub struct Pusher {
    source: Arc<dyn Store>,
    places: Vec<Place>,
    upstreams: Vec<Arc<dyn Store>>,
    sign: Vec<Arc<SecretKey>>,
}

struct Place {
    cache: Opened,
    upstreams: Upstreams,
    /// One push at a time: two closures have much in common, and each push is many at once.
    turn: Mutex<()>,
}

/// What went into one cache.
pub struct Pushed {
    /// The cache.
    pub store: String,
    /// Paths that went, bytes of their NARs, and bytes that were written.
    pub copied: (usize, u64, u64),
    /// Paths that were there already, or are left to upstream caches.
    pub present: usize,
    /// Why it could not be pushed, or not all of it.
    pub errors: Vec<String>,
}

impl Pushed {
    /// For `--json`.
    pub fn to_json(&self) -> Value {
        let (paths, nar_size, written) = self.copied;
        json!({
            "store": self.store,
            "copied": paths,
            "narSize": nar_size,
            "written": written,
            "present": self.present,
            "errors": self.errors,
        })
    }
}

impl Pusher {
    /// Whether there is nowhere to push to.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All caches that may have what need not be built.
    pub fn caches(&self) -> Vec<Arc<dyn Store>> {
        let places = self.places.iter();
        let own = places.flat_map(|place| {
            let upstreams = place.upstreams.caches.iter().cloned();
            std::iter::once(place.cache.store()).chain(upstreams)
        });
        let mut all: Vec<_> = own.chain(self.upstreams.iter().cloned()).collect();
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|cache| seen.insert(cache.to_string()));
        all
    }

    /// Pushes what was built into each cache.
    pub async fn push(&self, cx: &Context, source: &Opened, built: &BuildResult) -> Vec<Pushed> {
        let mut all = Vec::new();
        for place in &self.places {
            let _turn = place.turn.lock().await;
            let pushed = self.push_to(cx, place, source, built).await;
            let pushed = pushed.unwrap_or_else(|error| Pushed {
                store: place.cache.store().to_string(),
                copied: (0, 0, 0),
                present: 0,
                errors: vec![format!("{error:#}")],
            });
            for error in &pushed.errors {
                let store = &pushed.store;
                cx.ui.error(format_args!("cannot push to {store}: {error}"));
            }
            if pushed.copied.0 > 0 {
                let (paths, store) = (crate::ui::paths(pushed.copied.0), &pushed.store);
                cx.ui.say(format_args!("pushed {paths} to {store}"));
            }
            all.push(pushed);
        }
        all
    }

    async fn push_to(
        &self,
        cx: &Context,
        place: &Place,
        source: &Opened,
        built: &BuildResult,
    ) -> Result<Pushed> {
        let cache = place.cache.store();
        let dir = self.source.dir();
        let mut outputs = Outputs::default();
        let mut roots = std::collections::BTreeSet::new();
        for path in built.outputs.values() {
            roots.insert(dir.parse(path)?);
        }
        if let Some(drv) = &built.drv_path {
            let names: Vec<_> = built.outputs.keys().map(String::as_str).collect();
            let wanted = names.join(",").parse()?;
            // What content-addressed outputs turned out to be goes along.
            let found = outputs
                .find(&source.abilities(), &dir.parse(drv)?, &wanted)
                .await;
            found.context("finding what its outputs are")?;
        }
        let options = CopyOptions {
            reach: Reach::Closure,
            check: SigCheck::Skip,
            sign: self.sign.clone(),
            existing: tk_store::Existing::Keep,
            upstreams: place.upstreams.clone(),
        };
        let plan = plan(&*self.source, &*cache, &roots, &options).await?;
        let mut report = plan.run(&self.source, &*cache, Arc::new(())).await?;
        let target = place.cache.abilities();
        outputs
            .copy(&target, &SigCheck::Skip, &self.sign, &mut report)
            .await;
        for warning in &report.warnings {
            cx.ui.warn(format_args!("{warning}"));
        }
        let failed = report.failed.iter().map(|(_, e): &(_, Error)| e.to_line());
        Ok(Pushed {
            store: cache.to_string(),
            copied: (
                report.copied.len(),
                report.copied.iter().map(|info| info.nar_size).sum(),
                report.written,
            ),
            present: report.present.len() + report.upstream.len(),
            errors: failed.collect(),
        })
    }
}
