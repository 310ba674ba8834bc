//! Links that people want to what they fetched or built (`--out-link`), which are roots as well.

use crate::open::Opened;
use anyhow::{Context as _, Result, bail};
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};
use tk_path::StorePath;
use tk_store::Roots;

/// A place for a link: looked at first, so that nothing is done for a link that cannot be made.
#[derive(Debug)]
pub struct OutLink {
    place: PathBuf,
}

impl OutLink {
    /// The link `base` with `suffix`, which may replace a link but nothing else.
    pub fn new(base: &Path, suffix: &str) -> Result<Self> {
        let mut name = base.to_owned().into_os_string();
        name.push(suffix);
        let place = std::path::absolute(PathBuf::from(name))?;
        match fs::symlink_metadata(&place) {
            Ok(there) if !there.is_symlink() => bail!(
                "{} is in the way of the link: it exists and is no link",
                place.display()
            ),
            _ => Ok(OutLink { place }),
        }
    }

    /// Fails unless `store` can have links to its paths, and keeps `path` until there is one.
    pub async fn prepare(store: &Opened, path: &StorePath) -> Result<()> {
        roots(store)?.add_temp_root(path).await?;
        Ok(())
    }

    /// Makes it, in one step if a link is there, and tells the store.
    pub async fn make(&self, store: &Opened, path: &StorePath) -> Result<()> {
        let target = match store.real_dir() {
            Some(folder) => folder.join(path.as_str()),
            None => store.store().dir().path(path).into(),
        };
        link(&self.place, &target)
            .with_context(|| format!("making the link {}", self.place.display()))?;
        roots(store)?.add_indirect_root(&self.place).await?;
        Ok(())
    }
}

/// The roots of a store on this machine.
fn roots(store: &Opened) -> Result<&dyn Roots> {
    match store {
        Opened::Local(local) => Ok(&**local),
        Opened::Daemon(daemon) if daemon.config().real.is_some() => Ok(&**daemon),
        other => bail!(
            "--out-link needs a store of this machine, and {} is none",
            other.store()
        ),
    }
}

fn link(place: &Path, target: &Path) -> io::Result<()> {
    let mut aside = place.as_os_str().to_owned();
    aside.push(format!(".tmp-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    symlink(target, &aside)?;
    fs::rename(&aside, place).inspect_err(|_| drop(fs::remove_file(&aside)))
}
