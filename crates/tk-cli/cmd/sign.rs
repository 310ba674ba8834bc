use crate::{
    Answer, Context,
    keys::KeyFileArgs,
    open::{Wish, open},
    paths::store_paths,
    ui,
};
use anyhow::Result;
use std::collections::BTreeSet;
use tk_store::{StoreExt, closure};

/// Sign paths that are in a store or cache
///
/// As nix store sign. The signature covers path, NAR hash, NAR size and references as the store
/// has them. The number of new signatures is told.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Sign {
    /// Store paths, or links to them
    #[arg(value_name = "STOREPATH", required_unless_present = "all")]
    paths: Vec<String>,
    #[command(flatten)]
    keys: KeyFileArgs,
    /// All that the paths refer to as well
    #[arg(long, short)]
    recursive: bool,
    /// Every path of the store
    #[arg(long, conflicts_with = "paths")]
    all: bool,
}

impl Sign {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let keys = self.keys.keys()?;
        let opened = open(cx, &cx.store_uri(), &Wish::default()).await?;
        let roots = match self.all {
            true => opened.all_paths().await?,
            false => store_paths(&opened, &self.paths)?,
        };
        let store = opened.store();
        let infos = if self.recursive {
            let found = closure(&*store, roots).await?;
            found.require_complete(&*store)?;
            found.infos.into_values().collect()
        } else {
            let mut infos = Vec::new();
            for path in &roots {
                infos.push(store.require_info(path).await?);
            }
            infos
        };
        let (mut signed, total) = (0, infos.len());
        for mut info in infos {
            let before = info.signatures.clone();
            for key in &keys {
                info.sign(store.dir(), key)?;
            }
            let new: BTreeSet<_> = info.signatures.difference(&before).cloned().collect();
            if !new.is_empty() {
                opened
                    .add_signatures()?
                    .add_signatures(&info.path, &new)
                    .await?;
                signed += new.len();
            }
            ui::out(store.dir().display(&info.path))?;
        }
        cx.ui.say(format_args!(
            "added {signed} signatures to {} of {store}",
            ui::paths(total)
        ));
        Ok(Answer::Yes)
    }
}

const EXAMPLES: &str = "\
Example:
  tk-store sign --store file:///srv/cache --all --key-file my.key";
