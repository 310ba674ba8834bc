use super::copy::{
    self,
    options::{Beside, BesideArgs, Sources},
};
use crate::{
    Answer, Context, keys,
    open::{Wish, open},
    out_link::OutLink,
    ui,
};
use anyhow::{Context as _, Result};
use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, time::Instant};
use tk_path::StorePath;
use tk_store::{
    SigCheck,
    copy::{CopyOptions, Reach, plan},
};

/// Fetch paths and all they refer to from a binary cache
///
/// Signatures are checked against the trusted keys, content against its hash, before anything
/// becomes visible. What the store has already is not fetched.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Pull {
    /// Store paths, or outputs of derivations: DRV^OUT
    #[arg(required = true, value_name = "STOREPATH")]
    paths: Vec<String>,
    /// The cache, such as file:///srv/cache
    #[arg(long, value_name = "URI")]
    from: String,
    /// The store that gets the paths [default: --store]
    #[arg(long, value_name = "URI")]
    to: Option<String>,
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
    /// Fetch only the paths given, not what they refer to (which must be there)
    #[arg(long, visible_alias = "no-recursive")]
    no_closure: bool,
    /// Make LINK a link to the path, and a root: as long as it is there, the path is not
    /// collected as garbage (with several paths: LINK, LINK-1, …)
    #[arg(long, short, value_name = "LINK")]
    out_link: Option<PathBuf>,
    #[command(flatten)]
    beside: BesideArgs,
    /// Say what would be fetched, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Paths worked on at once [default: one for each processor]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

impl Pull {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let start = Instant::now();
        let check = match self.no_check_sigs {
            true => SigCheck::Skip,
            false => {
                let policy = keys::policy(cx, &self.trusted_key, self.sigs_needed)?;
                SigCheck::Require(Arc::new(policy))
            }
        };
        let src = open(cx, &self.from, &Wish::default()).await?;
        let to = self.to.clone().unwrap_or_else(|| cx.store_uri());
        let wish = Wish {
            write: !self.dry_run,
            jobs: self.jobs,
            from_afar: src.is_far(),
            ..Wish::default()
        };
        let opened = open(cx, &to, &wish).await?;
        let Sources {
            paths: roots,
            outputs,
        } = Sources::find(&src, &self.paths).await?;
        let links = self.links(&roots)?;
        if !self.dry_run {
            // What is there already must still be there when the link is.
            for (_, path) in &links {
                OutLink::prepare(&opened, path).await?;
            }
        }
        let options = CopyOptions {
            reach: if self.no_closure {
                Reach::Roots
            } else {
                Reach::Missing
            },
            existing: self.beside.existing(),
            ..CopyOptions::new(check)
        };
        let dst = opened.store();
        let all = roots.iter().cloned().collect();
        let from = src.store();
        let plan = plan(&*from, &*dst, &all, &options);
        let plan = cx.ui.asking(&ui::paths(all.len()), plan).await;
        let plan = plan.with_context(|| format!("cannot pull from {}", src.store()))?;
        if self.dry_run {
            return copy::tell_plan(cx, &plan, &*dst, self.json);
        }
        let beside = Beside {
            args: &self.beside,
            outputs,
            check: options.check,
            sign: Vec::new(),
        };
        let report = beside.run(cx, "pull", plan, (&src, &opened)).await;
        let report =
            report.with_context(|| format!("cannot pull from {} to {dst}", src.store()))?;
        if report.failed.is_empty() {
            for (link, path) in &links {
                link.make(&opened, path).await?;
            }
        }
        copy::tell_report(cx, "pulled", &report, &roots, &*dst, start, self.json)
    }

    /// The links to make; looked at first, so that nothing is fetched for a link that cannot be.
    fn links<'a>(&self, roots: &'a [StorePath]) -> Result<Vec<(OutLink, &'a StorePath)>> {
        let Some(base) = &self.out_link else {
            return Ok(Vec::new());
        };
        let links = roots.iter().enumerate().map(|(i, root)| {
            let suffix = match i {
                0 => String::new(),
                i => format!("-{i}"),
            };
            Ok((OutLink::new(base, &suffix)?, root))
        });
        links.collect()
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store pull /nix/store/…-hello --from file:///srv/cache --trusted-key my.pub
  tk-store pull /nix/store/…-hello --from file:///srv/cache --to ~/my-store --no-check-sigs -o result";
