use crate::{
    ContentHasher, Error, NarStream, Result, Store, blocking,
    nar::{self, BlockingNar},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::mem;
use tk_nar::Validator;
use tk_narinfo::PathInfo;
use tk_path::{
    Algorithm, ContentAddress, Hash, Hasher, Method, NarHash, StorePath, scan::SelfRefHasher,
};

/// Checks a NAR that passes by against all that its metadata says: grammar, size, hash, and the
/// content address if there is one. One pass, and one hash where the address is the NAR hash.
///
/// # Security
/// Whether the content address makes the path is for [`PathInfo::is_content_addressed`] to say.
#[derive(Debug)]
pub struct NarCheck {
    hasher: Hasher,
    grammar: Validator,
    hash: NarHash,
    /// Bytes; 0 = not known.
    size: u64,
    claim: Option<(ContentAddress, AddressCheck)>,
    path: StorePath,
    from: String,
}

/// What finds the content address, where it is not the NAR hash once more.
#[derive(Debug)]
enum AddressCheck {
    Plain(Box<ContentHasher>),
    RefersToItself(Box<SelfRefHasher>),
    /// There is no such content address.
    Impossible(Error),
}

impl NarCheck {
    /// A check of the NAR of `info`, which comes from `from` (a store's URI, for the errors).
    pub fn new(info: &PathInfo, from: impl Into<String>) -> Self {
        let claim = info.ca.as_ref();
        NarCheck {
            hasher: Hasher::new(Algorithm::Sha256),
            grammar: Validator::new(),
            hash: info.nar_hash,
            size: info.nar_size,
            claim: claim.and_then(|ca| Some((*ca, AddressCheck::new(info, ca)?))),
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
        if let Err(error) = self.grammar.feed(chunk) {
            return Err(self.malformed(error));
        }
        match &mut self.claim {
            Some((_, AddressCheck::Plain(hasher))) => hasher.update(chunk),
            Some((_, AddressCheck::RefersToItself(hasher))) => {
                hasher.update(chunk);
                Ok(())
            }
            Some((_, AddressCheck::Impossible(_))) | None => Ok(()),
        }
    }

    /// `nar` as long as it is what the metadata says. One chunk is kept back, so that nobody has got
    /// all of a NAR that turns out to be wrong; of a NAR in one chunk, nothing.
    pub fn stream(self, nar: NarStream) -> NarStream {
        let next = |state: Option<(NarStream, NarCheck, Bytes)>| async move {
            let Some((mut nar, mut check, mut held)) = state else {
                return Ok(None);
            };
            while let Some(chunk) = nar.try_next().await? {
                check.update(&chunk)?;
                let ready = mem::replace(&mut held, chunk);
                if !ready.is_empty() {
                    return Ok(Some((ready, Some((nar, check, held)))));
                }
            }
            check.finish()?;
            Ok(Some((held, None)))
        };
        stream::try_unfold(Some((nar, self, Bytes::new())), next).boxed()
    }

    /// Ends the NAR: `Ok` if it is complete and what the metadata says.
    pub fn finish(mut self) -> Result<()> {
        let hasher = mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256));
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
        if let Err(error) = mem::take(&mut self.grammar).finish() {
            return Err(self.malformed(error));
        }
        let Some((claimed, claim)) = self.claim.take() else {
            return Ok(());
        };
        let actual = claim.finish(&claimed)?;
        if actual != claimed.hash {
            let actual = ContentAddress {
                hash: actual,
                ..claimed
            };
            let (claimed, actual) = (claimed.to_string(), actual.to_string());
            return Err(self.mismatch("content address", claimed, actual));
        }
        Ok(())
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

impl AddressCheck {
    /// `None` if the check of the NAR hash tells all.
    fn new(info: &PathInfo, ca: &ContentAddress) -> Option<Self> {
        let algorithm = ca.hash.algorithm();
        if ca.method == Method::Nar && info.references.contains(&info.path) {
            let hasher = SelfRefHasher::new(algorithm, &info.path.to_hash_part());
            return Some(AddressCheck::RefersToItself(Box::new(hasher)));
        }
        if ca.method == Method::Nar && ca.hash == info.nar_hash.into() {
            return None;
        }
        Some(match ContentHasher::new(ca.method, algorithm) {
            Ok(hasher) => AddressCheck::Plain(Box::new(hasher)),
            Err(error) => AddressCheck::Impossible(error),
        })
    }

    /// The hash that the content really has.
    fn finish(self, claimed: &ContentAddress) -> Result<Hash> {
        match self {
            AddressCheck::Plain(hasher) => Ok(hasher.hashes()?.0),
            // Nix 2.17 to 2.34 leave out the places of the self references.
            AddressCheck::RefersToItself(hasher) => match hasher.clone().finish_without_offsets() {
                hash if hash == claimed.hash => Ok(hash),
                _ => Ok(hasher.finish()),
            },
            AddressCheck::Impossible(error) => Err(error),
        }
    }
}

/// Reads the content of a path and compares it with `info`; `Ok` if it is what the metadata says.
///
/// # Errors
/// [`Error::Mismatch`] or [`Error::Malformed`] when it is not; others when it could not be read.
pub async fn verify(store: &dyn Store, info: &PathInfo) -> Result<()> {
    let (nar, _end_on_drop) = nar::until_dropped(store.nar(&info.path).await?);
    let mut nar = BlockingNar::new(nar);
    let mut check = NarCheck::new(info, store.to_string());
    let work = move || {
        for chunk in &mut nar {
            check.update(&chunk?)?;
        }
        check.finish()
    };
    blocking(work).await
}
