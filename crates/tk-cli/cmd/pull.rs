use crate::{
    CommandContext, ExitStatus,
    copying::{CopyArgs, CopyVerb, TrustArgs},
    open::{self, OpenOptions},
    out_link::OutLink,
    paths::{NamedPaths, required},
};
use anyhow::Result;
use std::path::PathBuf;
use tk_path::StorePath;
use tk_store::copy::Reach;

/// Fetch paths and all they refer to from binary caches
///
/// Signatures are checked against the trusted keys, content against its hash, before anything
/// becomes visible. What the store has already is not fetched. With several caches each path comes
/// from the first that has it with a trusted signature; one that cannot be asked is passed over
/// with a warning.
#[derive(clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("paths", |arg| required(arg)),
    mut_arg("from", |arg| arg
        .help("A cache, such as file:///srv/cache [default: substituters of nix.conf]; may be \
               repeated: each path comes from the first that has it, by the priority of the caches \
               and then in this order")),
    mut_arg("no_closure", |arg| arg
        .help("Fetch only the paths given, not what they refer to (which must be there)")),
)]
pub struct Pull {
    #[command(flatten)]
    copy: CopyArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// Make LINK a link to the path, and a root: as long as it is there, the path is not
    /// collected as garbage (with several paths: LINK, LINK-1, …)
    #[arg(long, short, value_name = "LINK")]
    out_link: Option<PathBuf>,
}

impl Pull {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let Pull { copy, trust, .. } = &self;
        let texts = copy.paths.texts()?;
        let from = if copy.from.is_empty() {
            open::substituters(cx, "--from")?
        } else {
            copy.from.clone()
        };
        let job = copy
            .open(
                cx,
                &PULL,
                (from, OpenOptions::default()),
                None,
                trust,
                Reach::Missing,
            )
            .await?;
        let sources = NamedPaths::find(&job.src, &texts).await?;
        let roots = sources.paths.clone();
        let links = self.links(&roots)?;
        if !copy.dry_run {
            // What is there already must still be there when the link is.
            for (_, path) in &links {
                OutLink::prepare(&job.dst, path).await?;
            }
        }
        let Some(report) = job.run(cx, sources).await? else {
            return Ok(ExitStatus::Yes);
        };
        if report.failed.is_empty() {
            for (link, path) in &links {
                link.make(cx, &job.dst, path).await?;
            }
        }
        job.tell(cx, &report, &roots)
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

const PULL: CopyVerb = CopyVerb {
    present: "pull",
    past: "pulled",
    checks_for_caches: true,
};

const EXAMPLES: &str = "\
Examples:
  tk-store pull /nix/store/…-hello --from file:///srv/cache --trusted-key my.pub
  tk-store pull /nix/store/…-hello --from file:///srv/cache --to ~/my-store --no-check-sigs -o result
  tk-store pull /nix/store/…-hello --from file:///srv/cache --from https://cache.nixos.org";
