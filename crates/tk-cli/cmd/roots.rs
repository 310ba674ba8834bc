use super::shell::owner;
use crate::{
    CommandContext, ExitStatus,
    open::{OpenOptions, OpenStore, open},
    paths::{NamedPaths, PathArgs, required, store_path},
    ui,
    units::{duration, short_time},
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tk_path::StorePath;
use tk_store::{
    Roots,
    lease::{LeaseFinder, LeaseOptions, LeaseOwner, Leases, RootLease},
};

/// List, add, remove and lease roots: what keeps paths from being collected
#[derive(clap::Subcommand)]
pub enum RootsCommand {
    List(RootsList),
    Add(RootsAdd),
    Remove(RootsRemove),
    Lease(RootsLease),
    Release(RootsRelease),
}

impl RootsCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        match self {
            RootsCommand::List(args) => args.run(cx).await,
            RootsCommand::Add(args) => args.run(cx).await,
            RootsCommand::Remove(args) => args.run(cx).await,
            RootsCommand::Lease(args) => args.run(cx).await,
            RootsCommand::Release(args) => args.run(cx),
        }
    }
}

/// List all roots, each with the path that it keeps
///
/// As nix-store --gc --print-roots: links, files, and what running processes use. A root of a lease has its
/// owner and its end. Your leases that are over end now; nothing else is changed. If something could not be
/// looked at the exit status is 2, and the list may lack roots.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  tk-store roots list --json")]
pub struct RootsList {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl RootsList {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let opened = open(cx, &cx.store_uri(), &OpenOptions::default()).await?;
        let ended = leases(cx).and_then(|leases| Ok(leases.expire()?));
        if let Err(error) = ended {
            cx.ui.warn(format_args!("no lease was ended: {error:#}"));
        }
        let (all, unknown) = roots(&opened)?.roots_and_unknown().await?;
        let dir = opened.store().dir().clone();
        let mut leases = LeaseFinder::default();
        let all = all.iter().map(|root| {
            // Of others, perhaps, and of no account: then it is a link as any other.
            let lease = leases.of_link(Path::new(&root.link));
            (root, dir.path(&root.target), lease.ok().flatten().cloned())
        });
        if self.json {
            let all = all.map(|(root, path, lease)| {
                let lease = lease.map(
                    |lease| json!({"id": lease.id, "owner": lease.owner, "ends": lease.expires}),
                );
                json!({"link": root.link, "path": path, "lease": lease})
            });
            ui::out(Value::from_iter(all))?;
        } else {
            for (root, path, lease) in all {
                let lease = lease.as_ref().map(shown).unwrap_or_default();
                ui::out(format_args!("{} -> {path}{lease}", root.link))?;
            }
        }
        for error in &unknown {
            cx.ui.error(error.to_line());
        }
        Ok(if unknown.is_empty() {
            ExitStatus::Yes
        } else {
            ExitStatus::Failed
        })
    }
}

fn shown(lease: &RootLease) -> String {
    let RootLease { id, owner, .. } = lease;
    let end = if lease.is_over() {
        "over".to_owned()
    } else if let LeaseOwner::Link { .. } = owner {
        "with it".to_owned()
    } else {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        format!("ends in {}", short_time(lease.expires.saturating_sub(now)))
    };
    format!("  (lease {id} for {owner}, {end})")
}

/// Make a link to a path, and a root of it
///
/// As nix-store --add-root: the path stays as long as the link is there. A link to another path of the
/// store is replaced. Prints the link.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  tk-store roots add /nix/store/…-hello ./kept")]
pub struct RootsAdd {
    /// The path, or a link to it
    #[arg(value_name = "STOREPATH")]
    path: OsString,
    /// Where to make the link
    link: PathBuf,
}

impl RootsAdd {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let opened = open(cx, &cx.store_uri(), &OpenOptions::default()).await?;
        let path = store_path(&opened, &self.path)?;
        let link = std::path::absolute(&self.link)?;
        if !are_kept(cx, &opened, &[path.clone()].into()).await? {
            return Ok(ExitStatus::No);
        }
        roots(&opened)?.add_perm_root(&path, &link).await?;
        ui::out(link.display())?;
        Ok(ExitStatus::Yes)
    }
}

/// Remove links that are roots
///
/// What else keeps their paths still does; what nothing keeps goes with the next collection. Nothing is
/// removed that is no root of the store.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  tk-store roots add ./result ./kept && tk-store roots remove ./kept"
)]
pub struct RootsRemove {
    /// The links, as roots list names them or by another path to them
    #[arg(required = true, value_name = "LINK")]
    links: Vec<PathBuf>,
}

impl RootsRemove {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let opened = open(cx, &cx.store_uri(), &OpenOptions::default()).await?;
        let store = opened.store();
        let all = roots(&opened)?.roots().await?;
        let mut answer = ExitStatus::Yes;
        for link in &self.links {
            let shown = link.display();
            let places = spellings(link)?;
            let is_this =
                |place: &&PathBuf| all.iter().any(|root| Path::new(&root.link) == **place);
            let Some(place) = places.iter().find(is_this) else {
                cx.ui.error(format_args!("{shown} is no root of {store}"));
                answer = ExitStatus::No;
                continue;
            };
            if let Some(lease) = RootLease::of_link(place)? {
                let id = lease.id;
                bail!(
                    "{shown} is the root of a lease, which ends with: tk-store roots release {id}"
                );
            }
            if !place.is_symlink() {
                bail!("{shown} is a root, but no link: it is not removed");
            }
            fs::remove_file(place).with_context(|| format!("removing {shown}"))?;
            roots(&opened)?.forget_indirect_root(place).await?;
        }
        Ok(answer)
    }
}

