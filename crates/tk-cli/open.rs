//! Opening stores by the URIs that people know from Nix, as the command line names them.

mod builders;
mod nix;
mod remote;

pub use builders::{MachineOpener as OpenMachine, RemoteArgs, slots};
pub use nix::{NixOptions, store_dir};
pub use remote::BuildArgs;
pub use tk_open::{ListedPaths, Looked, OpenOptions, OpenStore};

use crate::{CommandContext, ExitStatus, paths::root_of_all};
use anyhow::Result;
use std::ffi::OsString;
use tk_store::StoreReference;

/// Opens the store that `uri` names.
pub async fn open(cx: &CommandContext, uri: &str, wish: &OpenOptions) -> Result<OpenStore> {
    let opened = tk_open::open_with(uri, &cx.settings, &within_threads(cx, wish)).await;
    opened.map_err(|error| anyhow::Error::from_boxed(error.into_boxed()))
}

/// Opens the stores that `uris` name, as one to read from.
pub async fn open_several(
    cx: &CommandContext,
    uris: &[String],
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let opened = tk_open::open_several(uris, &cx.settings, &within_threads(cx, wish)).await;
    opened.map_err(|error| anyhow::Error::from_boxed(error.into_boxed()))
}

/// The same wish, where no more is done at once than there are threads for.
fn within_threads(cx: &CommandContext, wish: &OpenOptions) -> OpenOptions {
    let mut wish = wish.clone();
    wish.jobs = cx.threads.jobs(wish.jobs);
    wish
}

/// Says what could not be read; the answer that follows.
pub fn tell_unreadable(cx: &CommandContext, listed: &ListedPaths) -> ExitStatus {
    for (_, error) in &listed.unreadable {
        cx.ui.error(error.to_line());
    }
    ExitStatus::after(listed.unreadable.iter().map(|(_, error)| error))
}

/// Where a command reads from.
#[derive(Debug, Default, clap::Args)]
pub struct FromArgs {
    /// Read from the store at URI, instead of --store (may be repeated: each path comes from the
    /// first that has it, by the priority of the caches and then in this order)
    #[arg(long, value_name = "URI")]
    from: Vec<String>,
}

impl FromArgs {
    /// The stores that were named.
    pub fn uris(&self) -> &[String] {
        &self.from
    }

    /// Opens the store to read from, in which `texts` are.
    pub async fn open(&self, cx: &CommandContext, texts: &[OsString]) -> Result<OpenStore> {
        let uris = sources_of(cx, &self.from, texts);
        open_several(cx, &uris, &OpenOptions::default()).await
    }

    /// The same, where what counts is what is there now, not what is remembered of it.
    pub async fn open_anew(&self, cx: &CommandContext, texts: &[OsString]) -> Result<OpenStore> {
        let uris = sources_of(cx, &self.from, texts);
        let mut wish = OpenOptions::default();
        wish.refresh = true;
        open_several(cx, &uris, &wish).await
    }
}

/// The URIs of the stores to read from: those of `--from`, else of `--store`, else the store in a
/// folder of its own in which all of `texts` lie on disk, else what is configured.
pub fn sources_of(cx: &CommandContext, from: &[String], texts: &[OsString]) -> Vec<String> {
    if !from.is_empty() {
        return from.to_vec();
    }
    if !cx.store.is_empty() {
        return cx.store.clone();
    }
    let uri = cx.store_uri();
    let root = (uri == "auto").then(|| root_of_all(texts)).flatten();
    vec![root.map_or(uri, |root| StoreReference::of_root(&root).to_string())]
}

/// The caches that nix.conf has paths fetched from; `option` names others.
pub fn substituters(cx: &CommandContext, option: &str) -> Result<Vec<String>> {
    let all = cx
        .settings
        .nix_conf
        .list("substituters")
        .unwrap_or_default();
    anyhow::ensure!(
        !all.is_empty(),
        "there is no cache to read from; name one, such as {option} https://cache.nixos.org, \
         or set substituters in nix.conf"
    );
    Ok(all.into_iter().map(str::to_owned).collect())
}
