use crate::{Error, Result, Store, nar::BlockingNar};
use tk_nar::Validator;
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hasher, NarHash, StorePath};

/// Checks a NAR that passes by against its metadata: grammar, size and hash, in one pass.
#[derive(Debug)]
pub struct NarCheck {
    hasher: Hasher,
    grammar: Validator,
    hash: NarHash,
    /// Bytes; 0 = not known.
    size: u64,
    path: StorePath,
    from: String,
}

impl NarCheck {
    /// A check of the NAR of `info`, which comes from `from` (a store's URI, for the errors).
    pub fn new(info: &PathInfo, from: impl Into<String>) -> Self {
        NarCheck {
            hasher: Hasher::new(Algorithm::Sha256),
            grammar: Validator::new(),
            hash: info.nar_hash,
            size: info.nar_size,
            path: info.path.clone(),
            from: from.into(),
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// As soon as the NAR breaks its grammar or is longer than its metadata says: an endless NAR
    /// is not read to its end.
    pub fn update(&mut self, chunk: &[u8]) -> Result<()> {
        self.hasher.update(chunk);
        let bytes = self.hasher.bytes();
        if self.size != 0 && bytes > self.size {
            let at_least = format!("at least {bytes} bytes");
            return Err(self.mismatch("NAR size", format!("{} bytes", self.size), at_least));
        }
        match self.grammar.feed(chunk) {
            Ok(()) => Ok(()),
            Err(e) => Err(self.malformed(e)),
        }
    }

    /// Ends the NAR: `Ok` if it is complete and what the metadata says.
    pub fn finish(mut self) -> Result<()> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256));
        let bytes = hasher.bytes();
        // The size first: it explains a cut NAR better than the hash does.
        if self.size != 0 && self.size != bytes {
            let (expected, actual) = (format!("{} bytes", self.size), format!("{bytes} bytes"));
            return Err(self.mismatch("NAR size", expected, actual));
        }
        let actual = NarHash::try_from(hasher.finish()).expect("sha256 was asked for");
        if self.hash != actual {
            return Err(self.mismatch("NAR hash", self.hash.to_string(), actual.to_string()));
        }
        match std::mem::take(&mut self.grammar).finish() {
            Ok(_) => Ok(()),
            Err(e) => Err(self.malformed(e)),
        }
    }

    fn mismatch(&self, what: &'static str, expected: String, actual: String) -> Error {
        Error::Mismatch {
            what,
            path: self.path.clone(),
            from: self.from.clone(),
            expected,
            actual,
        }
    }

    fn malformed(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::malformed(
            format!("the NAR of {} from {}", self.path, self.from),
            error,
        )
    }
}

/// Reads the content of a path and compares it with `info`; `Ok` if it is what the metadata says.
///
/// # Errors
/// [`Error::Mismatch`] or [`Error::Malformed`] when it is not; others when it could not be read.
pub async fn verify(store: &dyn Store, info: &PathInfo) -> Result<()> {
    let mut nar = BlockingNar::new(store.nar(&info.path).await?);
    let mut check = NarCheck::new(info, store.to_string());
    let work = move || {
        for chunk in &mut nar {
            check.update(&chunk?)?;
        }
        check.finish()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::io(format!("verifying {}", info.path), std::io::Error::other(e)))?
}
