use crate::{
    CommandContext, ExitStatus,
    keys::KeyFileArgs,
    open::{FromArgs, OpenStore, tell_unreadable},
    paths::{NamedPaths, PathsOrAll},
    ui,
};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use tk_narinfo::{NarInfo, Signature};
use tk_path::StorePath;

/// Sign paths that are in a store or cache
///
/// As nix store sign. The signature covers path, NAR hash, NAR size and references as the store
/// has them. The number of new signatures is told.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SignCommand {
    #[command(flatten)]
    paths: PathsOrAll,
    #[command(flatten)]
    keys: KeyFileArgs,
    /// All that the paths refer to as well
    #[arg(long, short)]
    recursive: bool,
}

impl SignCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let keys = self.keys.keys()?;
        let texts = self.paths.texts()?;
        // A narinfo is written anew: what is remembered of it will not do.
        let opened = FromArgs::default().open_anew(cx, &texts).await?;
        let store = opened.store();
        let listed = if self.paths.all {
            opened.all().await?
        } else {
            let roots = NamedPaths::find(&opened, &texts).await?.paths;
            let looked = if self.recursive {
                opened.look_at_closure(&roots).await
            } else {
                opened.look(&roots).await
            };
            if let Some(path) = looked.absent.into_iter().next() {
                let store = store.to_string();
                return Err(tk_store::Error::NotFound { path, store }.into());
            }
            looked.listed
        };
        let mut answer = tell_unreadable(cx, &listed);
        let (mut signed, total) = (0, listed.narinfos.len());
        let (mut new, mut failed) = (BTreeMap::new(), BTreeMap::new());
        let mut narinfos = listed.narinfos;
        for (path, narinfo) in &mut narinfos {
            let before = narinfo.info.signatures.clone();
            let mut keys = keys.iter();
            match keys.try_for_each(|key| narinfo.info.sign(store.dir(), key).map(drop)) {
                Ok(()) => drop(new.insert(path.clone(), &narinfo.info.signatures - &before)),
                Err(error) => drop(failed.insert(path.clone(), error.to_string())),
            }
        }
        failed.extend(add(&opened, &narinfos, &new).await?);
        for path in narinfos.keys() {
            if let Some(error) = failed.get(path) {
                cx.ui.error(error);
                answer = ExitStatus::Failed;
            } else {
                signed += new.get(path).map_or(0, BTreeSet::len);
                ui::out(store.dir().display(path))?;
            }
        }
        cx.ui.say(format_args!(
            "added {signed} signatures to {} of {store}",
            ui::paths(total)
        ));
        Ok(answer)
    }
}

/// Adds the signatures `new`, which `narinfos` have already, to what the store has; what failed.
async fn add(
    opened: &OpenStore,
    narinfos: &BTreeMap<StorePath, NarInfo>,
    new: &BTreeMap<StorePath, BTreeSet<Signature>>,
) -> Result<BTreeMap<StorePath, String>> {
    let new = new.iter().filter(|(_, new)| !new.is_empty());
    let results = match opened.cache() {
        // They were read a moment ago: one request for each is enough.
        Some(cache) if cache.folder().is_none() => {
            let narinfos = new.filter_map(|(path, _)| narinfos.get(path));
            cache.write_narinfos(narinfos.cloned().collect()).await
        }
        _ => {
            let new = new.map(|(path, new)| (path.clone(), new.clone()));
            opened
                .add_signatures()?
                .add_all_signatures(new.collect())
                .await
        }
    };
    let failed = results
        .into_iter()
        .filter_map(|(path, result)| Some((path, result.err()?.to_line())));
    Ok(failed.collect())
}

const EXAMPLES: &str = "\
Example:
  tk-store sign --store file:///srv/cache --all --key-file my.key";
