//! NARs out of the cache.

use super::{Inner, files, reading};
use crate::{compress::decoder, layout};
use bytes::Bytes;
use std::{
    fs::File,
    io::{self, BufReader, Read},
    mem,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tk_narinfo::NarInfo;
use tk_path::{Hasher, StorePath};
use tk_store::{Error, NarStream, Result, nar};

/// The file of a NAR, opened.
pub(super) struct Packed {
    file: File,
    name: PathBuf,
    narinfo: NarInfo,
    store: String,
}

impl Packed {
    pub(super) fn open(cache: Arc<Inner>, path: StorePath) -> Result<Self> {
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
        let packed = Packed {
            file,
            name,
            narinfo,
            store,
        };
        packed.check_size()?;
        Ok(packed)
    }

    /// The NAR, unpacked on a thread of its own.
    pub(super) fn stream(self) -> NarStream {
        nar::produce(move |send| self.unpack(send))
    }

    fn check_size(&self) -> Result<()> {
        let actual = self
            .file
            .metadata()
            .map_err(|e| reading(&self.name, e))?
            .len();
        match self.narinfo.file_size {
            Some(size) if size != actual && size != 0 => {
                let (size, actual) = (format!("{size} bytes"), format!("{actual} bytes"));
                Err(self.mismatch("file size", size, actual))
            }
            _ => Ok(()),
        }
    }

    fn unpack(self, send: &mut dyn FnMut(Bytes) -> bool) -> Result<()> {
        let mut source = Source {
            hasher: self
                .narinfo
                .file_hash
                .map(|hash| Hasher::new(hash.algorithm())),
            file: &self.file,
            failed: None,
        };
        let result = self.pump(&mut source, send);
        if let Some(error) = source.failed {
            return Err(reading(&self.name, error));
        }
        let at_end = result?;
        let actual = source.hasher.map(Hasher::finish);
        match (self.narinfo.file_hash, actual) {
            (Some(expected), Some(actual)) if at_end && expected != actual => {
                Err(self.mismatch("file hash", expected.to_string(), actual.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Sends what comes out of the decoder; false if nobody wanted all of it.
    fn pump(&self, source: &mut Source<'_>, send: &mut dyn FnMut(Bytes) -> bool) -> Result<bool> {
        let input = BufReader::with_capacity(CHUNK, source);
        let mut decoder = decoder(self.narinfo.compression, input)
            .map_err(|e| Error::malformed(self.what(), e))?;
        let buffers = Arc::new(Buffers::default());
        let mut total = 0;
        loop {
            let mut buffer = buffers.take();
            let n = fill(&mut decoder, &mut buffer.bytes)
                .map_err(|e| Error::malformed(self.what(), e))?;
            if n == 0 {
                return Ok(true);
            }
            total += n as u64;
            if total > self.narinfo.info.nar_size {
                let size = format!("{} bytes", self.narinfo.info.nar_size);
                return Err(self.mismatch("NAR size", size, format!("at least {total} bytes")));
            }
            if !send(Bytes::from_owner(buffer).slice(..n)) {
                return Ok(false);
            }
        }
    }

    fn what(&self) -> String {
        format!("{} of {}", self.name.display(), self.narinfo.info.path)
    }

    fn mismatch(&self, what: &'static str, expected: String, actual: String) -> Error {
        Error::Mismatch {
            what,
            path: self.narinfo.info.path.clone(),
            from: self.store.clone(),
            expected,
            actual,
        }
    }
}

/// The file while it is read: its hash, and whether reading *it* failed rather than unpacking it.
struct Source<'a> {
    file: &'a File,
    hasher: Option<Hasher>,
    failed: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.file.read(out) {
            Ok(n) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&out[..n]);
                }
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = error.kind().into();
                self.failed = Some(error);
                Err(told)
            }
        }
    }
}

/// Reads until `out` is full or the input ends.
fn fill(input: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match input.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Buffers of one NAR: those that its reader is done with are used again.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(self: &Arc<Self>) -> Buffer {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = spare.unwrap_or_else(|| vec![0; CHUNK]);
        Buffer {
            bytes,
            home: self.clone(),
        }
    }
}

struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut home = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        home.push(mem::take(&mut self.bytes));
    }
}

const CHUNK: usize = 128 << 10;
