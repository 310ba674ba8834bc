//! One NAR on its way into a cache: read, checked, packed, hashed and counted in one pass.

use crate::{add::Failure, compress::Compressor, debug_info, layout};
use std::{
    io::{self, Write},
    sync::Arc,
};
use tk_nar::{Listing, ListingBuilder};
use tk_narinfo::{Compression, NarInfo, PathInfo, SecretKey};
use tk_path::{Algorithm, Hash, Hasher, StoreDir};
use tk_store::{Error, NarCheck, nar::BlockingNar};

/// What is known of a NAR when all of it was packed.
pub(crate) struct Packed {
    /// Hash of the packed file.
    pub(crate) hash: Hash,
    /// Bytes of the packed file.
    pub(crate) size: u64,
    /// Bytes of the NAR.
    pub(crate) nar_size: u64,
    /// What is in it, if that was wanted.
    pub(crate) listing: Option<Listing>,
}

/// Packs `nar` into `out`, if it is what `info` says. `broken` says what could not be written.
pub(crate) fn pack<W: Write>(
    compressor: &Compressor,
    info: &PathInfo,
    nar: BlockingNar,
    list: bool,
    out: W,
    broken: impl Fn(io::Error) -> Failure,
) -> Result<(W, Packed), Failure> {
    let plain = compressor.compression() == Compression::None;
    let counted = Counted {
        out,
        // That of the NAR as it is is known.
        hasher: (!plain).then(|| Hasher::new(Algorithm::Sha256)),
        size: 0,
    };
    let size = (info.nar_size != 0).then_some(info.nar_size);
    let mut encoder = compressor.encoder(counted, size).map_err(&broken)?;
    let mut check = NarCheck::new(info, "its source");
    let mut listing = list.then(ListingBuilder::new);
    let mut nar_size = 0;
    for chunk in nar {
        let chunk = chunk.map_err(Failure::Item)?;
        check.update(&chunk).map_err(Failure::Item)?;
        if let Some(listing) = &mut listing {
            listing.feed(&chunk).map_err(|e| bad_nar(info, e))?;
        }
        encoder.write_all(&chunk).map_err(&broken)?;
        nar_size += chunk.len() as u64;
    }
    check.finish().map_err(Failure::Item)?;
    let listing = listing
        .map(ListingBuilder::finish)
        .transpose()
        .map_err(|e| bad_nar(info, e))?;
    let Counted { out, hasher, size } = encoder.finish().map_err(&broken)?;
    let packed = Packed {
        hash: hasher.map_or_else(|| info.nar_hash.into(), Hasher::finish),
        size,
        nar_size,
        listing,
    };
    Ok((out, packed))
}

impl Packed {
    /// What goes beside the NAR of `info`: names and contents. `url` is that of the NAR.
    pub(crate) fn companions(
        &self,
        info: &PathInfo,
        url: &str,
        listing: bool,
        debug: bool,
    ) -> Vec<(String, String)> {
        let Some(tree) = &self.listing else {
            return Vec::new();
        };
        let mut objects = Vec::new();
        // JSON cannot hold other names.
        if listing && tree.is_utf8() {
            let name = layout::listing(&info.path.to_hash_part());
            objects.push((name, tree.to_json()));
        }
        if debug {
            objects.extend(debug_info::index(tree, url));
        }
        objects
    }
}

/// The text of the narinfo of a packed NAR, signed with `keys`.
pub(crate) fn narinfo(
    dir: &StoreDir,
    mut info: PathInfo,
    url: String,
    compression: Compression,
    file: (Hash, u64),
    keys: &[Arc<SecretKey>],
) -> Result<String, Failure> {
    for key in keys {
        info.sign(dir, key).map_err(|e| {
            let what = format!("{} cannot be signed: {e}", info.path);
            Failure::Item(Error::invalid(what))
        })?;
    }
    let mut narinfo = NarInfo::new(info, url, compression);
    narinfo.file_hash = Some(file.0);
    narinfo.file_size = Some(file.1);
    Ok(narinfo.print(dir))
}

fn bad_nar(info: &PathInfo, error: tk_nar::NarError) -> Failure {
    Failure::Item(Error::malformed(format!("the NAR of {}", info.path), error))
}

/// The output, and what is counted of it.
struct Counted<W> {
    out: W,
    hasher: Option<Hasher>,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
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
