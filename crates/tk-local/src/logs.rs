//! Build logs.
//!
//! ```text
//! <log>/drvs/<first two characters>/<the rest>.drv        while it is written, and where logs are not compressed
//! <log>/drvs/<first two characters>/<the rest>.drv.bz2
//! <log>/drvs/<base name>.drv[.bz2]                        long ago
//! ```

use crate::{
    inner::LocalInner,
    lock::{Cancel, lock_file_at},
};
use bzip2::{Compression, bufread::MultiBzDecoder, write::BzEncoder};
use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_path::StorePath;
use tk_store::{
    ByteStream, Error, Result, blocking,
    nar::{self, BlockingNar, produce},
};

/// Implements [`tk_store::Logs::build_log`]: returns the log of `drv`, decompressed, or `None`.
pub(crate) async fn read(store: &Arc<LocalInner>, drv: &StorePath) -> Result<Option<ByteStream>> {
    let (inner, drv) = (store.clone(), drv.clone());
    let opened = blocking(move || open(&inner, &drv)).await?;
    Ok(opened.map(|(mut log, place)| {
        produce(move |send| {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = log.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
                read.map_err(|e| Error::io(format!("reading {}", place.display()), e))?;
                if chunk.is_empty() || !send(chunk.into()) {
                    return Ok(());
                }
            }
        })
    }))
}

/// Implements [`tk_store::Logs::add_build_log`]: a compressed log that is there already stays.
pub(crate) async fn add(store: &Arc<LocalInner>, drv: &StorePath, log: ByteStream) -> Result<()> {
    store.require_writable()?;
    if !drv.is_derivation() {
        let what = format!("{drv} is not a derivation, so it has no build log");
        return Err(Error::invalid(what));
    }
    let cancel = Cancel::default();
    let _cancel_on_drop = cancel.on_drop();
    let (log, _end_on_drop) = nar::until_dropped(log);
    let (inner, drv, log) = (store.clone(), drv.clone(), BlockingNar::new(log));
    let work = move || {
        let [place, ..] = places(&inner.config.log, &drv);
        let place = compressed(&place);
        if place.exists() {
            return Ok(());
        }
        write(&place, log, &cancel)
    };
    blocking(work).await
}

type LogReader = Box<dyn Read + Send>;

fn open(store: &LocalInner, drv: &StorePath) -> Result<Option<(LogReader, PathBuf)>> {
    for plain in places(&store.config.log, drv) {
        let compressed = compressed(&plain);
        for (place, is_plain) in [(plain, true), (compressed, false)] {
            let file = match File::open(&place) {
                Ok(file) => BufReader::new(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(format!("opening {}", place.display()), e)),
            };
            let log: LogReader = if is_plain {
                Box::new(file)
            } else {
                Box::new(MultiBzDecoder::new(file))
            };
            return Ok(Some((log, place)));
        }
    }
    Ok(None)
}

/// Where the log of `drv` may be, without the suffix of compressed ones.
fn places(folder: &Path, drv: &StorePath) -> [PathBuf; 2] {
    let folder = folder.join("drvs");
    let (first, rest) = drv.as_str().split_at(2);
    [folder.join(first).join(rest), folder.join(drv.as_str())]
}

fn compressed(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".bz2");
    name.into()
}

/// Writes all of `log`, compressed, or nothing. What a process left that was killed is written anew.
fn write(place: &Path, log: BlockingNar, cancel: &Cancel) -> Result<()> {
    let failed = |e| Error::io(format!("writing {}", place.display()), e);
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut aside = place.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let file = lock_file_at(&aside, LOG_MODE, cancel)?;
    let written = if place.exists() {
        // Somebody was faster.
        fs::remove_file(&aside).map_err(failed)
    } else {
        write_file(file, log, cancel, failed)
            .and_then(|()| fs::rename(&aside, place).map_err(failed))
    };
    if written.is_err() {
        // If it stays, it is in nobody's way.
        let _ = fs::remove_file(&aside);
    }
    written
}

fn write_file(
    file: File,
    log: BlockingNar,
    cancel: &Cancel,
    failed: impl Fn(io::Error) -> Error,
) -> Result<()> {
    file.set_len(0).map_err(&failed)?;
    let mut encoder = BzEncoder::new(file, Compression::best());
    for chunk in log {
        cancel.check()?;
        encoder.write_all(&chunk?).map_err(&failed)?;
    }
    encoder.finish().map(drop).map_err(failed)
}

/// The mode of the files of logs, the same as in Nix.
const LOG_MODE: u32 = 0o644;
/// How much of a log is read at once, in bytes.
const CHUNK: usize = 64 << 10;
