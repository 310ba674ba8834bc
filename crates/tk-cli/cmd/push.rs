use crate::{
    CommandContext, ExitStatus,
    copying::{CopyArgs, CopyVerb, TrustArgs, WriteArgs},
    open::{self, OpenOptions, OpenStore},
    paths::{NamedPaths, add_file, name_in_store, required},
};
use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_nar::fs::DumpOptions;
use tk_narinfo::PathInfo;
use tk_open::keys::refuse_secret;
use tk_path::{Algorithm, Method};
use tk_store::{
    Error, TreeStore,
    copy::{Progress, Reach},
    nar,
    progress::arriving,
};

/// Put paths and all they refer to into a binary cache
///
/// PATH is a store path, a link to one (./result), an output of a derivation (DRV^OUT, with what is
/// known of it), or any file or folder, which goes straight into the cache: it is left in a store of
/// yours only if you name one (--store, --from), or with --add. Paths that the cache has are not sent
/// again (with --sign-key they are signed there if they lack that signature), and with --upstream not
/// those that its readers have from elsewhere. A store that is not a cache takes only paths that are
/// signed by a trusted key, or that are content-addressed. On
/// stdout comes one store path a line, in the order of the arguments.
#[derive(clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("paths", |arg| required(arg)
        .value_name("PATH")
        .help("Store paths, outputs of derivations (DRV^OUT, DRV^*), or files and folders")),
    mut_arg("to", |arg| arg
        .required(true)
        .env("TK_TO")
        .hide_env_values(true)
        .help("The cache, such as file:///srv/cache; it is made if it is not there")),
    mut_arg("from", |arg| arg
        .help("The store that has the paths, and that files are added to as well [default: --store]; \
               may be repeated, then each path comes from the first that has it")),
    mut_arg("no_closure", |arg| arg
        .help("Push only the paths given, even if what they refer to is not in the cache")),
)]
pub struct Push {
    #[command(flatten)]
    copy: CopyArgs,
    /// Make the file of --sign-key, and FILE.pub beside it, if there is none yet
    #[arg(long, requires = "sign_key")]
    create_key: bool,
    /// Add files and folders to the source as well, also where that is not named
    #[arg(long)]
    add: bool,
    /// Name in the store for a file or folder, instead of its own
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    trust: TrustArgs,
}

impl Push {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let Push {
            copy, write, trust, ..
        } = &self;
        self.create_keys(cx)?;
        let texts = copy.paths.texts()?;
        let from = open::sources_of(cx, &copy.from, &texts);
        // Files need no store. One that nobody named is neither made nor filled for them.
        let named = matches!((copy.from.len(), cx.store.len()), (1, _) | (0, 1));
        let add = (self.add || named) && !copy.dry_run;
        let mut source = OpenOptions::default();
        source.write = add;
        source.dry_run = !add;
        let job = copy
            .open(
                cx,
                &PUSH,
                (from, source),
                Some(write),
                trust,
                Reach::Closure,
            )
            .await?;
        let add = add && (self.add || job.src.add_content().is_ok());
        let mut sources = NamedPaths::default();
        let mut trees = TreeStore::new(job.src.store());
        for text in &texts {
            if let Some(file) = sources.add(&job.src, text).await? {
                let name = self.name.as_deref();
                let how = (Method::Nar, Algorithm::Sha256);
                let info = if add {
                    add_file(cx, &job.src, &file, name, how, false).await?
                } else {
                    self.read(cx, &job.dst, &mut trees, file).await?
                };
                sources.paths.push(info.path);
            }
        }
        let roots = sources.paths.clone();
        let trees = Arc::new(trees);
        let job = job.with_trees(trees.clone());
        let Some(report) = job.run(cx, sources).await? else {
            return Ok(ExitStatus::Yes);
        };
        for (path, error) in &report.failed {
            if let (Some(file), Error::Mismatch { .. }) = (trees.file(path), error) {
                let file = file.display();
                cx.ui
                    .error(format_args!("{file} changed while it was pushed"));
            }
        }
        job.tell(cx, &report, &roots)
    }

    /// Finds out which path `file` is. A cache in a folder packs it at the same time, unless it may
    /// have it already: then nothing but reading it may be left to do.
    async fn read(
        &self,
        cx: &CommandContext,
        dst: &OpenStore,
        trees: &mut TreeStore,
        file: PathBuf,
    ) -> Result<PathInfo> {
        let doing = || format!("cannot read {}", file.display());
        let name = name_in_store(&file, self.name.as_deref()).with_context(doing)?;
        let (how, dump) = ((Method::Nar, Algorithm::Sha256), DumpOptions::default());
        let meter = Arc::new(cx.ui.reading("read"));
        meter.name(&name);
        let packs = match dst.cache() {
            Some(cache)
                if !self.copy.dry_run
                    && cache.folder().is_some()
                    && !cache.may_have_name(&name).await? =>
            {
                Some(cache)
            }
            _ => None,
        };
        let info = match packs {
            Some(cache) => {
                let nar = nar::dump(file.clone(), dump.clone());
                let nar = arriving(nar, &(meter.clone() as Arc<dyn Progress>));
                let info = cache.pack_ahead(&name, how, nar).await;
                let info = info.with_context(doing)?;
                trees.insert(info.clone(), file, dump);
                info
            }
            None => {
                let read = trees.read(file.clone(), dump, &name, how, meter.clone());
                read.await.with_context(doing)?
            }
        };
        meter.clear();
        Ok(info)
    }

    fn create_keys(&self, cx: &CommandContext) -> Result<()> {
        let new = |file: &&PathBuf| self.create_key && *file != Path::new("-");
        for file in self.write.sign.sign_key.iter().filter(new) {
            refuse_secret(file)?;
            let mut public = file.clone().into_os_string();
            public.push(".pub");
            let name = file
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or("tk-store");
            let name = format!("{name}-1");
            let (key, new) = super::key::find_or_generate(&name, file, public.as_ref())?;
            if !new {
                continue;
            }
            cx.ui.say(format_args!(
                "made the key {}; readers need --trusted-key {key}",
                file.display()
            ));
        }
        Ok(())
    }
}

const PUSH: CopyVerb = CopyVerb {
    present: "push",
    past: "pushed",
    checks_for_caches: false,
};

const EXAMPLES: &str = "\
Examples:
  tk-store push ./result --to file:///srv/cache --sign-key my.key
  tk-store push ./result --to file:///srv/cache --sign-key-env CI_SECRET_KEY
  tk-store push ~/data --to file:///srv/cache --compression xz --level 9
  tk-store push ./result --to s3://my-cache --upstream https://cache.nixos.org
  tk-store push $(cat paths) --to file:///srv/cache --json";
