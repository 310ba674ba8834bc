//! Build logs: plain, as Nix writes them. A mirror of a cache that is served with
//! `Content-Encoding` may hold them compressed; how the log begins tells that.

use super::CacheInner;
use crate::{
    compress::decoder,
    layout,
    objects::{ObjectReader, Upload},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use std::{
    io::{BufRead, BufReader, Read},
    sync::Arc,
};
use tk_narinfo::Compression;
use tk_path::StorePath;
use tk_store::{ByteStream, Error, Result, nar::produce};

pub(super) async fn read(cache: &CacheInner, drv: &StorePath) -> Result<Option<ByteStream>> {
    let name = layout::log(drv);
    let place = cache.objects.place(&name);
    let reader = cache.objects.reader(&name).await?;
    Ok(reader.map(|reader| produce(move |send| unpack(&place, reader, send))))
}

fn unpack(
    place: &str,
    reader: Box<dyn ObjectReader>,
    send: &mut dyn FnMut(Bytes) -> bool,
) -> Result<()> {
    let mut reader = BufReader::with_capacity(CHUNK, reader);
    let compression = match reader.fill_buf() {
        Ok(begin) => compression_of(begin),
        Err(error) => return Err(reader.get_mut().failure(place, error)),
    };
    let malformed = |e| Error::malformed(place, e);
    let mut log = decoder(compression, reader).map_err(malformed)?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = log.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        read.map_err(|e| Error::io(format!("reading {place}"), e))?;
        if chunk.is_empty() || !send(chunk.into()) {
            return Ok(());
        }
    }
}

/// Puts the whole of `log` there, or nothing. One that is there is left as it is.
pub(super) async fn add(cache: &CacheInner, drv: &StorePath, mut log: ByteStream) -> Result<()> {
    if !drv.is_derivation() {
        let what = format!("{drv} is not a derivation, so it has no build log");
        return Err(Error::invalid(what));
    }
    let name = layout::log(drv);
    if cache.objects.look(&name).await?.is_some() {
        return Ok(());
    }
    cache.init().await?;
    let mut begin = BytesMut::new();
    while begin.len() < WHOLE
        && let Some(chunk) = log.next().await
    {
        begin.extend_from_slice(&chunk?);
    }
    if begin.len() < WHOLE {
        return cache.put(&name, begin.freeze()).await;
    }
    let size_hint = begin.len() as u64;
    let begin = stream::iter([Ok(begin.freeze())]);
    let upload = Upload {
        name: &name,
        mime: layout::mime_type(&name),
        body: begin.chain(log).boxed(),
        size_hint,
        journal: None,
        sent: Arc::new(|_| ()),
    };
    cache.objects.upload(upload).await
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

/// The most bytes of a log that are handed on at once.
const CHUNK: usize = 64 << 10;

/// Logs of fewer bytes are sent with one request.
const WHOLE: usize = 4 << 20;
