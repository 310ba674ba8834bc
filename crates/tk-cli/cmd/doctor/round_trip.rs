//! Whether a cache takes what it is given.

use super::{CommandContext, OpenOptions, caches::narinfo_name};
use anyhow::{Context as _, Result, bail};
use std::{
    fs, process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tk_cache::BinaryCache;
use tk_nar::fs::{Dump, DumpOptions};
use tk_narinfo::{MAX_NARINFO_BYTES, NarInfo};
use tk_open::{OpenStore, open_with, push_folder, without_password};
use tk_path::{Algorithm, HashPart, Method, References, StorePath};
use tk_project::doctor::DoctorFinding;
use tk_store::{ContentHasher, Store, StoreExt};
use tokio::time::timeout;

/// Writes a small path to the cache at `uri`, reads it back, and removes it. What cannot be removed is told.
pub async fn try_writing(cx: &CommandContext, uri: &str, patience: Duration) -> DoctorFinding {
    let name = &*without_password(uri);
    let advice = "see whether the login (netrc, AWS_…, the owner of the folder) may write there";
    let failed =
        |line: String| DoctorFinding::fail("write", format!("{name}: {line}"), advice).of(name);
    let line = |error: anyhow::Error| crate::output::line_of(&error);
    let late = || anyhow::anyhow!("it took longer than {} s", patience.as_secs());
    let opened = timeout(patience, open_to_write(cx, uri)).await;
    let opened = match opened.unwrap_or_else(|_| Err(late())) {
        Ok(opened) => opened,
        Err(error) => return failed(line(error)),
    };
    let sample = match WriteProbe::new(&opened) {
        Ok(sample) => sample,
        Err(error) => return failed(line(error)),
    };
    let written = timeout(patience, sample.write(&opened)).await;
    let written = written.unwrap_or_else(|_| Err(late()));
    let used = match written {
        Ok(()) => {
            let read = timeout(patience, read(cx, uri, &sample.path)).await;
            read.unwrap_or_else(|_| Err(late()))
        }
        Err(error) => Err(error),
    };
    // A write that failed, or was not waited for, may have put something there all the same.
    let removed = timeout(patience, remove(cx, &opened, &sample.path)).await;
    let path = &sample.path;
    let left = match removed.unwrap_or_else(|_| Err(late())) {
        Ok(true) => None,
        Ok(false) => Some(format!(
            "it does not name {path}, but a file of 200 bytes may be left below nar/"
        )),
        Err(error) => Some(format!(
            "{path} and its file below nar/ may stay there, 200 bytes: {}",
            line(error)
        )),
    };
    match (used, left) {
        (Err(error), None) => failed(line(error)),
        (Err(error), Some(left)) => failed(format!("{}; {left}", line(error))),
        (Ok(()), Some(left)) => DoctorFinding::warn(
            "write",
            format!("{name} takes paths and gives them back, but {left}"),
            "remove it by hand if that is in the way",
        )
        .of(name),
        (Ok(()), None) => {
            DoctorFinding::pass("write", format!("{name} takes paths, and gives them back"))
                .of(name)
        }
    }
}

async fn open_to_write(cx: &CommandContext, uri: &str) -> Result<OpenStore> {
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
    Ok(open_with(uri, &cx.settings, &wish).await?)
}

/// A file that nobody else has, and its store path: known before it is written, so that it can be removed
/// however the write ends.
struct WriteProbe {
    folder: TempDir,
    path: StorePath,
}

impl WriteProbe {
    fn new(opened: &OpenStore) -> Result<Self> {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        let file = folder.path().join(NAME);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = now.unwrap_or_default().as_nanos();
        fs::write(&file, format!("{nanos} {}", process::id())).context("writing a file")?;
        let mut hasher = ContentHasher::new(Method::Nar, Algorithm::Sha256)?;
        for chunk in Dump::new(&file, &DumpOptions::default())? {
            hasher.update(chunk?.as_ref())?;
        }
        let info = hasher.finish(opened.store().dir(), NAME, &References::default())?;
        let path = info.path;
        Ok(WriteProbe { folder, path })
    }

    async fn write(&self, opened: &OpenStore) -> Result<()> {
        let path = push_folder(self.folder.path().join(NAME), NAME, opened, &[]).await?;
        debug_assert_eq!(path, self.path);
        Ok(())
    }
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

/// Whether it was there. It is asked for anew: what this program remembers is older than the write.
async fn remove(cx: &CommandContext, opened: &OpenStore, path: &StorePath) -> Result<bool> {
    let cache: &BinaryCache = opened.cache().context("it is no binary cache")?;
    let part = HashPart::parse(path.hash_part())?;
    let (objects, name) = (cache.objects(), narinfo_name(&part));
    let narinfo = objects.read(&name, MAX_NARINFO_BYTES).await?;
    if let Some(memory) = cx.settings.narinfo_memory() {
        memory.of(&objects.to_string(), cache.dir()).forget(&[part]);
    }
    let Some(narinfo) = narinfo else {
        return Ok(false);
    };
    let narinfo = NarInfo::parse(cache.dir(), std::str::from_utf8(&narinfo)?)?;
    objects.remove(&name).await?;
    objects.remove(&narinfo.url).await?;
    Ok(true)
}

/// Of the path that is written.
const NAME: &str = "tk-store-doctor";
