//! Links that people want to what they fetched or built (`--out-link`), which are roots as well.

use crate::{CommandContext, open::OpenStore};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tk_nar::fs::replace_link;
use tk_path::StorePath;
use tk_store::{
    Roots,
    lease::{LeaseOptions, LeaseOwner, Leases},
};

/// A place for a link: looked at first, so that nothing is done for a link that cannot be made.
#[derive(Debug)]
pub struct OutLink {
    place: PathBuf,
}

impl OutLink {
    /// The link `base` with `suffix`, which may replace a link into a store but nothing else.
    pub fn new(base: &Path, suffix: &str) -> Result<Self> {
        let mut name = base.to_owned().into_os_string();
        name.push(suffix);
        let place = std::path::absolute(PathBuf::from(name))?;
        let shown = place.display();
        match fs::symlink_metadata(&place) {
            Ok(there) if !there.is_symlink() => {
                bail!("{shown} is in the way of the link: it exists and is not a link")
            }
            Ok(_) if !leads_into_store(&fs::read_link(&place)?) => {
                bail!("{shown} is in the way of the link: it is a link of yours, to no store path")
            }
            _ => Ok(OutLink { place }),
        }
    }

    /// Fails unless `store` can have links to its paths, and keeps `path` until there is one.
    pub async fn prepare(store: &OpenStore, path: &StorePath) -> Result<()> {
        roots(store)?.add_temp_root(path).await?;
        Ok(())
    }

    /// Makes it with the folders above it, in one step if a link is there, and tells the store.
    pub async fn make(
        &self,
        cx: &CommandContext,
        store: &OpenStore,
        path: &StorePath,
    ) -> Result<()> {
        let target: PathBuf = match store.real_dir() {
            Some(folder) => folder.join(path.as_str()),
            None => store.store().dir().path(path).into(),
        };
        if let Some(folder) = self.place.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("making the folder {}", folder.display()))?;
        }
        replace_link(&self.place, &target, leads_into_store)
            .with_context(|| format!("making the link {}", self.place.display()))?;
        roots(store)?.add_indirect_root(&self.place).await?;
        let named = store.store().dir().path(path);
        if target != Path::new(&named) {
            self.lease(cx, store, named, target).await?;
        }
        Ok(())
    }

    /// Keeps the path `named`, too, as long as the link leads to `target`: a collector of Nix does not know a
    /// link to where a store in a folder of its own really lies, and people could not use another.
    async fn lease(
        &self,
        cx: &CommandContext,
        store: &OpenStore,
        named: String,
        target: PathBuf,
    ) -> Result<()> {
        let mut options = LeaseOptions::default();
        let place = self.place.clone();
        options.owner = LeaseOwner::Link { place, target };
        options.ttl = AS_LONG_AS_THE_LINK;
        let leases = Leases::at(&cx.settings.environment.state_folder()?);
        let key = format!("out-link of {}", store.store());
        leases
            .begin(&key, &[named], &options, roots(store)?)
            .await?;
        Ok(())
    }
}

/// Whether the text of a link is a path of some store, or in one: the links of all stores take turns at a
/// place.
fn leads_into_store(text: &Path) -> bool {
    let mut steps = text.iter().filter_map(|step| step.to_str());
    text.is_absolute() && steps.any(|step| StorePath::parse(step).is_ok())
}

/// The roots of a store on this machine.
fn roots(store: &OpenStore) -> Result<&dyn Roots> {
    let of_this_machine = store.real_dir().is_some();
    match store.roots() {
        Some(roots) if of_this_machine => Ok(roots),
        _ => bail!(
            "--out-link needs a store of this machine, and {} is none",
            store.store()
        ),
    }
}

/// A hundred years.
const AS_LONG_AS_THE_LINK: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_people_are_not_those_of_stores() {
        let name = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";
        for (text, expected) in [
            (format!("/nix/store/{name}"), true),
            (format!("/home/me/root/nix/store/{name}/bin"), true),
            (format!("../{name}"), false),
            ("/etc/passwd".to_owned(), false),
            ("nowhere".to_owned(), false),
        ] {
            assert_eq!(leads_into_store(text.as_ref()), expected, "{text}");
        }
    }
}
