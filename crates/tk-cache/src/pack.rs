//! One NAR on its way into a cache: read, checked, packed, hashed and counted in one pass.

use crate::{
    CacheWarning, binary_cache::add::AddFailure, compress::Compressor, debug_info, layout,
};
use std::{
    fmt::Display,
    io::{self, Write},
    sync::Arc,
};
use tk_nar::{Listing, ListingBuilder};
use tk_narinfo::{Compression, NarInfo, PathInfo, SecretKey};
use tk_path::{Algorithm, Hash, Hasher, StoreDir};
use tk_store::{ContentHasher, Error, NarCheck, nar::BlockingNar};

/// A NAR to be packed.
pub(crate) struct Unpacked<C> {
    pub(crate) nar: BlockingNar,
    /// Its size, if that is known.
    pub(crate) size: Option<u64>,
    /// What sees all of it.
    pub(crate) check: C,
    /// Whose it is, for errors.
    pub(crate) name: String,
}

impl Unpacked<NarCheck> {
    /// The NAR that `info` is about. That it is what it should be is for the caller to ask at the
    /// end.
    pub(crate) fn of(info: &PathInfo, nar: BlockingNar) -> Self {
        Unpacked {
            nar,
            size: (info.nar_size != 0).then_some(info.nar_size),
            check: NarCheck::new(info, "its source"),
            name: info.path.to_string(),
        }
    }
}

/// What sees a NAR while it is packed.
pub(crate) trait ContentCheck {
    /// Takes the next bytes; an error ends it.
    fn update(&mut self, chunk: &[u8]) -> tk_store::Result<()>;
}

impl ContentCheck for NarCheck {
    fn update(&mut self, chunk: &[u8]) -> tk_store::Result<()> {
        NarCheck::update(self, chunk)
    }
}

impl ContentCheck for ContentHasher {
    fn update(&mut self, chunk: &[u8]) -> tk_store::Result<()> {
        ContentHasher::update(self, chunk)
    }
}

/// What is known of a NAR when all of it was packed.
pub(crate) struct PackSummary {
    /// Hash of the packed file; `None` where that is the NAR as it is.
    hash: Option<Hash>,
    /// Bytes of the packed file.
    pub(crate) size: u64,
    /// Bytes of the NAR.
    pub(crate) nar_size: u64,
    /// What is in it, if that was wanted.
    pub(crate) listing: Option<Listing>,
}

/// Packs a NAR into `out`, and gives back what saw it. `broken` says what could not be written.
pub(crate) fn pack<W: Write, C: ContentCheck>(
    compressor: &Compressor,
    unpacked: Unpacked<C>,
    list: bool,
    out: W,
    broken: impl Fn(io::Error) -> AddFailure,
) -> Result<(W, C, PackSummary), AddFailure> {
    let Unpacked {
        nar,
        size,
        mut check,
        name,
    } = unpacked;
    let plain = compressor.compression() == Compression::None;
    let counted = Counted {
        out,
        // That of the NAR as it is is known.
        hasher: (!plain).then(|| Hasher::new(Algorithm::Sha256)),
        size: 0,
    };
    let mut encoder = compressor.encoder(counted, size).map_err(&broken)?;
    let mut listing = list.then(ListingBuilder::new);
    let mut nar_size = 0;
    for chunk in nar {
        let chunk = chunk.map_err(AddFailure::Item)?;
        check.update(&chunk).map_err(AddFailure::Item)?;
        if let Some(listing) = &mut listing {
            listing.feed(&chunk).map_err(|e| bad_nar(&name, e))?;
        }
        encoder.write_all(&chunk).map_err(&broken)?;
        nar_size += chunk.len() as u64;
    }
    let listing = listing
        .map(ListingBuilder::finish)
        .transpose()
        .map_err(|e| bad_nar(&name, e))?;
    let Counted { out, hasher, size } = encoder.finish().map_err(&broken)?;
    let packed = PackSummary {
        hash: hasher.map(Hasher::finish),
        size,
        nar_size,
        listing,
    };
    Ok((out, check, packed))
}

impl PackSummary {
    /// Hash of the packed file, whose NAR is that of `info`.
    pub(crate) fn hash(&self, info: &PathInfo) -> Hash {
        self.hash.unwrap_or_else(|| info.nar_hash.into())
    }

    /// What goes beside the NAR of `info`: names and contents. `url` is that of the NAR. A listing
    /// that is wanted and cannot be is `skipped`.
    pub(crate) fn companions(
        &self,
        info: &PathInfo,
        url: &str,
        (listing, debug): (bool, bool),
        skipped: impl FnOnce(),
    ) -> Vec<(String, String)> {
        let Some(tree) = &self.listing else {
            return Vec::new();
        };
        let mut objects = Vec::new();
        if listing && tree.is_utf8() {
            let name = layout::listing(&info.path.to_hash_part());
            objects.push((name, tree.to_json()));
        } else if listing {
            // JSON cannot hold other names.
            skipped();
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
) -> Result<String, AddFailure> {
    for key in keys {
        info.sign(dir, key).map_err(|e| {
            let what = format!("{} cannot be signed: {e}", info.path);
            AddFailure::Item(Error::invalid(what))
        })?;
    }
    let mut narinfo = NarInfo::new(info, url, compression);
    narinfo.file_hash = Some(file.0);
    narinfo.file_size = Some(file.1);
    Ok(narinfo.print(dir))
}

/// The warning for a listing that was skipped.
pub(crate) fn no_listing(info: &PathInfo, cache: &dyn Display) -> CacheWarning {
    CacheWarning::NoListing {
        path: info.path.clone(),
        store: cache.to_string(),
    }
}

fn bad_nar(name: &str, error: tk_nar::NarError) -> AddFailure {
    AddFailure::Item(Error::malformed(format!("the NAR of {name}"), error))
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
