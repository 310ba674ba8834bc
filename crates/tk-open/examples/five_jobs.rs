//! Hashes the folder `site`, pushes it into a signed cache, finds it there, pulls it, and asks a daemon.

use std::{error::Error, path::Path, sync::Arc};
use tk_open::path::{Algorithm, Encoding};
use tk_open::{OpenOptions, OpenSettings, Policy, SecretKey, StoreExt};
use tk_open::{nar_hash, open, open_with, pull, push_folder};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Nothing of the environment. `OpenSettings::from_environment()` knows what Nix would know.
    let settings = OpenSettings::default();
    let here = std::env::current_dir()?.display().to_string();

    // 1. The NAR hash of a folder.
    let hash = nar_hash(Path::new("site"), Algorithm::Sha256)?;
    println!("NAR hash {}", hash.to_text(Encoding::Nix32));

    // 2. A folder goes into a signed cache, straight from where it lies.
    let keys = [Arc::new(SecretKey::generate("example-1")?)];
    let uri = format!("file://{here}/cache");
    let cache = open_with(&uri, &settings, &OpenOptions::to_write()).await?;
    let path = push_folder("site", "site", &cache, &keys).await?;

    // 3. Is it cached, with all that it refers to?
    let paths = [path];
    let found = cache.look_at_closure(&paths).await;
    let (there, absent) = (found.listed.narinfos.len(), found.absent.len());
    println!("{}: {there} there, {absent} absent", paths[0]);

    // 4. It comes back into a store on disk, if somebody trusted has signed it.
    let store = open_with("./store", &settings, &OpenOptions::to_write()).await?;
    let trust = Policy::new(keys.iter().map(|key| key.public()).collect());
    let report = pull(&cache, &store, paths.clone(), Arc::new(trust)).await?;
    let (pulled, failed) = (report.copied.len(), report.failed.len());
    println!("pulled {pulled}, failed {failed}");

    // 5. A daemon is asked what it knows.
    if let Some(uri) = std::env::args().nth(1) {
        let daemon = open(&uri, &settings).await?;
        println!("the daemon speaks {:?}", daemon.describe().await?.version);
        let info = daemon.store().info(&paths[0]).await?;
        println!("it has the path: {}", info.is_some());
    }
    Ok(())
}