/// How a root at `link` may be named: as it is written, and by where its folder really is.
fn spellings(link: &Path) -> Result<Vec<PathBuf>> {
    let written = std::path::absolute(link)?;
    let folder = written
        .parent()
        .and_then(|folder| folder.canonicalize().ok());
    let real = folder.and_then(|folder| Some(folder.join(written.file_name()?)));
    Ok([Some(written), real].into_iter().flatten().collect())
}

/// Keep paths for a time, or as long as a process lives
///
/// Such a root goes by itself: when its time is over, or its process gone, the next look at the roots or
/// collection of tk-store passes it over. The same paths for the same owner begin their lease anew. Prints the id
/// of the lease, for roots release. A collector of Nix keeps the paths until roots list was run.
#[derive(clap::Args)]
#[command(after_help = LEASE_EXAMPLES, mut_arg("paths", required))]
pub struct RootsLease {
    #[command(flatten)]
    paths: PathArgs,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = duration)]
    ttl: Duration,
    /// For whom: a name
    #[arg(
        long,
        value_name = "NAME",
        default_value = "shared",
        conflicts_with = "pid"
    )]
    owner: String,
    /// For whom: a process, with which the lease ends
    #[arg(long, value_name = "N")]
    pid: Option<u32>,
}

impl RootsLease {
    async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let opened = open(cx, &cx.store_uri(), &OpenOptions::default()).await?;
        let paths = NamedPaths::find(&opened, &self.paths.texts()?).await?.paths;
        let paths: BTreeSet<StorePath> = paths.into_iter().collect();
        if !are_kept(cx, &opened, &paths).await? {
            return Ok(ExitStatus::No);
        }
        let mut options = LeaseOptions::default();
        options.ttl = self.ttl;
        options.owner = match self.pid {
            Some(pid) => owner(&format!("pid:{pid}"))?,
            None => owner(&self.owner)?,
        };
        let store = opened.store();
        let paths: Vec<_> = paths.iter().map(|path| store.dir().path(path)).collect();
        let key = format!("{store} {}", paths.join(" "));
        let (leases, roots) = (leases(cx)?, roots(&opened)?);
        ui::out(leases.begin(&key, &paths, &options, roots).await?)?;
        Ok(ExitStatus::Yes)
    }
}

/// End leases before their time
///
/// Prints the ids of those that were ended. Exit status 1: there were none.
#[derive(clap::Args)]
#[command(after_help = RELEASE_EXAMPLES)]
pub struct RootsRelease {
    /// Ids of leases, as roots lease and roots list print them
    #[arg(value_name = "ID", required_unless_present_any = ["owner", "pid"])]
    ids: Vec<String>,
    /// All of this owner
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// All of this process
    #[arg(long, value_name = "N")]
    pid: Option<u32>,
}

impl RootsRelease {
    fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let is_meant = |lease: &RootLease| match &lease.owner {
            _ if self.ids.contains(&lease.id) => true,
            LeaseOwner::Name(name) => self.owner.as_ref() == Some(name),
            LeaseOwner::Process { pid, .. } => self.pid == Some(*pid),
            _ => false,
        };
        let released = leases(cx)?.release(is_meant)?;
        ui::out_all(released.iter().map(|lease| &lease.id))?;
        let is_absent = |id: &&String| released.iter().all(|lease| lease.id != **id);
        let mut absent = self.ids.iter().filter(is_absent).peekable();
        if released.is_empty() || absent.peek().is_some() {
            for id in absent {
                cx.ui.error(format_args!("there is no lease {id}"));
            }
            return Ok(ExitStatus::No);
        }
        Ok(ExitStatus::Yes)
    }
}

/// The leases of this user.
fn leases(cx: &CommandContext) -> Result<Leases> {
    Ok(Leases::at(&cx.settings.environment.state_folder()?))
}

fn roots(opened: &OpenStore) -> Result<&dyn Roots> {
    let roots = opened.roots();
    roots.with_context(|| format!("{} has no roots", opened.store()))
}

/// Keeps `paths` as long as this process lives; whether all of them are there. Those that are not are told.
async fn are_kept(
    cx: &CommandContext,
    opened: &OpenStore,
    paths: &BTreeSet<StorePath>,
) -> Result<bool> {
    roots(opened)?.add_temp_roots(paths).await?;
    let store = opened.store();
    let valid = store.valid(paths).await?;
    for path in paths.difference(&valid) {
        cx.ui.error(format_args!("{path} is not in {store}"));
    }
    Ok(valid.len() == paths.len())
}

const LEASE_EXAMPLES: &str = "\
Examples:
  tk-store roots lease ./result --ttl 2h --owner agent-7
  tk-store roots lease /nix/store/…-hello --pid $$";
const RELEASE_EXAMPLES: &str = "\
Examples:
  tk-store roots release \"$(tk-store roots lease ./result)\"
  tk-store roots lease ./result --owner agent-7 && tk-store roots release --owner agent-7";
