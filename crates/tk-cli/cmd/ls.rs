use crate::{
    Answer, Context,
    listing::{self, Style},
    open::{Wish, open},
    paths::{Named, named},
};
use anyhow::{Context as _, Result, bail};
use tk_nar::ListingBuilder;
use tk_store::{NarCheck, StoreExt, nar::BlockingNar};

/// List what is inside a store path
///
/// As nix store ls. Of a cache, the NAR is read to make the list.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Ls {
    /// A store path, or something inside one: /nix/store/…-hello/bin
    #[arg(value_name = "STOREPATH")]
    path: String,
    /// List folders in folders, too
    #[arg(long, short = 'R')]
    recursive: bool,
    #[command(flatten)]
    style: Style,
}

impl Ls {
    /// Runs the command.
    pub async fn run(self, cx: &Context) -> Result<Answer> {
        let opened = open(cx, &cx.store_uri(), &Wish::default()).await?;
        let Named::Path(path, member) = named(&opened, &self.path)? else {
            bail!("{} is not in the store {}", self.path, opened.store());
        };
        let store = opened.store();
        let info = store.require_info(&path).await?;
        let nar = BlockingNar::new(store.nar(&path).await?);
        let mut check = NarCheck::new(&info, store.to_string());
        let read = tokio::task::spawn_blocking(move || -> Result<_> {
            let mut listing = ListingBuilder::new();
            for chunk in nar {
                let chunk = chunk?;
                check.update(&chunk)?;
                listing.feed(&chunk)?;
            }
            check.finish()?;
            Ok(listing.finish()?)
        });
        let listing = read.await?.with_context(|| format!("listing {path}"))?;
        listing::print(&listing, member.as_bytes(), self.style, self.recursive)
            .with_context(|| format!("listing {path}"))?;
        Ok(Answer::Yes)
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store ls -R ./result
  tk-store ls --store file:///srv/cache -l /nix/store/…-hello/bin";
