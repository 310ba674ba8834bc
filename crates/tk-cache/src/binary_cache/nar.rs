//! NARs out of the cache.

use super::CacheInner;
use crate::{blocking, objects::ObjectReader, unpack::PackedNar};
use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, MutexGuard, PoisonError},
};
use tk_narinfo::NarInfo;
use tk_path::{HashPart, StorePath};
use tk_store::{Error, NarStream, Result, nar};

impl CacheInner {
    /// The NAR of `path`. What is remembered of it may be old: then it is asked once more.
    pub(super) async fn nar(self: &Arc<Self>, path: &StorePath) -> Result<NarStream> {
        let part = path.to_hash_part();
        let named = |narinfo: &NarInfo| narinfo.info.path == *path;
        let remembered = self.narinfo_of_part(&part).await?.filter(named);
        if let Some(narinfo) = &remembered
            && let Some(source) = self.objects.reader(&narinfo.url).await?
        {
            return Ok(self.unpack(narinfo.clone(), source));
        }
        let not_found = || Error::NotFound {
            path: path.clone(),
            store: self.to_string(),
        };
        if self.config.known.is_none() {
            return Err(remembered.map_or_else(not_found, |narinfo| self.no_nar(&narinfo)));
        }
        let now = self.ask_again(&part).await?.filter(named);
        let now = now.ok_or_else(not_found)?;
        match &remembered {
            Some(old) if old.url == now.url => {
                self.forget(vec![part]).await;
                return Err(self.no_nar(&now));
            }
            // Whoever asked for it expects the old one.
            Some(old) if old.info.nar_hash != now.info.nar_hash => {
                return Err(Error::Mismatch {
                    what: "NAR hash",
                    path: path.clone(),
                    from: self.to_string(),
                    expected: old.info.nar_hash.to_string(),
                    actual: now.info.nar_hash.to_string(),
                });
            }
            _ => {}
        }
        match self.objects.reader(&now.url).await? {
            Some(source) => Ok(self.unpack(now, source)),
            None => Err(self.no_nar(&now)),
        }
    }

    /// What the cache says now in the place of what is remembered. [`CacheInner::renew`] tells of it.
    async fn ask_again(self: &Arc<Self>, part: &HashPart) -> Result<Option<NarInfo>> {
        self.forget(vec![*part]).await;
        let now = self.narinfo_of_part(part).await?;
        self.renewed().insert(*part);
        Ok(now)
    }

    /// See [`Store::renew`](tk_store::Store::renew).
    pub(super) async fn renew(self: &Arc<Self>, part: HashPart) -> Result<bool> {
        let Some(known) = self.known() else {
            return Ok(false);
        };
        // It was asked again already, and what was said before is no more.
        if self.renewed().remove(&part) {
            return Ok(true);
        }
        let look = || {
            let known = known.clone();
            blocking(move || Ok(known.get(&[part]).pop().flatten()))
        };
        let before = look().await?;
        if before.is_none() {
            return Ok(false);
        }
        self.forget(vec![part]).await;
        let now = self.narinfo_of_part(&part).await?;
        Ok(match look().await? {
            // It cannot be remembered.
            None => now.is_some(),
            now => now != before,
        })
    }

    fn renewed(&self) -> MutexGuard<'_, BTreeSet<HashPart>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpack(&self, narinfo: NarInfo, source: Box<dyn ObjectReader>) -> NarStream {
        let packed = PackedNar {
            source,
            name: self.objects.place(&narinfo.url),
            narinfo,
            store: self.to_string(),
            strict: self.config.strict_file_hash,
            warnings: self.config.warnings.clone(),
        };
        nar::produce(move |send| packed.unpack(send))
    }

    fn no_nar(&self, narinfo: &NarInfo) -> Error {
        let reason = "its narinfo is there, its NAR is not";
        Error::io(
            format!(
                "reading {} of {}",
                self.objects.place(&narinfo.url),
                narinfo.info.path
            ),
            io::Error::new(io::ErrorKind::NotFound, reason),
        )
    }
}
