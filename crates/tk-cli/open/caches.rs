//! Opening binary caches: what all kinds have in common, and folders.

use super::{Opened, STORE_SETTINGS, Wish, skip, take_store_dir};
use crate::{Context, keys};
use anyhow::Result;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tk_cache::{CacheWarnings, FolderCache, FolderConfig};
use tk_narinfo::{Compression, SecretKey};
use tk_path::StoreDir;
use tk_store::reference::Settings;

/// The settings that every binary cache has.
pub struct CacheSettings {
    pub store_dir: StoreDir,
    pub compression: Compression,
    pub level: Option<i32>,
    pub listing: bool,
    pub debug_info: bool,
    pub sign: Vec<Arc<SecretKey>>,
    pub priority: Option<i32>,
    pub want_mass_query: Option<bool>,
    pub strict_file_hash: bool,
    pub warnings: CacheWarnings,
}

impl CacheSettings {
    /// Takes them from the URI; what the command line says wins.
    pub fn take(cx: &Context, settings: &mut Settings, wish: &Wish) -> Result<Self> {
        let named = "none, xz, zstd, bzip2, gzip or br";
        let compression = settings.take_with("compression", named, |name| name.parse().ok())?;
        // zstd, not Nix's xz: a fraction of the time for a few percent of the size.
        let compression = wish.compression.or(compression);
        let level =
            settings.take_with("compression-level", "a whole number", |n| n.parse().ok())?;
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
        Ok(CacheSettings {
            store_dir: take_store_dir(settings)?,
            compression: compression.unwrap_or(Compression::Zstd),
            // Nix's -1: the default of the compression.
            level: wish.level.or(level).filter(|level: &i32| *level != -1),
            listing: wish.listing | listing.unwrap_or(false),
            debug_info: settings.take_bool("index-debug-info")?.unwrap_or(false),
            sign,
            priority: wish.priority.or(priority),
            want_mass_query: wish.want_mass_query.or(mass_query),
            strict_file_hash: settings.take_bool("strict-file-hash")?.unwrap_or(false),
            warnings: warnings(cx),
        })
    }
}

/// The cache in `folder`.
pub async fn folder(
    cx: &Context,
    folder: PathBuf,
    settings: &mut Settings,
    wish: &Wish,
) -> Result<Opened> {
    let shared = CacheSettings::take(cx, settings, wish)?;
    let mut config = FolderConfig::new(folder);
    config.store_dir = shared.store_dir;
    config.compression = shared.compression;
    config.level = shared.level;
    config.write_listing = shared.listing;
    config.index_debug_info = shared.debug_info;
    config.sign = shared.sign;
    config.priority = shared.priority;
    config.want_mass_query = shared.want_mass_query;
    config.strict_file_hash = shared.strict_file_hash;
    config.warnings = shared.warnings;
    if let Some(jobs) = wish.jobs {
        config.jobs = jobs;
    }
    config.create = wish.write || wish.dry_run;
    config.require_references = !wish.incomplete;
    Ok(Opened::Cache(Arc::new(FolderCache::open(config).await?)))
}

/// What is wrong in one cache is told a few times: it is often wrong in all of it.
fn warnings(cx: &Context) -> CacheWarnings {
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
