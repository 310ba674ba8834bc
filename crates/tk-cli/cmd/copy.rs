use crate::{
    CommandContext, ExitStatus,
    copying::{CopyArgs, CopyVerb, TrustArgs, WriteArgs},
    open::{self, OpenOptions},
    paths::NamedPaths,
};
use anyhow::Result;
use tk_store::copy::Reach;

/// Copy paths and all they refer to from one store to another
///
/// As nix copy. A store takes only paths that are signed by a trusted key, or that are
/// content-addressed; a binary cache takes what it is given. A daemon that does not trust you also
/// asks for signatures by keys that it trusts itself.
#[derive(clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("paths", |arg| arg.required_unless_present_any(["all", "stdin"])),
    mut_arg("from", |arg| arg.required_unless_present("to")),
)]
pub struct Copy {
    #[command(flatten)]
    copy: CopyArgs,
    /// Copy every path of the source
    #[arg(long, conflicts_with_all = ["paths", "stdin"])]
    all: bool,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    write: WriteArgs,
}

impl Copy {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let Copy {
            copy, write, trust, ..
        } = &self;
        let texts = copy.paths.texts()?;
        let from = open::sources_of(cx, &copy.from, &texts);
        let job = copy
            .open(
                cx,
                &COPY,
                (from, OpenOptions::default()),
                Some(write),
                trust,
                Reach::Closure,
            )
            .await?;
        let mut readable = ExitStatus::Yes;
        let sources = if self.all {
            let all = job.src.all().await?;
            readable = open::tell_unreadable(cx, &all);
            NamedPaths {
                paths: all.narinfos.into_keys().collect(),
                ..NamedPaths::default()
            }
        } else {
            NamedPaths::find(&job.src, &texts).await?
        };
        let roots = sources.paths.clone();
        Ok(match job.run(cx, sources).await? {
            Some(report) => job.tell(cx, &report, &roots)?.max(readable),
            None => readable,
        })
    }
}

const COPY: CopyVerb = CopyVerb {
    present: "copy",
    past: "copied",
    checks_for_caches: false,
};

const EXAMPLES: &str = "\
Examples:
  tk-store copy /nix/store/…-hello --to file:///srv/cache
  tk-store copy --all --from file:///srv/cache --to ~/my-store --trusted-key my.pub
  tk-store copy /nix/store/…-hello.drv^out --to s3://my-cache --logs
  tk-store copy /nix/store/…-hello --to https://cache.example --upstream https://cache.nixos.org
  tk-store copy /nix/store/…-hello --from https://cache.example --repair";
