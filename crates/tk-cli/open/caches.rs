//! Opening binary caches: what all kinds have in common, and folders.

use super::{OpenOptions, OpenStore, STORE_SETTINGS, skip, take_store_dir};
use crate::{CommandContext, keys};
use anyhow::Result;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tk_cache::{BinaryCache, BinaryCacheConfig, CacheWarnings};
use tk_narinfo::Compression;
use tk_store::reference::Settings;

/// What the URI says of a binary cache of any kind; what the command line says wins.
pub fn config(
    cx: &CommandContext,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<BinaryCacheConfig> {
    let named = "none, xz, zstd, bzip2, gzip or br";
    let compression = settings.take_with("compression", named, |name| name.parse().ok())?;
    let level = settings.take_with("compression-level", "a whole number", |n| n.parse().ok())?;
    let mut sign = Vec::new();
    for name in ["secret-key", "secret-keys"] {
        let files = settings.take(name).unwrap_or_default();
        for file in files.split(',').filter(|file| !file.is_empty()) {
            sign.push(Arc::new(keys::secret(file.as_ref())?));
        }
    }
    let priority = settings.take_with("priority", "a number", |n| n.parse().ok())?;
    let listing = settings.take_bool("write-nar-listing")?;
    let mass_query = settings.take_bool("want-mass-query")?;
    skip(settings, STORE_SETTINGS);
    skip(settings, IGNORED);
    let defaults = BinaryCacheConfig::default();
    Ok(BinaryCacheConfig {
        store_dir: take_store_dir(settings)?,
        // zstd, not Nix's xz: a fraction of the time for a few percent of the size.
        compression: wish
            .compression
            .or(compression)
            .unwrap_or(Compression::Zstd),
        // Nix's -1: the default of the compression.
        level: wish.level.or(level).filter(|level: &i32| *level != -1),
        write_listing: wish.listing | listing.unwrap_or(false),
        index_debug_info: settings.take_bool("index-debug-info")?.unwrap_or(false),
        sign,
        jobs: wish.jobs.unwrap_or(defaults.jobs),
        create: wish.write || wish.dry_run,
        require_references: !wish.incomplete,
        priority: wish.priority.or(priority),
        want_mass_query: wish.want_mass_query.or(mass_query),
        strict_file_hash: settings.take_bool("strict-file-hash")?.unwrap_or(false),
        warnings: warnings(cx),
        ..defaults
    })
}

/// The cache in `folder`.
pub async fn folder(
    cx: &CommandContext,
    folder: PathBuf,
    settings: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let config = config(cx, settings, wish)?;
    let cache = BinaryCache::open_folder(folder, config).await?;
    Ok(cache.into())
}

/// What is wrong in one cache is told a few times: it is often wrong in all of it.
fn warnings(cx: &CommandContext) -> CacheWarnings {
    let (ui, told) = (cx.ui, Mutex::new(BTreeMap::<_, usize>::new()));
    CacheWarnings::to(move |warning| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let times = told.entry(warning.kind()).or_default();
        *times += 1;
        match *times {
            ..=WARNINGS => ui.warn(warning),
            FURTHER => ui.warn("further warnings of this kind about this cache are not shown"),
            _ => {}
        }
    })
}

/// Warnings of one kind about one cache that are shown.
const WARNINGS: usize = 5;
const FURTHER: usize = WARNINGS + 1;

/// Known to Nix; they make no difference here, where threads are always used and nothing is kept
/// beside the cache.
const IGNORED: &[&str] = &["parallel-compression", "local-nar-cache"];
