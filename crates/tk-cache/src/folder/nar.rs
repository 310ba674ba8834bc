//! NARs out of the cache.

use super::{Inner, files, reading};
use crate::{
    layout,
    unpack::{Check, Packed, Source},
};
use std::{fs::File, io, path::Path, sync::Arc};
use tk_path::StorePath;
use tk_store::{Error, NarStream, Result, nar};

/// Opens the NAR of `path`.
pub(super) fn open(cache: Arc<Inner>, path: StorePath) -> Result<Packed<File>> {
    let store = cache.to_string();
    let Some(narinfo) = cache.narinfo(&path)? else {
        return Err(Error::NotFound { path, store });
    };
    let url = layout::path_of_url(&narinfo.url)
        .map_err(|e| Error::malformed(format!("the narinfo of {path} in {store}"), e))?;
    let name = cache.root.join(url);
    let missing = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            "its narinfo is there, its NAR is not",
        )
    };
    let file = files::open(&name)
        .and_then(|file| file.ok_or_else(missing))
        .map_err(|e| Error::io(format!("opening {} of {path}", name.display()), e))?;
    let size = file.metadata().map_err(|e| reading(&name, e))?.len();
    let name = name.display().to_string();
    if cache.config.strict_file_hash {
        let check = Check {
            name: &name,
            narinfo: &narinfo,
            store: &store,
        };
        check.size(size)?;
    }
    Ok(Packed {
        source: file,
        name,
        narinfo,
        store,
        strict: cache.config.strict_file_hash,
        warnings: cache.config.warnings.clone(),
    })
}

/// The NAR, unpacked on a thread of its own.
pub(super) fn stream(packed: Packed<File>) -> NarStream {
    nar::produce(move |send| packed.unpack(send))
}

impl Source for File {
    fn failure(&mut self, name: &str, error: io::Error) -> Error {
        reading(Path::new(name), error)
    }
}
