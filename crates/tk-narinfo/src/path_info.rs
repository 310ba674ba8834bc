//! What a store knows about one of its paths, and the text that signatures cover.
//!
//! ```text
//! signed text = "1;" path ";sha256:" nix32 NAR hash ";" NAR size ";" [ reference { "," reference } ]
//! ```
//! Paths are full and sorted by bytes, whatever order a file gave them in (libstore's path-info.cc, fingerprint version 1).
//! Signatures made long ago over unsorted references therefore do not verify, in Nix neither.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use tk_path::{ContentAddress, NarHash, References, StoreDir, StorePath};

use crate::keys::{SecretKey, Signature, TrustedKeys};

/// What is known about a store path (Nix's `ValidPathInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path all this is about.
    pub path: StorePath,
    /// The derivation that made it, if known.
    pub deriver: Option<StorePath>,
    /// Hash of the path's NAR.
    pub nar_hash: NarHash,
    /// Bytes of the NAR, uncompressed; 0 is unknown.
    pub nar_size: u64,
    /// The paths it needs, with itself if it refers to itself.
    pub references: BTreeSet<StorePath>,
    /// When it was added to this store, in seconds since 1970; 0 is unknown. Not signed.
    pub registration_time: u64,
    /// Whether this store built it itself. Not signed, and a [`Policy`](crate::Policy) does not take it as a reason to trust.
    pub ultimate: bool,
    /// Who vouches for it.
    pub signatures: BTreeSet<Signature>,
    /// The claim that the path is made from its content; only [`PathInfo::is_content_addressed`] tells whether it holds.
    pub ca: Option<ContentAddress>,
}

impl PathInfo {
    /// A path with nothing known but its NAR.
    pub fn new(path: StorePath, nar_hash: NarHash, nar_size: u64) -> PathInfo {
        PathInfo {
            path,
            deriver: None,
            nar_hash,
            nar_size,
            references: BTreeSet::new(),
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            ca: None,
        }
    }

    /// The text that signatures cover.
    ///
    /// # Errors
    /// [`SignatureError::NoSize`] if the NAR size is not known.
    pub fn fingerprint(&self, dir: &StoreDir) -> Result<String, SignatureError> {
        if self.nar_size == 0 {
            return Err(SignatureError::NoSize {
                path: self.path.clone(),
            });
        }
        let prefix = dir.as_str().len() + 2;
        let references = self
            .references
            .iter()
            .map(|r| r.as_str().len() + prefix)
            .sum::<usize>();
        let mut text = String::with_capacity(references + prefix + self.path.as_str().len() + 90);
        let _ = write!(
            text,
            "1;{};{};{};",
            dir.display(&self.path),
            self.nar_hash,
            self.nar_size
        );
        for (i, reference) in self.references.iter().enumerate() {
            text.push_str(if i == 0 { "" } else { "," });
            text.push_str(dir.as_str());
            text.push('/');
            text.push_str(reference.as_str());
        }
        Ok(text)
    }

    /// Adds the signature of `key`; tells whether it was not there yet. Signing twice changes nothing.
    pub fn sign(&mut self, dir: &StoreDir, key: &SecretKey) -> Result<bool, SignatureError> {
        let signature = key.sign(self.fingerprint(dir)?.as_bytes());
        Ok(self.signatures.insert(signature))
    }

    /// How many of `keys` have signed exactly this. Unlike in Nix, two signatures of one key count once, and a content
    /// address counts nothing: see [`Policy`](crate::Policy) for whether to trust.
    ///
    /// # Errors
    /// [`SignatureError::NoSize`].
    pub fn valid_signatures(
        &self,
        dir: &StoreDir,
        keys: &TrustedKeys,
    ) -> Result<usize, SignatureError> {
        Ok(distinct_valid(&self.verdicts(dir, keys)?, keys))
    }

