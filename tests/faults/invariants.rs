//! What readers rely on, whatever became of those who wrote.

use rusqlite::{Connection, OpenFlags};
use std::{collections::BTreeMap, fs, path::Path};
use tk_cache::{BinaryCache, BinaryCacheConfig};
use tk_local::{LocalConfig, LocalStore};
use tk_path::{Algorithm, Hash, StorePath};
use tk_store::{Store, StoreExt, verify};

/// Whether a narinfo that is in the folder `root` has its NAR, with the bytes that it says, and the
/// narinfos of its references. That there is no cache is fine.
pub async fn cache(root: &Path) -> Result<(), String> {
    if !root.exists() {
        return Ok(());
    }
    let cache = BinaryCache::open_folder(root, BinaryCacheConfig::default()).await;
    let cache = cache.map_err(|e| format!("the cache cannot be opened: {}", e.to_line()))?;
    let paths = cache.all_paths().await;
    let paths = paths.map_err(|e| format!("a narinfo is broken: {}", e.to_line()))?;
    closed(&cache, &paths.into_iter().collect::<Vec<_>>()).await
}

/// Whether what is registered in the store at `root` is there, with the bytes that were registered,
/// and with its references; and whether the database is sound. That there is no store is fine.
pub async fn local(root: &Path) -> Result<(), String> {
    let config = LocalConfig::chroot(root);
    if !config.database().exists() {
        return Ok(());
    }
    database(&config.database())?;
    let store = LocalStore::open(config).await;
    let store = store.map_err(|e| format!("the store cannot be opened: {}", e.to_line()))?;
    let paths = store.all().await.map_err(|e| e.to_line())?;
    closed(&store, &paths.into_iter().collect::<Vec<_>>()).await
}

/// All files of the cache at `root`, by name, with the hashes of their contents.
pub fn files(root: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            // A folder without files is something left behind as well.
            let content = fs::read(&path).unwrap_or_default();
            let name = path.strip_prefix(root).expect("below").to_string_lossy();
            let hash = Hash::digest(Algorithm::Sha256, &content).to_string();
            files.insert(name.into_owned(), hash);
        }
    }
    files
}

/// All that lies in the store at `root` and is said of it, but for the times.
pub async fn rows(root: &Path) -> BTreeMap<String, String> {
    let store = LocalStore::open(LocalConfig::chroot(root)).await;
    let store = store.expect("the store opens");
    let entries = fs::read_dir(store.real_dir()).expect("a store");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let mut rows: BTreeMap<_, _> = names
        .filter(|name| name != ".links")
        .map(|name| (name, "not registered".to_owned()))
        .collect();
    for path in store.all().await.expect("a list") {
        let mut info = store.require_info(&path).await.expect("a row");
        info.registration_time = 0;
        rows.insert(path.to_string(), format!("{info:?}"));
    }
    rows
}

async fn closed(store: &dyn Store, paths: &[StorePath]) -> Result<(), String> {
    for path in paths {
        let info = store.require_info(path).await.map_err(|e| e.to_line())?;
        if let Err(error) = verify(store, &info).await {
            return Err(format!("the content of {path}: {}", error.to_line()));
        }
        if let Some(absent) = info.references.iter().find(|r| !paths.contains(r)) {
            return Err(format!("{path} is visible without {absent}"));
        }
    }
    Ok(())
}

fn database(file: &Path) -> Result<(), String> {
    let open = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let check = |database: Connection| {
        let sound: String = database.query_row("pragma integrity_check", [], |row| row.get(0))?;
        let sql = "select count(*) from pragma_foreign_key_check";
        let astray: i64 = database.query_row(sql, [], |row| row.get(0))?;
        Ok((sound, astray))
    };
    match open
        .and_then(check)
        .map_err(|e| format!("the database: {e}"))?
    {
        (sound, 0) if sound == "ok" => Ok(()),
        found => Err(format!("the database is not sound: {found:?}")),
    }
}
