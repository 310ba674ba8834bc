//! NARs into a place that takes them before they have a name: the thread that packs a NAR writes
//! it there, and the hash of what it wrote is the name.

use super::{
    CacheInner,
    add::{AddFailure, Uploaded},
};
use crate::{
    journal::ArrivedNar,
    layout::NAR_FOLDER,
    objects::{StagedObject, Staging},
    pack::{ContentCheck, PackSummary, Unpacked, pack},
};
use std::sync::{Arc, PoisonError};
use tk_narinfo::{NarInfo, PathInfo};
use tk_path::{NarHash, References};
use tk_store::{
    AddOptions, ContentHasher, Error, Existing, NarStream, Result, nar::BlockingNar,
    progress::arriving,
};

/// A NAR that was packed before it was added.
pub(super) struct PackedAhead {
    object: Box<dyn StagedObject>,
    packed: PackSummary,
}

/// See [`BinaryCache::pack_ahead`](super::BinaryCache::pack_ahead).
pub(super) async fn pack_ahead(
    cache: &Arc<CacheInner>,
    name: String,
    hasher: ContentHasher,
    nar: NarStream,
) -> Result<PathInfo> {
    let staging = cache.objects.staging().ok_or_else(|| Error::Unsupported {
        store: cache.to_string(),
        what: "takes no NAR before its name is known".to_owned(),
    })?;
    cache.init().await?;
    let permit = cache.encoder_room(None).await;
    let unpacked = Unpacked {
        nar: BlockingNar::new(nar),
        size: None,
        check: hasher,
        name: name.clone(),
    };
    let work = {
        let cache = cache.clone();
        move || {
            let _permit = permit;
            let packed = pack_to(&*staging, &cache, unpacked);
            let (hasher, packed) = packed.map_err(AddFailure::into_error)?;
            let info = hasher.finish(&cache.config.store_dir, &name, &References::default())?;
            let ahead = cache.packed_ahead.lock();
            let mut ahead = ahead.unwrap_or_else(PoisonError::into_inner);
            ahead.insert(info.nar_hash, packed);
            Ok(info)
        }
    };
    cache.packers.run(work).await?
}

/// See [`CacheInner::upload`].
pub(super) async fn upload(
    cache: Arc<CacheInner>,
    staging: Arc<dyn Staging>,
    info: PathInfo,
    nar: NarStream,
    options: AddOptions,
) -> Result<Uploaded, AddFailure> {
    let size = (info.nar_size != 0).then_some(info.nar_size);
    let permit = cache.encoder_room(size).await;
    let nar = BlockingNar::new(arriving(nar, &options.progress));
    let ahead = cache.take_packed_ahead(&info.nar_hash);
    if ahead.is_some() {
        options.progress.arrived(info.nar_size);
    }
    let replace = options.existing == Existing::Replace;
    let work = {
        let cache = cache.clone();
        move || {
            // The encoder's memory is in use until the thread ends, even if nobody waits for it.
            let _permit = permit;
            store(&cache, &*staging, info, nar, ahead, replace)
        }
    };
    let stored = cache.packers.run(work).await.map_err(AddFailure::Item)?;
    let (uploaded, companions) = stored?;
    cache.send_companions(companions).await?;
    Ok(uploaded)
}

/// Puts the NAR there; what is left to do, and what goes beside it.
fn store(
    cache: &CacheInner,
    staging: &dyn Staging,
    info: PathInfo,
    nar: BlockingNar,
    ahead: Option<PackedAhead>,
    replace: bool,
) -> Result<(Uploaded, Vec<(String, String)>), AddFailure> {
    let PackedAhead { object, packed } = match ahead {
        Some(ahead) => ahead,
        None => {
            let (check, packed) = pack_to(staging, cache, Unpacked::of(&info, nar))?;
            // Before it gets its name: what is not as announced must never be visible.
            check.finish().map_err(AddFailure::Item)?;
            packed
        }
    };
    let arrived = ArrivedNar {
        file_hash: packed.hash(&info),
        file_size: packed.size,
        nar_size: packed.nar_size,
    };
    let url = NarInfo::url_for(&arrived.file_hash, cache.config.compression);
    let published = object.publish(&url, replace);
    let writing = |e| Error::io(format!("writing {}", cache.objects.place(&url)), e);
    published.map_err(|e| AddFailure::Cache(writing(e)))?;
    let companions = cache.companions(&info, &url, &packed);
    let uploaded = cache.described(info, url, &arrived, packed.size)?;
    Ok((uploaded, companions))
}

/// Packs a NAR into an object that has no name yet.
fn pack_to<C: ContentCheck>(
    staging: &dyn Staging,
    cache: &CacheInner,
    nar: Unpacked<C>,
) -> Result<(C, PackedAhead), AddFailure> {
    let place = cache.objects.place(NAR_FOLDER);
    let doing = format!("writing the NAR of {} to {place}", nar.name);
    let broken = |e| AddFailure::Cache(Error::io(doing.clone(), e));
    let object = staging.begin(NAR_FOLDER).map_err(broken)?;
    let list = cache.config.write_listing || cache.config.index_debug_info;
    let (object, check, packed) = pack(&cache.compressor, nar, list, object, broken)?;
    Ok((check, PackedAhead { object, packed }))
}

impl CacheInner {
    fn take_packed_ahead(&self, hash: &NarHash) -> Option<PackedAhead> {
        let ahead = self.packed_ahead.lock();
        ahead.unwrap_or_else(PoisonError::into_inner).remove(hash)
    }
}
