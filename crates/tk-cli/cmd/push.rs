use crate::{
    Answer, Context,
    copying::{CopyArgs, CopyVerb, TrustArgs, WriteArgs},
    keys, open,
    paths::{Sources, add_file, required},
};
use anyhow::Result;
use std::path::{Path, PathBuf};
use tk_path::{Algorithm, Method};
use tk_store::copy::Reach;

/// Put paths and all they refer to into a binary cache
///
/// PATH is a store path, a link to one (./result), an output of a derivation (DRV^OUT, with what is
/// known of it), or any file or folder, which is added to the store first. Paths that the cache has
/// are not sent again, and with --upstream not those that its readers have from elsewhere. On
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
        .help("The store that has the paths, and to which files are added [default: --store]; \
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
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let Push {
            copy, write, trust, ..
        } = &self;
        self.create_keys(cx)?;
        let texts = copy.paths.texts()?;
        let from = open::sources_of(cx, &copy.from, &texts);
        let job = copy
            .open(cx, &PUSH, from, Some(write), trust, Reach::Closure)
            .await?;
        let mut sources = Sources::default();
        // What is pushed, in the order of the arguments, and what of it was not added in a dry run.
        let (mut roots, mut files) = (Vec::new(), Vec::new());
        for text in &texts {
            let known = sources.paths.len();
            let Some(file) = sources.add(&job.src, text).await? else {
                roots.extend_from_slice(&sources.paths[known..]);
                continue;
            };
            let how = (Method::Nar, Algorithm::Sha256);
            let name = self.name.as_deref();
            let info = add_file(cx, &job.src, &file, name, how, copy.dry_run).await?;
            roots.push(info.path.clone());
            match copy.dry_run {
                true => files.push(info),
                false => sources.paths.push(info.path),
            }
        }
        match job.run(cx, sources, files).await? {
            Some(report) => job.tell(cx, &report, &roots),
            None => Ok(Answer::Yes),
        }
    }

    fn create_keys(&self, cx: &Context) -> Result<()> {
        let new = |file: &&PathBuf| self.create_key && !file.exists() && *file != Path::new("-");
        for file in self.write.sign.sign_key.iter().filter(new) {
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

const PUSH: CopyVerb = CopyVerb {
    present: "push",
    past: "pushed",
    checks_for_caches: false,
    adds_files: true,
};

const EXAMPLES: &str = "\
Examples:
  tk-store push ./result --to file:///srv/cache --sign-key my.key
  tk-store push ./result --to file:///srv/cache --sign-key-env CI_SECRET_KEY
  tk-store push ~/data --to file:///srv/cache --compression xz --level 9
  tk-store push ./result --to s3://my-cache --upstream https://cache.nixos.org
  tk-store push $(cat paths) --to file:///srv/cache --json";
