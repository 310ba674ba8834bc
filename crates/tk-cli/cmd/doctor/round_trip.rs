//! Whether a cache takes what it is given.

use super::{CommandContext, OpenOptions, caches::narinfo_name};
use anyhow::{Context as _, Result, bail};
use std::{
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_cache::BinaryCache;
use tk_open::{OpenStore, open_with, push_folder};
use tk_path::{HashPart, StorePath};
use tk_project::doctor::DoctorFinding;
use tk_store::{Store, StoreExt};
use tokio::time::timeout;

/// Writes a small path to the cache at `uri`, reads it back, and removes it.
pub async fn try_writing(cx: &CommandContext, uri: &str, patience: Duration) -> DoctorFinding {
    let advice = "see whether the login (netrc, AWS_…, the owner of the folder) may write there";
    let failed = |error: anyhow::Error| {
        let line = crate::output::line_of(&error);
        DoctorFinding::fail("write", format!("{uri}: {line}"), advice).of(uri)
    };
    let late = || anyhow::anyhow!("it took longer than {} s", patience.as_secs());
    let written = timeout(patience, write(cx, uri)).await;
    let (cache, path) = match written.unwrap_or_else(|_| Err(late())) {
        Ok(written) => written,
        Err(error) => return failed(error),
    };
    let read = timeout(patience, read(cx, uri, &path)).await;
    let read = read.unwrap_or_else(|_| Err(late()));
    let removed = timeout(patience, remove(cx, &cache, &path)).await;
    let removed = removed.unwrap_or_else(|_| Err(late()));
    match (read, removed) {
        (Err(error), _) => failed(error),
        (Ok(()), Err(error)) => DoctorFinding::warn(
            "write",
            format!(
                "{uri} takes paths and gives them back, but {path} stays there: {}",
                crate::output::line_of(&error)
            ),
            "remove it by hand if its 200 bytes are in the way",
        )
        .of(uri),
        (Ok(()), Ok(())) => {
            DoctorFinding::pass("write", format!("{uri} takes paths, and gives them back")).of(uri)
        }
    }
}

/// Puts a path there that nobody else has.
async fn write(cx: &CommandContext, uri: &str) -> Result<(OpenStore, StorePath)> {
    let mut wish = OpenOptions::default();
    wish.refresh = true;
    // To be written to it would be made; so it is looked at first.
    let there = open_with(uri, &cx.settings, &wish).await?;
    let Some(cache) = there.cache() else {
        bail!("it is no binary cache");
    };
    if cache.read_cache_info().await?.is_none() {
        bail!("it is no cache: it has no nix-cache-info (tk-store cache init makes one)");
    }
    let mut wish = OpenOptions::to_write();
    wish.refresh = true;
    let opened = open_with(uri, &cx.settings, &wish).await?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let file = folder.path().join(NAME);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    std::fs::write(&file, format!("{nanos} {}", process::id())).context("writing a file")?;
    let path = push_folder(file, NAME, &opened, &[]).await?;
    Ok((opened, path))
}

async fn read(cx: &CommandContext, uri: &str, path: &StorePath) -> Result<()> {
    let mut wish = OpenOptions::default();
    wish.refresh = true;
    let store = open_with(uri, &cx.settings, &wish).await?.store();
    let info = store.info(path).await?;
    let info = info.context("it took a path, but does not have it")?;
    tk_store::verify(&*store, &info).await?;
    Ok(())
}

async fn remove(cx: &CommandContext, opened: &OpenStore, path: &StorePath) -> Result<()> {
    let cache: &BinaryCache = opened.cache().context("it is no binary cache")?;
    let part = HashPart::parse(path.hash_part())?;
    let narinfo = cache.narinfo(path).await?;
    let narinfo = narinfo.context("it has it no longer")?;
    let objects = cache.objects();
    objects.remove(&narinfo_name(&part)).await?;
    objects.remove(&narinfo.url).await?;
    if let Some(memory) = cx.settings.narinfo_memory() {
        memory.of(&objects.to_string(), cache.dir()).forget(&[part]);
    }
    Ok(())
}

/// Of the path that is written.
const NAME: &str = "tk-store-doctor";
