//! Fetches a store path and all it refers to from a cache into a store. What its content does not prove, KEY
//! (name:base64) must have signed.

use std::{error::Error, sync::Arc};
use tk_open::{OpenOptions, OpenSettings, Policy, keys::read_public_key, open, open_with, pull};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [_, path, from, to, key] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: pull STORE_PATH FROM_URI TO_URI KEY".into());
    };
    let settings = OpenSettings::from_environment()?;
    let cache = open(from, &settings).await?;
    let store = open_with(to, &settings, &OpenOptions::to_write()).await?;
    let trust = Policy::new([read_public_key(key)?].into_iter().collect());
    let path = cache.store().dir().parse(path)?;
    let report = pull(&cache, &store, [path], Arc::new(trust)).await?;
    for (path, error) in &report.failed {
        eprintln!("{path}: {}", error.to_line());
    }
    println!(
        "fetched {}, failed {}",
        report.copied.len(),
        report.failed.len()
    );
    Ok(())
}
