//! One NAR into the cache, and narinfos.

use super::{Inner, MIB, files, writing};
use crate::{
    add::{Failure, Publishing, Target, Uploaded},
    blocking,
    layout::{self, NAR_FOLDER},
    pack::{ContentCheck, Packed, Unpacked, narinfo, no_listing, pack},
};
use futures::{FutureExt, future::BoxFuture};
use std::{collections::BTreeSet, fs, io, path::Path, sync::Arc};
use tk_narinfo::{NarInfo, PathInfo};
use tk_path::{References, StoreDir, StorePath};
use tk_store::{
    AddOptions, ContentHasher, Error, Existing, NarStream, Result, nar::BlockingNar,
    progress::arriving,
};
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
        async move { Ok(self.present(paths).await?.into_keys().collect()) }.boxed()
    }

    fn upload(
        self: Arc<Self>,
        info: PathInfo,
        nar: NarStream,
        options: AddOptions,
    ) -> BoxFuture<'static, Result<Uploaded, Failure>> {
        let work = async move {
            let permit = self.room(info.nar_size).await;
            let nar = BlockingNar::new(arriving(nar, &options.progress));
            let ahead = self.take_packed_ahead(&info);
            if ahead.is_some() {
                options.progress.arrived(info.nar_size);
            }
            let replace = options.existing == Existing::Replace;
            let cache = self.clone();
            let work = self.packers.run(move || {
                let _permit = permit;
                upload(&cache, info, nar, ahead, replace)
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

/// A NAR that was packed before it was added.
pub(super) struct PackedAhead {
    temporary: files::Temporary,
    packed: Packed,
}

impl Inner {
    /// See [`FolderCache::pack_ahead`](super::FolderCache::pack_ahead).
    pub(super) async fn pack_ahead(
        self: Arc<Self>,
        name: String,
        hasher: ContentHasher,
        nar: NarStream,
    ) -> Result<PathInfo> {
        let cache = self.clone();
        blocking(move || cache.prepare()).await?;
        let permit = self.room(0).await;
        let unpacked = Unpacked {
            nar: BlockingNar::new(nar),
            size: None,
            check: hasher,
            name: name.clone(),
        };
        let cache = self.clone();
        let work = move || {
            let _permit = permit;
            let packed = pack_to_temporary(&cache, unpacked);
            let (hasher, packed) = packed.map_err(Failure::into_error)?;
            let info = hasher.finish(&cache.config.store_dir, &name, &References::default())?;
            cache.packed_ahead().insert(info.nar_hash, packed);
            Ok(info)
        };
        self.packers.run(work).await?
    }

    fn take_packed_ahead(&self, info: &PathInfo) -> Option<PackedAhead> {
        self.packed_ahead().remove(&info.nar_hash)
    }

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
fn upload(
    cache: &Inner,
    mut info: PathInfo,
    nar: BlockingNar,
    ahead: Option<PackedAhead>,
    replace: bool,
) -> Result<Uploaded, Failure> {
    let config = &cache.config;
    let PackedAhead { temporary, packed } = match ahead {
        Some(ahead) => ahead,
        None => {
            let (check, packed) = pack_to_temporary(cache, Unpacked::of(&info, nar))?;
            check.finish().map_err(Failure::Item)?;
            packed
        }
    };
    let hash = packed.hash(&info);
    let url = NarInfo::url_for(&hash, config.compression);
    let file = cache.root.join(&url);
    let broken = |e| Failure::Cache(writing(&file, e));
    // Another path with the same content: what is there may be in use and is as good.
    if replace || !is_there(&file, packed.size).map_err(broken)? {
        temporary.rename(&file).map_err(broken)?;
    }
    let wanted = (config.write_listing, config.index_debug_info);
    let skipped = || config.warnings.tell(|| no_listing(&info, cache));
    for (name, content) in packed.companions(&info, &url, wanted, skipped) {
        let file = cache.root.join(name);
        write_companion(&file, &content).map_err(|e| Failure::Cache(writing(&file, e)))?;
    }
    info.nar_size = packed.nar_size;
    let written = packed.size;
    let file = (hash, packed.size);
    let (dir, keys) = (&config.store_dir, &config.sign);
    let narinfo = narinfo(dir, info, url, config.compression, file, keys)?;
    Ok(Uploaded { narinfo, written })
}

/// Packs a NAR into a file that has no name in the cache yet.
fn pack_to_temporary<C: ContentCheck>(
    cache: &Inner,
    nar: Unpacked<C>,
) -> Result<(C, PackedAhead), Failure> {
    let folder = cache.root.join(NAR_FOLDER);
    let doing = format!("writing the NAR of {} to {}", nar.name, folder.display());
    let broken = |e| Failure::Cache(Error::io(doing.clone(), e));
    let mut temporary = files::Temporary::new(&folder).map_err(broken)?;
    let list = cache.config.write_listing || cache.config.index_debug_info;
    let out = temporary.file();
    let (_, check, packed) = pack(&cache.compressor, nar, list, out, broken)?;
    Ok((check, PackedAhead { temporary, packed }))
}

fn write_companion(file: &Path, content: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        files::make_folder(folder)?;
    }
    files::write(file, content.as_bytes())
}

fn is_there(file: &Path, size: u64) -> io::Result<bool> {
    match fs::metadata(file) {
        // One of another size is damaged, and replaced.
        Ok(metadata) => Ok(metadata.is_file() && metadata.len() == size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
