//! What caches said before, in the user's cache folder.

use super::OpenOptions;
use crate::OpenSettings;
use std::{path::Path, sync::Arc, time::Duration};
use tk_cache::{
    disk_cache::{DiskCache, DiskCacheConfig},
    objects::NarInfoCache,
};
use tk_path::StoreDir;

/// What the cache said before.
pub fn known(
    settings: &OpenSettings,
    identity: &str,
    dir: &StoreDir,
    wish: &OpenOptions,
) -> Option<Arc<dyn NarInfoCache>> {
    let disk = settings.narinfo_memory()?;
    Some(if wish.refresh || settings.refresh {
        disk.of_now(identity, dir)
    } else {
        disk.of(identity, dir)
    })
}

impl OpenSettings {
    /// What caches said before, in the user's cache folder. `None` on a machine without a folder for that.
    pub fn narinfo_memory(&self) -> Option<&Arc<DiskCache>> {
        // One for all caches, so that what is wrong with it is told once.
        let shared = self.disk_cache.get_or_init(|| disk_cache(self));
        shared.as_ref()
    }
}

/// What all caches said before. A machine without a folder for that works without.
fn disk_cache(settings: &OpenSettings) -> Option<Arc<DiskCache>> {
    let folder = settings.environment.cache_folder().ok()?;
    let mut config = DiskCacheConfig {
        nix: Some(folder.join("nix")),
        observer: settings.observer.clone(),
        ..DiskCacheConfig::default()
    };
    for (name, field) in [
        ("narinfo-cache-positive-ttl", &mut config.positive),
        ("narinfo-cache-negative-ttl", &mut config.negative),
        ("narinfo-cache-meta-ttl", &mut config.info),
    ] {
        if let Some(seconds) = settings
            .nix_conf
            .get(name)
            .and_then(|text| text.parse().ok())
        {
            *field = Duration::from_secs(seconds);
        }
    }
    let file = folder.join(Path::new("tk-store/narinfo-v1.sqlite"));
    match DiskCache::open(file, config) {
        Ok(cache) => Some(cache),
        Err(error) => {
            let line = error.to_line();
            settings.warn(format_args!("what caches say is not remembered: {line}"));
            None
        }
    }
}
