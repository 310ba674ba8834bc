use crate::{
    CommandContext, ExitStatus,
    open::{FromArgs, ListedPaths, OpenStore, tell_unreadable},
    paths::{NamedPaths, PathsOrAll},
    ui,
};
use anyhow::{Result, bail};
use futures::{StreamExt, stream};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tk_cache::objects::NarInfos;
use tk_narinfo::{NarInfo, PathInfo as Info, json as format};
use tk_path::StorePath;
use tk_store::{Closure, Store, closure};

/// Say what the store knows about paths
///
/// As nix path-info, with its flags and columns: path, NAR size (-s), closure size (-S),
/// signatures (--sigs). A path that is not there is told on stderr, and the exit status is 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true)]
pub struct PathInfoCommand {
    #[command(flatten)]
    paths: PathsOrAll,
    #[command(flatten)]
    from: FromArgs,
    /// All that the paths refer to as well
    #[arg(long, short)]
    recursive: bool,
    /// Print the size of each path's NAR
    #[arg(long, short)]
    size: bool,
    /// Print the size of each path's closure
    #[arg(long, short = 'S')]
    closure_size: bool,
    /// Print sizes for people, as 1.2 MiB
    #[arg(long, short = 'h')]
    human_readable: bool,
    /// Print signatures, content address, and whether it was built here
    #[arg(long)]
    sigs: bool,
    /// Print all that is known as JSON: an object by path, null for what is absent
    #[arg(long)]
    json: bool,
    /// The version of the JSON, as Nix numbers them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    json_format: u8,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl PathInfoCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let texts = self.paths.texts()?;
        let opened = self.from.open(cx, &texts).await?;
        let (roots, listed) = if self.paths.all {
            let listed = opened.all().await?;
            (listed.narinfos.keys().cloned().collect(), listed)
        } else {
            (
                NamedPaths::find(&opened, &texts).await?.paths,
                ListedPaths::default(),
            )
        };
        let store = opened.store();
        let found = match (self.paths.all, self.recursive || self.closure_size) {
            (true, _) => listed.closure(),
            (false, true) => closure(&*store, roots.clone()).await?,
            (false, false) => Closure::only(&*store, roots.clone()).await?,
        };
        let shown: Vec<StorePath> = if self.recursive {
            found
                .references_first()?
                .iter()
                .map(|info| info.path.clone())
                .collect()
        } else {
            roots
        };
        if self.json {
            self.print_json(&opened, &found, shown).await?;
        } else {
            self.print_table(&*store, &found, &shown)?;
        }
        let absent = super::tell_absent(cx, &found, &*store);
        Ok(absent.max(tell_unreadable(cx, &listed)))
    }

    fn print_table(&self, store: &dyn Store, found: &Closure, shown: &[StorePath]) -> Result<()> {
        let infos = shown.iter().filter_map(|path| found.infos.get(path));
        let lines: Vec<_> = infos
            .map(|info| (store.dir().path(&info.path), info))
            .collect();
        let width = lines.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
        let plain = !(self.size || self.closure_size || self.sigs);
        let line = |(path, info): &(String, &Info)| {
            if plain {
                return path.clone();
            }
            let mut line = format!("{path:width$}");
            if self.size {
                line.push_str(&self.column(info.nar_size));
            }
            if self.closure_size {
                let size = sum_of_closure(found, &info.path, |info| info.nar_size);
                line.push_str(&self.column(size));
            }
            if self.sigs {
                line.push('\t');
                let mut words = Vec::new();
                words.extend(info.ultimate.then(|| "ultimate".to_owned()));
                words.extend(info.ca.as_ref().map(|ca| format!("ca:{ca}")));
                words.extend(info.signatures.iter().map(ToString::to_string));
                line.push_str(&words.join(" "));
            }
            line
        };
        Ok(ui::out_all(lines.iter().map(line))?)
    }

    fn column(&self, bytes: u64) -> String {
        if self.human_readable {
            format!("\t{:>12}", ui::size(bytes))
        } else {
            format!("\t{bytes:>12}")
        }
    }

    async fn print_json(
        &self,
        opened: &OpenStore,
        found: &Closure,
        shown: Vec<StorePath>,
    ) -> Result<()> {
        let store = opened.store();
        let dir = store.dir();
        let version = match self.json_format {
            1 => format::JsonVersion::V1,
            2 => format::JsonVersion::V2,
            3 => format::JsonVersion::V3,
            other => bail!("there is no JSON format {other}"),
        };
        let key = |path: &StorePath| match version {
            format::JsonVersion::V1 => dir.path(path),
            _ => path.to_string(),
        };
        let mut all = Map::new();
        let asked: Vec<_> = if self.closure_size {
            found.infos.keys().cloned().collect()
        } else {
            shown.clone()
        };
        let narinfos = narinfos(opened, asked).await?;
        let download = |info: &Info| {
            let narinfo = narinfos.get(&info.path);
            narinfo.and_then(|narinfo| narinfo.file_size).unwrap_or(0)
        };
        let absent = found.absent.keys().cloned();
        for path in shown.into_iter().chain(absent) {
            let (info, narinfo) = (found.infos.get(&path), narinfos.get(&path));
            let mut value = match (info, narinfo) {
                (None, _) => Value::Null,
                (Some(_), Some(narinfo)) => format::narinfo_to_json(narinfo, dir, version, IMPURE),
                (Some(info), None) => format::path_info_to_json(info, dir, version, IMPURE),
            };
            if info.is_some() && self.closure_size {
                let size = sum_of_closure(found, &path, |info| info.nar_size);
                value["closureSize"] = size.into();
                if narinfo.is_some() {
                    let size = sum_of_closure(found, &path, download);
                    value["closureDownloadSize"] = size.into();
                }
            }
            all.insert(key(&path), value);
        }
        let whole = match version {
            format::JsonVersion::V1 => Value::Object(all),
            _ => json!({ "version": self.json_format, "storeDir": dir.as_str(), "info": all }),
        };
        ui::out(whole)?;
        Ok(())
    }
}