    /// What the signatures under each key name are worth; for a name with several signatures the best one counts.
    pub fn verdicts(
        &self,
        dir: &StoreDir,
        keys: &TrustedKeys,
    ) -> Result<BTreeMap<&str, SignatureVerdict>, SignatureError> {
        let text = self.fingerprint(dir)?;
        Ok(verdicts(&text, &self.signatures, keys))
    }

    /// Whether the content address makes exactly this path, with these references. Such a path needs no signature: whoever
    /// has checked the content against the address has checked the path.
    pub fn is_content_addressed(&self, dir: &StoreDir) -> bool {
        let Some(ca) = &self.ca else { return false };
        let mut others = self.references.clone();
        let itself = others.remove(&self.path);
        let made = dir.path_of_content(self.path.name(), ca, &References { others, itself });
        made.is_ok_and(|made| made == self.path)
    }
}

/// What `signatures` over `text` are worth, by key name. One that is damaged is wrong, and takes
/// nothing from a good one beside it: else anybody could make a path worthless by adding it.
pub(crate) fn verdicts<'a>(
    text: &str,
    signatures: &'a BTreeSet<Signature>,
    keys: &TrustedKeys,
) -> BTreeMap<&'a str, SignatureVerdict> {
    let mut verdicts = BTreeMap::new();
    for signature in signatures {
        let verdict = verdicts
            .entry(signature.key_name())
            .or_insert(SignatureVerdict::UnknownKey);
        let found = keys.verify(text.as_bytes(), signature);
        *verdict = (*verdict).max(match found {
            Ok(None) => SignatureVerdict::UnknownKey,
            Ok(Some(false)) | Err(_) => SignatureVerdict::Wrong,
            Ok(Some(true)) => SignatureVerdict::Valid,
        });
    }
    verdicts
}

/// How many different keys there are among the valid ones: one key under two names is one voice.
pub(crate) fn distinct_valid(
    verdicts: &BTreeMap<&str, SignatureVerdict>,
    keys: &TrustedKeys,
) -> usize {
    let valid = verdicts
        .iter()
        .filter(|(_, verdict)| **verdict == SignatureVerdict::Valid);
    let keys: BTreeSet<_> = valid
        .filter_map(|(name, _)| Some(keys.get(name)?.as_bytes()))
        .collect();
    keys.len()
}

/// What a signature is worth to someone with certain trusted keys, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignatureVerdict {
    /// The key is not a trusted one.
    UnknownKey,
    /// The key is trusted, but the signature is over something else, or damaged.
    Wrong,
    /// The key is trusted and has signed exactly this.
    Valid,
}

