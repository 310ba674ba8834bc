use crate::{Answer, Context, keys::KeyFileArgs, open::FromArgs, paths::PathsOrAll, ui};
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
    #[command(flatten)]
    paths: PathsOrAll,
    #[command(flatten)]
    keys: KeyFileArgs,
    /// All that the paths refer to as well
    #[arg(long, short)]
    recursive: bool,
}

impl Sign {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let keys = self.keys.keys()?;
        let texts = self.paths.texts()?;
        let opened = FromArgs::default().open(cx, &texts).await?;
        let roots = self.paths.find(&opened, &texts).await?.paths;
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
