//! NARs as they come out of a cache: unpacked, and checked against their narinfo.

use crate::{CacheWarning, CacheWarnings, compress::nar_decoder, objects::ObjectReader};
use bytes::Bytes;
use std::{
    io::{self, BufReader, Read},
    mem,
    sync::{Arc, Mutex, PoisonError},
};
use tk_narinfo::NarInfo;
use tk_path::{Hash, Hasher};
use tk_store::{Error, Result};

/// A packed NAR, to be read on a blocking thread.
pub(crate) struct PackedNar {
    /// What the bytes of the packed file are read from.
    pub(crate) source: Box<dyn ObjectReader>,
    /// Where they come from, for errors: a file, a URL.
    pub(crate) name: String,
    /// What they should be.
    pub(crate) narinfo: NarInfo,
    /// The URI of the cache that the NAR comes from, for errors.
    pub(crate) store: String,
    /// Whether a packed file that is another one is an error.
    pub(crate) strict: bool,
    /// Who is told of it if not.
    pub(crate) warnings: CacheWarnings,
}

impl PackedNar {
    /// Sends the NAR, in chunks. Compares the hash and the size of the packed file, and checks that
    /// not more comes out than the NAR should have.
    pub(crate) fn unpack(mut self, send: &mut dyn FnMut(Bytes) -> bool) -> Result<()> {
        let check = PackedCheck {
            name: &self.name,
            narinfo: &self.narinfo,
            store: &self.store,
        };
        if let Some(size) = self.source.size()
            && self.strict
        {
            check.size(size)?;
        }
        let hash = self.narinfo.file_hash;
        let mut hashed = Hashed {
            hasher: hash.map(|hash| Hasher::new(hash.algorithm())),
            source: &mut self.source,
            size: 0,
            failed: None,
        };
        let result = check.pump(&mut hashed, send);
        let (hasher, size, failed) = (hashed.hasher, hashed.size, hashed.failed);
        // First, since the decoder only saw that its input broke off.
        if let Some(error) = failed {
            return Err(self.source.failure(&self.name, error));
        }
        if !result? {
            return Ok(());
        }
        match check.file(hasher.map(Hasher::finish), size) {
            Err(error) if !self.strict => {
                self.warnings.tell(|| CacheWarning::PackedFile { error });
                Ok(())
            }
            checked => checked,
        }
    }
}

/// What the narinfo of a NAR says, while it is unpacked.
struct PackedCheck<'a> {
    name: &'a str,
    narinfo: &'a NarInfo,
    store: &'a str,
}

impl PackedCheck<'_> {
    /// Sends what comes out of the decoder; false if nobody wanted all of it.
    fn pump(
        &self,
        source: &mut (impl Read + Send),
        send: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<bool> {
        let input = BufReader::with_capacity(CHUNK, &mut *source);
        let mut decoder = nar_decoder(self.narinfo.compression, input)
            .map_err(|e| Error::malformed(self.what(), e))?;
        let buffers = Arc::new(Buffers::default());
        let mut total = 0;
        loop {
            let mut buffer = buffers.take();
            let n = fill(&mut decoder, &mut buffer.bytes)
                .map_err(|e| Error::malformed(self.what(), e))?;
            if n == 0 {
                drop(decoder);
                return self.pass_over(source).map(|()| true);
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

    /// Reads what the decoder left, since the file's hash is over that, too.
    fn pass_over(&self, source: &mut impl Read) -> Result<()> {
        if self.narinfo.file_hash.is_none() && self.narinfo.file_size.is_none() {
            return Ok(());
        }
        let passed = io::copy(&mut source.take(MAX_BEHIND + 1), &mut io::sink());
        match passed.map_err(|e| Error::malformed(self.what(), e))? {
            0..=MAX_BEHIND => Ok(()),
            _ => {
                let words = format!("more than {MAX_BEHIND} bytes follow its end");
                Err(Error::malformed(self.what(), words))
            }
        }
    }

    fn file(&self, hash: Option<Hash>, size: u64) -> Result<()> {
        self.size(size)?;
        match (self.narinfo.file_hash, hash) {
            (Some(expected), Some(actual)) if expected != actual => {
                Err(self.mismatch("file hash", expected.to_string(), actual.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the packed file may have `actual` bytes.
    fn size(&self, actual: u64) -> Result<()> {
        match self.narinfo.file_size {
            Some(size) if size != actual && size != 0 => {
                let (size, actual) = (format!("{size} bytes"), format!("{actual} bytes"));
                Err(self.mismatch("file size", size, actual))
            }
            _ => Ok(()),
        }
    }

    fn what(&self) -> String {
        format!("{} of {}", self.name, self.narinfo.info.path)
    }

    fn mismatch(&self, what: &'static str, expected: String, actual: String) -> Error {
        Error::Mismatch {
            what,
            path: self.narinfo.info.path.clone(),
            from: self.store.to_owned(),
            expected,
            actual,
        }
    }
}

/// The source while it is read: its hash and size, and whether reading *it* failed rather than
/// unpacking it.
struct Hashed<'a, S> {
    source: &'a mut S,
    hasher: Option<Hasher>,
    size: u64,
    failed: Option<io::Error>,
}

impl<S: Read> Read for Hashed<'_, S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.source.read(out) {
            Ok(n) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&out[..n]);
                }
                self.size += n as u64;
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

/// Bytes behind the end of what is packed that are passed over.
const MAX_BEHIND: u64 = 16 << 20;
