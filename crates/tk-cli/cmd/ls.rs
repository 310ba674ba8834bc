use crate::{
    CommandContext, ExitStatus,
    listing::{self, JsonForm, Style},
    open::FromArgs,
    paths::NamedPaths,
};
use anyhow::{Context as _, Result};
use std::{ffi::OsString, slice};
use tk_nar::ListingBuilder;
use tk_store::{NarCheck, StoreExt, nar::BlockingNar};

/// List what is inside a store path
///
/// As nix store ls, with its JSON. Of a cache, the NAR is read to make the list. In JSON a byte of a
/// name that is not UTF-8 is written as \xNN.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Ls {
    /// A store path, or something inside one: /nix/store/…-hello/bin
    #[arg(value_name = "STOREPATH")]
    path: OsString,
    #[command(flatten)]
    from: FromArgs,
    /// List folders in folders, too
    #[arg(long, short = 'R')]
    recursive: bool,
    #[command(flatten)]
    style: Style,
}

impl Ls {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let opened = self.from.open(cx, slice::from_ref(&self.path)).await?;
        let (path, member) = NamedPaths::one(&opened, &self.path).await?;
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
        let form = JsonForm::Node {
            // As nix, which reads the files themselves where they lie on this machine.
            offsets: opened.real_dir().is_none(),
        };
        listing::print(&listing, &member, self.style, self.recursive, form)
            .with_context(|| format!("listing {path}"))?;
        Ok(ExitStatus::Yes)
    }
}

const EXAMPLES: &str = "\
Examples:
  tk-store ls -R ./result
  tk-store ls --store file:///srv/cache -l /nix/store/…-hello/bin";
