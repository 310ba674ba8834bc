//! Opening binary caches: what all kinds have in common, and folders.

use super::{OpenOptions, Result, STORE_SETTINGS, skip, take_store_dir};
use crate::{
    OpenMessage, OpenSettings, OpenStore,
    keys::{read_secret_key, refuse_secret},
};
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
    settings: &OpenSettings,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<BinaryCacheConfig> {
    let named = "none, xz, zstd, bzip2, gzip or br";
    let compression = params.take_with("compression", named, |name| name.parse().ok())?;
    let level = params.take_with("compression-level", "a whole number", |n| n.parse().ok())?;
    let mut sign = Vec::new();
    for name in ["secret-key", "secret-keys"] {
        let files = params.take(name).unwrap_or_default();
        for file in files.split(',').filter(|file| !file.is_empty()) {
            refuse_secret(file.as_ref())?;
            sign.push(Arc::new(read_secret_key(file.as_ref())?));
        }
    }
    let priority = params.take_with("priority", "a number", |n| n.parse().ok())?;
    let listing = params.take_bool("write-nar-listing")?;
    let mass_query = params.take_bool("want-mass-query")?;
    skip(params, STORE_SETTINGS);
    skip(params, IGNORED);
    let defaults = BinaryCacheConfig::default();
    Ok(BinaryCacheConfig {
        store_dir: take_store_dir(settings, params)?,
        // zstd, not Nix's xz: a fraction of the time for a few percent of the size.
        compression: wish
            .compression
            .or(compression)
            .unwrap_or(Compression::Zstd),
        // Nix's -1: the default of the compression.
        level: wish.level.or(level).filter(|level: &i32| *level != -1),
        write_listing: wish.listing | listing.unwrap_or(false),
        index_debug_info: params.take_bool("index-debug-info")?.unwrap_or(false),
        sign,
        jobs: wish.jobs.unwrap_or(defaults.jobs),
        create: wish.write || wish.dry_run,
        require_references: !wish.incomplete,
        priority: wish.priority.or(priority),
        want_mass_query: wish.want_mass_query.or(mass_query),
        strict_file_hash: params.take_bool("strict-file-hash")?.unwrap_or(false),
        warnings: warnings(settings),
        ..defaults
    })
}

/// The cache in `folder`.
pub async fn folder(
    settings: &OpenSettings,
    folder: PathBuf,
    params: &mut Settings,
    wish: &OpenOptions,
) -> Result<OpenStore> {
    let config = config(settings, params, wish)?;
    let cache = BinaryCache::open_folder(folder, config).await?;
    Ok(cache.into())
}

/// What is wrong in one cache is told a few times: it is often wrong in all of it.
fn warnings(settings: &OpenSettings) -> CacheWarnings {
    let (tell, told) = (
        settings.tell.clone(),
        Mutex::new(BTreeMap::<_, usize>::new()),
    );
    let warn = move |line| tell(OpenMessage::Warning(line));
    CacheWarnings::to(move |warning| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let times = told.entry(warning.kind()).or_default();
        *times += 1;
        match *times {
            ..=WARNINGS => warn(warning.to_string()),
            FURTHER => {
                warn("further warnings of this kind about this cache are not shown".into());
            }
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