/// Why a path's metadata cannot be signed or its signatures not be verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The size is part of the signed text.
    #[error("{path} can neither be signed nor verified: the size of its NAR is not known")]
    NoSize {
        /// The path whose NAR size is not known.
        path: StorePath,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PublicKey;
    use tk_path::{Algorithm, Hash, Method};

    fn store_path(name: &str) -> StorePath {
        StorePath::parse(&format!("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-{name}")).unwrap()
    }

    fn info() -> PathInfo {
        let mut info = PathInfo::new(store_path("foo"), NarHash::from_bytes([0; 32]), 123);
        info.references = ["zlib", "foo", "bar"].map(store_path).into();
        info
    }

    #[test]
    fn the_signed_text_is_sorted_and_full() {
        let zero = "0".repeat(52);
        let at = "/nix/store/g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q";
        assert_eq!(
            info().fingerprint(&StoreDir::default()).unwrap(),
            format!("1;{at}-foo;sha256:{zero};123;{at}-bar,{at}-foo,{at}-zlib")
        );
        let alone = PathInfo {
            references: BTreeSet::new(),
            ..info()
        };
        let text = alone.fingerprint(&StoreDir::new("/x").unwrap()).unwrap();
        assert_eq!(text, format!("1;/x/{};sha256:{zero};123;", alone.path));
        let unknown = PathInfo {
            nar_size: 0,
            ..info()
        };
        assert!(matches!(
            unknown.fingerprint(&StoreDir::default()),
            Err(SignatureError::NoSize { .. })
        ));
    }

    #[test]
    fn signatures_count_once_a_key_and_cover_every_signed_field() {
        let dir = StoreDir::default();
        let keys: Vec<_> = ["a-1", "b-1"]
            .iter()
            .map(|n| SecretKey::generate(n).unwrap())
            .collect();
        let trusted: TrustedKeys = keys.iter().map(SecretKey::public).collect();
        let mut signed = info();
        assert_eq!(signed.sign(&dir, &keys[0]), Ok(true));
        assert_eq!(signed.sign(&dir, &keys[0]), Ok(false));
        assert_eq!(signed.valid_signatures(&dir, &trusted), Ok(1));
        assert_eq!(signed.sign(&dir, &keys[1]), Ok(true));
        assert_eq!(signed.valid_signatures(&dir, &trusted), Ok(2));
        assert_eq!(signed.valid_signatures(&dir, &TrustedKeys::new()), Ok(0));

        // The same key under two names is one voice.
        let twice = [
            keys[0].public(),
            PublicKey::new("b-1", *keys[0].public().as_bytes()),
        ];
        assert_eq!(
            signed.valid_signatures(&dir, &twice.into_iter().collect()),
            Ok(1)
        );

        let changes: [fn(&mut PathInfo); 4] = [
            |i| i.nar_size += 1,
            |i| i.nar_hash = NarHash::from_bytes([1; 32]),
            |i| i.path = store_path("fop"),
            |i| drop(i.references.pop_first()),
        ];
        for change in changes {
            let mut changed = signed.clone();
            change(&mut changed);
            assert_eq!(changed.valid_signatures(&dir, &trusted), Ok(0));
        }
        let free: [fn(&mut PathInfo); 3] = [
            |i| i.registration_time = 7,
            |i| i.ultimate = true,
            |i| i.deriver = Some(store_path("d.drv")),
        ];
        for change in free {
            let mut changed = signed.clone();
            change(&mut changed);
            assert_eq!(changed.valid_signatures(&dir, &trusted), Ok(2));
        }
    }

    #[test]
    fn a_damaged_signature_of_a_known_key_is_wrong_and_spoils_no_good_one() {
        let dir = StoreDir::default();
        let mut info = info();
        info.signatures
            .insert(Signature::parse("a-1:YWJj").unwrap());
        assert_eq!(info.valid_signatures(&dir, &TrustedKeys::new()), Ok(0));
        let key = SecretKey::generate("a-1").unwrap();
        let trusted = [key.public()].into_iter().collect();
        assert_eq!(info.valid_signatures(&dir, &trusted), Ok(0));
        assert_eq!(
            info.verdicts(&dir, &trusted).unwrap()["a-1"],
            SignatureVerdict::Wrong
        );
        info.sign(&dir, &key).unwrap();
        assert_eq!(info.valid_signatures(&dir, &trusted), Ok(1));
    }

    #[test]
    fn a_content_address_must_make_the_very_path() {
        let dir = StoreDir::default();
        let ca = ContentAddress {
            method: Method::Nar,
            hash: Hash::digest(Algorithm::Sha256, b"x"),
        };
        let references = References {
            others: [store_path("bar")].into(),
            itself: true,
        };
        let path = dir.path_of_content("foo", &ca, &references).unwrap();
        let mut good = PathInfo::new(path.clone(), NarHash::from_bytes([0; 32]), 1);
        good.references = [store_path("bar"), path].into();
        good.ca = Some(ca);
        assert!(good.is_content_addressed(&dir));

        assert!(
            !PathInfo {
                ca: None,
                ..good.clone()
            }
            .is_content_addressed(&dir)
        );
        assert!(
            !PathInfo {
                references: BTreeSet::new(),
                ..good.clone()
            }
            .is_content_addressed(&dir)
        );
        assert!(
            !PathInfo {
                path: store_path("foo"),
                ..good.clone()
            }
            .is_content_addressed(&dir)
        );
        assert!(!good.is_content_addressed(&StoreDir::new("/x").unwrap()));
    }
}