/// What caches say of those of `paths` that they have: also where the NARs are. Nothing where the
/// paths are in no cache.
async fn narinfos(
    opened: &OpenStore,
    paths: impl IntoIterator<Item = StorePath>,
) -> Result<BTreeMap<StorePath, NarInfo>> {
    let paths = paths.into_iter();
    let mut known = BTreeMap::new();
    if let Some(cache) = opened.cache() {
        let mut answers = cache.narinfos(stream::iter(paths.collect::<Vec<_>>()).boxed());
        while let Some((path, narinfo)) = answers.next().await {
            known.extend(narinfo?.map(|narinfo| (path, narinfo)));
        }
    } else if let Some((several, stores)) = opened.members() {
        let mut by_origin: BTreeMap<usize, Vec<StorePath>> = BTreeMap::new();
        for path in paths {
            let origin = several.origin(&path).unwrap_or_default();
            by_origin.entry(origin).or_default().push(path);
        }
        for (origin, paths) in by_origin {
            known.extend(Box::pin(narinfos(&stores[origin], paths)).await?);
        }
    }
    Ok(known)
}

/// The sum over `root` and all that it reaches within `found`.
fn sum_of_closure(found: &Closure, root: &StorePath, of: impl Fn(&Info) -> u64) -> u64 {
    let mut seen = BTreeSet::from([root]);
    let mut open = vec![root];
    let mut size = 0;
    while let Some(info) = open.pop().map(|path| found.infos.get(path)) {
        let Some(info) = info else { continue };
        size += of(info);
        open.extend(info.references.iter().filter(|path| seen.insert(path)));
    }
    size
}

const IMPURE: format::JsonFields = format::JsonFields::Impure;

const EXAMPLES: &str = "\
Examples:
  tk-store path-info -r -S -h ./result
  tk-store path-info --store file:///srv/cache --json /nix/store/…-hello";
