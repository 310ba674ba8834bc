//! One NAR into the cache: read, checked, packed, hashed and written in one pass.

use super::{Inner, MIB, blocking, files, writing};
use crate::{
    add::{Failure, Publishing, Target, Uploaded},
    layout::{self, NAR_FOLDER},
};
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::Path,
    sync::Arc,
};
use tk_nar::ListingBuilder;
use tk_narinfo::{Compression, NarInfo, PathInfo};
use tk_path::{Algorithm, Hash, Hasher, StoreDir, StorePath};
use tk_store::{Error, NarCheck, NarStream, Result, nar::BlockingNar};
use tokio::sync::OwnedSemaphorePermit;

impl Target for Inner {
    fn store_dir(&self) -> &StoreDir {
        &self.config.store_dir
    }

    fn require_references(&self) -> bool {
        self.config.require_references
    }

    fn uploads(&self) -> usize {
        self.config.jobs.get()
    }

    fn publishing(&self) -> Publishing {
        Publishing::Together
    }

    fn valid(
        self: Arc<Self>,
        paths: BTreeSet<StorePath>,
    ) -> BoxFuture<'static, Result<BTreeSet<StorePath>>> {
        blocking(move || Inner::valid(&self, paths)).boxed()
    }

    fn upload(
        self: Arc<Self>,
        info: PathInfo,
        nar: NarStream,
    ) -> BoxFuture<'static, Result<Uploaded, Failure>> {
        let work = async move {
            let permit = self.room(info.nar_size).await;
            let nar = BlockingNar::new(nar);
            let work = blocking(move || {
                let _permit = permit;
                Ok(upload(&self, info, nar))
            });
            work.await.unwrap_or_else(|error| Err(Failure::Item(error)))
        };
        work.boxed()
    }

    fn publish(
        self: Arc<Self>,
        narinfos: Vec<(StorePath, String)>,
    ) -> BoxFuture<'static, Vec<(StorePath, Result<()>)>> {
        publish(self, narinfos).boxed()
    }
}

impl Inner {
    /// Waits until there is memory for one more encoder.
    async fn room(&self, nar_size: u64) -> OwnedSemaphorePermit {
        let size = (nar_size != 0).then_some(nar_size);
        let memory = self.compressor.memory(size).div_ceil(MIB);
        let memory = memory.min(u64::from(self.memory)) as u32;
        let free = self.free_memory.clone();
        free.acquire_many_owned(memory).await.expect("never closed")
    }
}

/// Writes narinfos, in order.
async fn publish(
    cache: Arc<Inner>,
    narinfos: Vec<(StorePath, String)>,
) -> Vec<(StorePath, Result<()>)> {
    let write = move |(path, text): (StorePath, String)| {
        let file = cache.root.join(layout::narinfo(&path.to_hash_part()));
        let written = files::write(&file, text.as_bytes()).map_err(|e| writing(&file, e));
        (path, written)
    };
    let paths: Vec<_> = narinfos.iter().map(|(path, _)| path.clone()).collect();
    let work = blocking(move || Ok(narinfos.into_iter().map(write).collect()));
    work.await.unwrap_or_else(|error| {
        let line = error.to_line();
        let lost = |path| {
            let gone = io::Error::other("no thread");
            (path, Err(Error::io(line.clone(), gone)))
        };
        paths.into_iter().map(lost).collect()
    })
}

/// Puts `nar` into the cache, if it is what `info` says. Its narinfo is not written.
fn upload(cache: &Inner, mut info: PathInfo, nar: BlockingNar) -> Result<Uploaded, Failure> {
    let packed = pack(cache, &info, nar)?;
    let hash = packed.hash.unwrap_or_else(|| info.nar_hash.into());
    let compression = cache.config.compression;
    let url = NarInfo::url_for(&hash, compression);
    let file = cache.root.join(&url);
    let broken = |e| Failure::Cache(writing(&file, e));
    // Another path with the same content: what is there may be in use and is as good.
    if !is_there(&file, packed.size).map_err(broken)? {
        packed.file.rename(&file).map_err(broken)?;
    }
    if let Some(listing) = packed.listing {
        let file = cache.root.join(layout::listing(&info.path.to_hash_part()));
        files::write(&file, listing.as_bytes()).map_err(|e| Failure::Cache(writing(&file, e)))?;
    }
    info.nar_size = packed.nar_size;
    sign(cache, &mut info)?;
    let mut narinfo = NarInfo::new(info, url, compression);
    narinfo.file_hash = Some(hash);
    narinfo.file_size = Some(packed.size);
    Ok(Uploaded {
        narinfo: narinfo.print(&cache.config.store_dir),
        written: packed.size,
    })
}

/// A packed NAR in a temporary file.
struct Packed {
    file: files::Temporary,
    size: u64,
    /// Its hash; `None`: it is the NAR as it is, whose hash is known.
    hash: Option<Hash>,
    nar_size: u64,
    listing: Option<String>,
}

fn pack(cache: &Inner, info: &PathInfo, nar: BlockingNar) -> Result<Packed, Failure> {
    let folder = cache.root.join(NAR_FOLDER);
    let broken = |e| {
        let doing = format!("writing the NAR of {} to {}", info.path, folder.display());
        Failure::Cache(Error::io(doing, e))
    };
    let plain = cache.config.compression == Compression::None;
    let mut file = files::Temporary::new(&folder).map_err(broken)?;
    let sink = Sink {
        out: file.file(),
        hasher: (!plain).then(|| Hasher::new(Algorithm::Sha256)),
        size: 0,
    };
    let size = (info.nar_size != 0).then_some(info.nar_size);
    let mut encoder = cache.compressor.encoder(sink, size).map_err(broken)?;
    let mut check = NarCheck::new(info, "its source");
    let mut listing = cache.config.write_listing.then(ListingBuilder::new);
    let mut nar_size = 0;
    for chunk in nar {
        let chunk = chunk.map_err(Failure::Item)?;
        check.update(&chunk).map_err(Failure::Item)?;
        if let Some(listing) = &mut listing {
            listing.feed(&chunk).map_err(|e| bad_nar(info, e))?;
        }
        encoder.write_all(&chunk).map_err(broken)?;
        nar_size += chunk.len() as u64;
    }
    check.finish().map_err(Failure::Item)?;
    let listing = listing
        .map(ListingBuilder::finish)
        .transpose()
        .map_err(|e| bad_nar(info, e))?;
    let Sink { hasher, size, .. } = encoder.finish().map_err(broken)?;
    Ok(Packed {
        hash: hasher.map(Hasher::finish),
        file,
        size,
        nar_size,
        listing: listing
            .filter(|listing| listing.is_utf8())
            .map(|listing| listing.to_json()),
    })
}

fn sign(cache: &Inner, info: &mut PathInfo) -> Result<(), Failure> {
    for key in &cache.config.sign {
        info.sign(&cache.config.store_dir, key).map_err(|e| {
            Failure::Item(Error::invalid(format!(
                "{} cannot be signed: {e}",
                info.path
            )))
        })?;
    }
    Ok(())
}

fn is_there(file: &Path, size: u64) -> io::Result<bool> {
    match fs::metadata(file) {
        // One of another size is damaged, and replaced.
        Ok(metadata) => Ok(metadata.is_file() && metadata.len() == size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn bad_nar(info: &PathInfo, error: tk_nar::NarError) -> Failure {
    Failure::Item(Error::malformed(format!("the NAR of {}", info.path), error))
}

/// The temporary file, and what is counted of it.
struct Sink<'a> {
    out: &'a mut fs::File,
    hasher: Option<Hasher>,
    size: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..n]);
        }
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
