//! Build logs in the cache: plain, as Nix writes them. A mirror of a cache that is served with
//! `Content-Encoding` may hold them compressed; that is told by how the file begins.

use super::{Inner, files, reading, writing};
use crate::{compress::decoder, layout};
use bytes::Bytes;
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
};
use tk_narinfo::Compression;
use tk_path::StorePath;
use tk_store::{
    ByteStream, Error, Result,
    nar::{BlockingNar, produce},
};

/// A log, opened.
pub(super) struct Log {
    file: File,
    name: PathBuf,
}

impl Log {
    pub(super) fn open(cache: &Inner, drv: &StorePath) -> Result<Option<Self>> {
        let name = cache.root.join(layout::log(drv));
        let file = files::open(&name).map_err(|e| reading(&name, e))?;
        Ok(file.map(|file| Log { file, name }))
    }

    /// The log, unpacked on a thread of its own.
    pub(super) fn stream(self) -> ByteStream {
        produce(move |send| self.unpack(send))
    }

    fn unpack(self, send: &mut dyn FnMut(Bytes) -> bool) -> Result<()> {
        let reading = |e| reading(&self.name, e);
        let mut file = BufReader::with_capacity(CHUNK, &self.file);
        let compression = compression_of(file.fill_buf().map_err(reading)?);
        let mut log = decoder(compression, file)
            .map_err(|e| Error::malformed(self.name.display().to_string(), e))?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = log.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
            read.map_err(reading)?;
            if chunk.is_empty() || !send(chunk.into()) {
                return Ok(());
            }
        }
    }
}

/// Puts the whole of `log` there, or nothing.
pub(super) fn add(cache: &Inner, drv: &StorePath, log: BlockingNar) -> Result<()> {
    if !drv.is_derivation() {
        let what = format!("{drv} is no derivation, so it has no build log");
        return Err(Error::invalid(what));
    }
    let name = cache.root.join(layout::log(drv));
    let writing = |e| writing(&name, e);
    if name.exists() {
        return Ok(());
    }
    cache.prepare()?;
    let folder = cache.root.join(layout::LOG_FOLDER);
    files::make_folder(&folder).map_err(writing)?;
    files::sweep(&folder);
    let mut file = files::Temporary::new(&folder).map_err(writing)?;
    for chunk in log {
        file.file().write_all(&chunk?).map_err(writing)?;
    }
    file.rename(&name).map_err(writing)?;
    files::sweep(&folder);
    Ok(())
}

/// What a file that begins like this is packed with. Brotli cannot be told from plain text.
fn compression_of(begin: &[u8]) -> Compression {
    let found = MAGIC.iter().find(|(magic, _)| begin.starts_with(magic));
    found.map_or(Compression::None, |(_, compression)| *compression)
}

const MAGIC: [(&[u8], Compression); 13] = [
    (b"\xfd7zXZ\0", Compression::Xz),
    (b"\x28\xb5\x2f\xfd", Compression::Zstd),
    (b"\x1f\x8b\x08", Compression::Gzip),
    // With the number of its blocks' size and the first block, or the end.
    (b"BZh11AY&SY", Compression::Bzip2),
    (b"BZh21AY&SY", Compression::Bzip2),
    (b"BZh31AY&SY", Compression::Bzip2),
    (b"BZh41AY&SY", Compression::Bzip2),
    (b"BZh51AY&SY", Compression::Bzip2),
    (b"BZh61AY&SY", Compression::Bzip2),
    (b"BZh71AY&SY", Compression::Bzip2),
    (b"BZh81AY&SY", Compression::Bzip2),
    (b"BZh91AY&SY", Compression::Bzip2),
    (b"BZh9\x17rE8P\x90", Compression::Bzip2),
];

/// In bytes.
const CHUNK: usize = 64 << 10;
