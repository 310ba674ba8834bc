use crate::{
    Answer, Context,
    keys::KeyFileArgs,
    open::{FromArgs, OpenStore},
    paths::{PathsOrAll, Sources},
    ui,
};
use anyhow::Result;
use futures::{StreamExt, stream};
use std::collections::BTreeSet;
use tk_narinfo::{NarInfo, Signature};

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
        // A narinfo is written anew: what is remembered of it will not do.
        let opened = FromArgs::default().open_anew(cx, &texts).await?;
        let store = opened.store();
        let listed = if self.paths.all {
            opened.all().await?
        } else {
            let roots = Sources::find(&opened, &texts).await?.paths;
            let looked = opened.look(&roots, self.recursive).await;
            if let Some(path) = looked.absent.into_iter().next() {
                let store = store.to_string();
                return Err(tk_store::Error::NotFound { path, store }.into());
            }
            looked.listed
        };
        let mut answer = listed.tell_unreadable(cx);
        let (mut signed, total) = (0, listed.narinfos.len());
        let added = listed.narinfos.into_values().map(|mut narinfo| async {
            let before = narinfo.info.signatures.clone();
            for key in &keys {
                narinfo.info.sign(store.dir(), key)?;
            }
            let new = &narinfo.info.signatures - &before;
            if !new.is_empty() {
                add(&opened, &narinfo, &new).await?;
            }
            anyhow::Ok((narinfo.info.path, new.len()))
        });
        let mut added = stream::iter(added).buffered(SIGNED_AT_ONCE);
        while let Some(added) = added.next().await {
            match added {
                Ok((path, new)) => {
                    signed += new;
                    ui::out(store.dir().display(&path))?;
                }
                Err(error) => {
                    cx.ui.error(format_args!("{error:#}"));
                    answer = Answer::Failed;
                }
            }
        }
        cx.ui.say(format_args!(
            "added {signed} signatures to {} of {store}",
            ui::paths(total)
        ));
        Ok(answer)
    }
}

/// Adds the signatures `new`, which `narinfo` has already, to what the store has.
async fn add(opened: &OpenStore, narinfo: &NarInfo, new: &BTreeSet<Signature>) -> Result<()> {
    match opened.cache() {
        // It was read a moment ago: one request is enough.
        Some(cache) if cache.folder().is_none() => cache.write_narinfo(narinfo).await?,
        _ => {
            let path = &narinfo.info.path;
            opened.add_signatures()?.add_signatures(path, new).await?;
        }
    }
    Ok(())
}

/// Paths whose signatures are on their way at once.
const SIGNED_AT_ONCE: usize = 16;

const EXAMPLES: &str = "\
Example:
  tk-store sign --store file:///srv/cache --all --key-file my.key";
