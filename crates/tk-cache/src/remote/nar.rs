//! NARs out of the cache.

use super::Inner;
use crate::unpack::{Packed, Source};
use std::io;
use tk_narinfo::NarInfo;
use tk_path::StorePath;
use tk_store::{
    ByteStream, Error, NarStream, Result,
    nar::{self, BlockingNar},
};

impl Inner {
    /// The NAR of `path`. What is remembered of it may be old: then it is asked once more.
    pub(super) async fn nar(&self, path: &StorePath) -> Result<NarStream> {
        let part = path.to_hash_part();
        let named = |narinfo: &NarInfo| narinfo.info.path == *path;
        let remembered = self.narinfo_of_part(&part).await?.filter(named);
        if let Some(narinfo) = &remembered
            && let Some(bytes) = self.objects.stream(&narinfo.url).await?
        {
            return Ok(self.unpack(narinfo.clone(), bytes));
        }
        let mut now = None;
        if self.config.known.is_some() {
            self.forget(part).await;
            now = self.fetch(&part).await?.filter(named);
        }
        let narinfo = match (remembered, now) {
            (Some(old), Some(now)) if old.url != now.url => now,
            (None, Some(now)) => now,
            (Some(_), Some(now)) => return Err(self.no_nar(&now)),
            (Some(old), None) if self.config.known.is_none() => return Err(self.no_nar(&old)),
            _ => {
                return Err(Error::NotFound {
                    path: path.clone(),
                    store: self.to_string(),
                });
            }
        };
        match self.objects.stream(&narinfo.url).await? {
            Some(bytes) => Ok(self.unpack(narinfo, bytes)),
            None => Err(self.no_nar(&narinfo)),
        }
    }

    fn unpack(&self, narinfo: NarInfo, bytes: ByteStream) -> NarStream {
        let packed = Packed {
            source: BlockingNar::new(bytes),
            name: format!("{} in {self}", narinfo.url),
            narinfo,
            store: self.to_string(),
        };
        nar::produce(move |send| packed.unpack(send))
    }

    fn no_nar(&self, narinfo: &NarInfo) -> Error {
        let reason = "its narinfo is there, its NAR is not";
        Error::io(
            format!("reading {} of {} in {self}", narinfo.url, narinfo.info.path),
            io::Error::new(io::ErrorKind::NotFound, reason),
        )
    }
}

impl Source for BlockingNar {
    fn failure(&mut self, name: &str, error: io::Error) -> Error {
        let reading = |error| Error::io(format!("reading {name}"), error);
        self.take_error().unwrap_or_else(|| reading(error))
    }
}
