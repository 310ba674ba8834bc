//! What push, pull and copy have in common.

use crate::{
    Context, keys,
    open::{Opened, Wish, open},
    paths::store_path,
    ui,
};
use anyhow::{Context as _, Result, bail};
use std::sync::Arc;
use tk_narinfo::{SecretKey, realisation::legacy};
use tk_path::{OutputsSpec, StorePath};
use tk_store::{
    Existing, SigCheck, Store,
    copy::{CopyReport, Outputs, Plan, Unanswered, Upstreams, logs},
};

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
    pub async fn open(&self, cx: &Context, dst: &Opened) -> Result<Upstreams> {
        let none = self.upstream.is_empty() && self.upstream_key.is_empty();
        if !none && !is_cache(dst) {
            bail!(
                "{} is no binary cache: all that a path refers to must be in it, \
                 so nothing can be left to an --upstream",
                dst.store()
            );
        }
        let mut upstreams = Upstreams {
            unanswered: match self.upstream_optional {
                true => Unanswered::Copy,
                false => Unanswered::Fail,
            },
            ..Upstreams::default()
        };
        for key in &self.upstream_key {
            upstreams.keys.insert(keys::public(key)?);
        }
        for uri in &self.upstream {
            match open(cx, uri, &Wish::default()).await {
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
    pub async fn caches(&self, cx: &Context) -> Result<Vec<Arc<dyn Store>>> {
        let mut caches = Vec::new();
        for uri in &self.upstream {
            caches.push(open(cx, uri, &Wish::default()).await?.store());
        }
        Ok(caches)
    }
}

/// What goes again, and what goes along.
#[derive(clap::Args)]
pub struct BesideArgs {
    /// Send also what is there already, and replace it: its content and what is known of it
    #[arg(long, visible_alias = "force")]
    repair: bool,
    /// Take along the build logs of the paths' derivations, as far as there are any
    #[arg(long)]
    logs: bool,
}

impl BesideArgs {
    /// What becomes of paths that are there.
    pub fn existing(&self) -> Existing {
        match self.repair {
            true => Existing::Replace,
            false => Existing::Keep,
        }
    }
}

/// Paths to copy, with what says that some of them are outputs of derivations.
#[derive(Default)]
pub struct Sources {
    /// In the order of the arguments.
    pub paths: Vec<StorePath>,
    pub outputs: Outputs,
}

impl Sources {
    /// What `texts` name in `src`.
    pub async fn find(src: &Opened, texts: &[String]) -> Result<Self> {
        let mut sources = Sources::default();
        for text in texts {
            if !sources.add_output(src, text).await? {
                sources.paths.push(store_path(src, text)?);
            }
        }
        Ok(sources)
    }

    /// Adds what `text` names if it is of the kind `DRV^OUT`; whether it is.
    pub async fn add_output(&mut self, src: &Opened, text: &str) -> Result<bool> {
        let abilities = || src.abilities();
        if let Ok(id) = text.parse::<legacy::DrvOutput>() {
            let found = self.outputs.find_legacy(&abilities(), &id).await?;
            let unknown = || format!("{} does not know what {id} is", src.store());
            self.paths.push(found.with_context(unknown)?);
            return Ok(true);
        }
        let Some((drv, wanted)) = text.rsplit_once('^') else {
            return Ok(false);
        };
        // A file may be called so.
        if std::fs::symlink_metadata(text).is_ok() {
            return Ok(false);
        }
        let wanted: OutputsSpec = wanted.parse().with_context(|| format!("'{text}'"))?;
        let drv = store_path(src, drv)?;
        let found = self.outputs.find(&abilities(), &drv, &wanted).await;
        let found = found.with_context(|| format!("cannot tell what {text} is"))?;
        self.paths.extend(found);
        Ok(true)
    }
}

/// What goes along with the paths of a plan.
pub struct Beside<'a> {
    pub args: &'a BesideArgs,
    pub outputs: Outputs,
    pub check: SigCheck,
    pub sign: Vec<Arc<SecretKey>>,
}

impl Beside<'_> {
    /// Copies by `plan`, and after it what goes along.
    pub async fn run(
        self,
        cx: &Context,
        verb: &'static str,
        plan: Plan,
        (src, dst): (&Opened, &Opened),
    ) -> Result<CopyReport> {
        tell_decisions(cx, &plan, src);
        let dir = src.store().dir().clone();
        let meter = Arc::new(
            cx.ui
                .progress(verb, &dir, plan.missing.len(), plan.nar_size()),
        );
        let derivers = plan.derivers.clone();
        let report = plan.run(&src.store(), &*dst.store(), meter.clone()).await;
        meter.clear();
        let mut report = report?;
        let dst = dst.abilities();
        let told = self
            .outputs
            .copy(&dst, &self.check, &self.sign, &mut report);
        told.await;
        if self.args.logs {
            logs(&src.abilities(), &dst, &derivers, &mut report).await;
        }
        Ok(report)
    }
}

/// Says where each path comes from, and why the others stay where they are.
fn tell_decisions(cx: &Context, plan: &Plan, src: &Opened) {
    let from = src.store();
    for info in &plan.missing {
        let why = match plan.replaced.contains(&info.path) {
            true => "to be replaced",
            false => "missing",
        };
        let size = ui::size(info.nar_size);
        let path = &info.path;
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

/// Whether `store` takes what it is given, without asking for signatures.
pub fn is_cache(store: &Opened) -> bool {
    !matches!(
        store,
        Opened::Local(_) | Opened::Daemon(_) | Opened::Serve(_)
    )
}
