use super::copy::{
    self,
    options::{Beside, BesideArgs, Sources, UpstreamArgs},
};
use crate::{
    Answer, Context,
    keys::{self, SignKeyArgs},
    open::{Wish, open},
    paths::{Named, add_file, named},
    ui,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Instant,
};
use tk_narinfo::Compression;
use tk_path::{Algorithm, Method};
use tk_store::{
    SigCheck,
    copy::{CopyOptions, Reach, plan},
};

/// Put paths and all they refer to into a binary cache
///
/// PATH is a store path, a link to one (./result), an output of a derivation (DRV^OUT, with what is
/// known of it), or any file or folder, which is added to the store first. Paths that the cache has
/// are not sent again, and with --upstream not those that its readers have from elsewhere. On
/// stdout comes one store path a line, in the order of the arguments.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Push {
    /// Store paths, outputs of derivations, or files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// The cache, such as file:///srv/cache; it is made if it is not there
    #[arg(long, env = "TK_TO", hide_env_values = true, value_name = "URI")]
    to: String,
    /// The store that has the paths, and to which files are added [default: --store]
    #[arg(long, value_name = "URI")]
    from: Option<String>,
    #[command(flatten)]
    sign: SignKeyArgs,
    /// Make the file of --sign-key, and FILE.pub beside it, if there is none yet
    #[arg(long, requires = "sign_key")]
    create_key: bool,
    /// none, xz, zstd, bzip2, gzip or br [default: the URI's, or zstd]
    #[arg(long, value_name = "NAME")]
    compression: Option<Compression>,
    /// Level of the compression [default: the compression's own]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    level: Option<i32>,
    /// Name in the store for a file or folder, instead of its own
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Push only the paths given, even if what they refer to is not in the cache
    #[arg(long, visible_alias = "no-recursive")]
    no_closure: bool,
    /// Write a listing (.ls) beside each NAR
    #[arg(long)]
    listing: bool,
    #[command(flatten)]
    upstream: UpstreamArgs,
    #[command(flatten)]
    beside: BesideArgs,
    /// Say what would be pushed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Paths worked on at once [default: one for each processor]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

impl Push {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let start = Instant::now();
        self.create_keys(cx)?;
        let sign = self.sign.keys()?;
        let from = self.from.clone().unwrap_or_else(|| cx.store_uri());
        // Files may have to be added to it.
        let src = Wish {
            write: !self.dry_run,
            ..Wish::default()
        };
        let src = open(cx, &from, &src).await?;
        let dst = open(cx, &self.to, &self.wish()).await?;

        let mut sources = Sources::default();
        let mut roots = Vec::new();
        for text in &self.paths {
            if sources.add_output(&src, text).await? {
                roots.extend(sources.paths.drain(..).map(|path| (path, None)));
                continue;
            }
            roots.push(match named(&src, text)? {
                Named::Path(path, _) => (path, None),
                Named::File(file) => {
                    let how = (Method::Nar, Algorithm::Sha256);
                    let name = self.name.as_deref();
                    let info = add_file(cx, &src, &file, name, how, self.dry_run).await?;
                    (info.path.clone(), Some(info))
                }
            });
        }
        let options = CopyOptions {
            reach: if self.no_closure {
                Reach::Roots
            } else {
                Reach::Closure
            },
            check: SigCheck::Skip,
            sign,
            existing: self.beside.existing(),
            upstreams: self.upstream.open(cx, &dst).await?,
        };
        let failed = || format!("cannot push to {}", dst.store());
        // In a dry run files were not added: they are no roots of the plan, but told as well.
        let known = roots
            .iter()
            .filter(|(_, info)| info.is_none() || !self.dry_run);
        let known: BTreeSet<_> = known.map(|(path, _)| path.clone()).collect();
        let (from, to) = (src.store(), dst.store());
        let plan = plan(&*from, &*to, &known, &options);
        let plan = cx.ui.asking(&ui::paths(known.len()), plan).await;
        let mut plan = plan.with_context(failed)?;
        if self.dry_run {
            for (path, info) in roots {
                let there = to.valid(&BTreeSet::from([path])).await?;
                let missing = info.filter(|info| !there.contains(&info.path));
                plan.missing.extend(missing);
            }
            return copy::tell_plan(cx, &plan, &*to, self.json);
        }
        let beside = Beside {
            args: &self.beside,
            outputs: sources.outputs,
            check: options.check,
            sign: options.sign,
        };
        let report = beside.run(cx, "push", plan, (&src, &dst)).await;
        let report = report.with_context(failed)?;
        let roots: Vec<_> = roots.into_iter().map(|(path, _)| path).collect();
        copy::tell_report(cx, "pushed", &report, &roots, &*to, start, self.json)
    }

    fn wish(&self) -> Wish {
        Wish {
            write: !self.dry_run,
            compression: self.compression,
            level: self.level,
            jobs: self.jobs,
            incomplete: self.no_closure,
            listing: self.listing,
            ..Wish::default()
        }
    }

    fn create_keys(&self, cx: &Context) -> Result<()> {
        let new = |file: &&PathBuf| self.create_key && !file.exists() && *file != Path::new("-");
        for file in self.sign.sign_key.iter().filter(new) {
            keys::refuse_secret(file)?;
            let mut public = file.clone().into_os_string();
            public.push(".pub");
            let name = file
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or("tk-store");
            let key = super::key::generate(&format!("{name}-1"), file, public.as_ref())?;
            cx.ui.say(format_args!(
                "made the key {}; readers need --trusted-key {key}",
                file.display()
            ));
        }
        Ok(())
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store push ./result --to file:///srv/cache --sign-key my.key
  tk-store push ./result --to file:///srv/cache --sign-key-env CI_SECRET_KEY
  tk-store push ~/data --to file:///srv/cache --compression xz --level 9
  tk-store push ./result --to s3://my-cache --upstream https://cache.nixos.org
  tk-store push $(cat paths) --to file:///srv/cache --json";
