//! Whether to believe what is said about a path.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tk_path::{StoreDir, StorePath};

use crate::keys::{Signature, TrustedKeys};
use crate::path_info::{PathInfo, SignatureError, SignatureVerdict, distinct_valid, verdicts};
use crate::realisation::{Realisation, legacy};

/// Whom to trust, and how many of them must agree.
///
/// A path whose content address makes exactly this path needs no signature (its content is still to be checked against the
/// NAR hash and the address by whoever has it). `ultimate` is no reason to trust: it is the claim of whoever
/// sent the metadata. A store that wants to trust what it built itself says so before it asks a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The keys that count.
    pub keys: TrustedKeys,
    /// How many different keys must have signed; 0 trusts everything.
    pub threshold: usize,
}

impl Policy {
    /// One signature by any of `keys`, which is what Nix asks for.
    pub fn new(keys: TrustedKeys) -> Policy {
        Policy { keys, threshold: 1 }
    }

    /// `Ok` if enough trusted keys have signed `info`, or if it needs none.
    ///
    /// # Errors
    /// [`Untrusted`]. A damaged signature counts nothing, and takes nothing from the others.
    pub fn check(&self, dir: &StoreDir, info: &PathInfo) -> Result<(), Untrusted> {
        if info.is_content_addressed(dir) {
            return Ok(());
        }
        let verdicts = info.verdicts(dir, &self.keys);
        self.judge(&info.path, verdicts, info.ca.is_some())
    }

    /// `Ok` if enough trusted keys have signed `realisation`.
    pub fn check_realisation(&self, realisation: &Realisation) -> Result<(), Untrusted> {
        let (text, value) = (realisation.fingerprint(), &realisation.value);
        self.judge_text(&value.out_path, &text, &value.signatures)
    }

    /// The same for the older form.
    pub fn check_legacy_realisation(
        &self,
        realisation: &legacy::LegacyRealisation,
    ) -> Result<(), Untrusted> {
        let text = realisation.fingerprint();
        self.judge_text(&realisation.out_path, &text, &realisation.signatures)
    }

    fn judge_text(
        &self,
        path: &StorePath,
        text: &str,
        signatures: &BTreeSet<Signature>,
    ) -> Result<(), Untrusted> {
        let verdicts = verdicts(text, signatures, &self.keys);
        self.judge(path, Ok(verdicts), false)
    }

    fn judge(
        &self,
        path: &StorePath,
        verdicts: Result<BTreeMap<&str, SignatureVerdict>, SignatureError>,
        false_address: bool,
    ) -> Result<(), Untrusted> {
        let (verdicts, source) = match verdicts {
            Ok(verdicts) => (verdicts, None),
            Err(error) => (BTreeMap::new(), Some(Box::new(error))),
        };
        let valid = distinct_valid(&verdicts, &self.keys);
        if valid >= self.threshold {
            return Ok(());
        }
        Err(Untrusted {
            path: path.clone(),
            threshold: self.threshold,
            valid,
            signed_by: verdicts
                .into_iter()
                .map(|(name, v)| (name.to_owned(), v))
                .collect(),
            trusted: self.keys.iter().map(|key| key.name().to_owned()).collect(),
            false_address,
            source,
        })
    }
}

/// A path that a [`Policy`] does not trust, and what was found. `Display` says it in one line for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrusted {
    /// The path that is not trusted.
    pub path: StorePath,
    /// How many keys must have signed.
    pub threshold: usize,
    /// How many trusted keys have.
    pub valid: usize,
    /// Names on the signatures, and what each is worth.
    pub signed_by: BTreeMap<String, SignatureVerdict>,
    /// Names of the trusted keys.
    pub trusted: Vec<String>,
    /// The metadata claims a content address that does not make this path.
    pub false_address: bool,
    /// Why the signatures could not be verified at all, if so.
    pub source: Option<Box<SignatureError>>,
}

impl Untrusted {
    fn names(&self, verdict: SignatureVerdict) -> Vec<&str> {
        let all = self.signed_by.iter();
        all.filter(|(_, v)| **v == verdict)
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// The same about `count` paths that are not trusted for this reason: `40 paths are signed by …`.
    pub fn of_many(&self, count: usize) -> String {
        let one = count == 1;
        let subject = format!("{count} path{}", if one { "" } else { "s" });
        match &self.source {
            Some(_) => format!("the signatures of {subject} cannot be verified"),
            None => self.finding(&subject, one),
        }
    }

    /// The sentence about `subject`: one path, or several.
    fn finding(&self, subject: &str, one: bool) -> String {
        let (are, their) = if one { ("is", "its") } else { ("are", "their") };
        let mut text = format!("{subject} {are} ") + &self.reason(their);
        if self.threshold > 1 {
            let (valid, threshold) = (self.valid, self.threshold);
            text += &format!(" ({valid} of {threshold} needed signatures found)");
        }
        if self.false_address {
            text += if one {
                " (and its content address does not make this path)"
            } else {
                " (and their content addresses do not make these paths)"
            };
        }
        text
    }

    /// How the sentence goes on.
    fn reason(&self, their: &str) -> String {
        let wrong = self.names(SignatureVerdict::Wrong);
        let unknown = self.names(SignatureVerdict::UnknownKey);
        let trusted = list(&self.trusted);
        if !wrong.is_empty() {
            return format!(
                "not what was signed by {}: {their} metadata was changed, or the key is another one of that name",
                list(&wrong)
            );
        }
        if !unknown.is_empty() {
            let who = if unknown.len() == 1 { "is" } else { "are" };
            let not = if self.trusted.is_empty() {
                "not trusted: no key is".to_owned()
            } else {
                format!("not among the trusted keys {trusted}")
            };
            let unknown = list(&unknown);
            return format!("signed by {unknown}, which {who} {not}; add it with --trusted-key");
        }
        let signed = if self.signed_by.is_empty() {
            "not signed".to_owned()
        } else {
            format!(
                "signed by {} only",
                list(&self.names(SignatureVerdict::Valid))
            )
        };
        if self.trusted.is_empty() {
            format!("{signed}, and no key is trusted")
        } else {
            format!("{signed}, trusted keys: {trusted}")
        }
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(_) => write!(f, "the signatures of {} cannot be verified", self.path),
            None => f.write_str(&self.finding(self.path.as_str(), true)),
        }
    }
}

impl std::error::Error for Untrusted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

/// Most key names that a message repeats: a peer may send any number of them.
const NAMES_SHOWN: usize = 8;

/// Names with commas, control characters escaped.
fn list(names: &[impl AsRef<str>]) -> String {
    let mut text = String::new();
    for (i, name) in names.iter().take(NAMES_SHOWN).enumerate() {
        text += if i == 0 { "" } else { ", " };
        text.extend(name.as_ref().chars().take(80).flat_map(char::escape_debug));
    }
    if names.len() > NAMES_SHOWN {
        text += &format!(" and {} more", names.len() - NAMES_SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{SecretKey, Signature};
    use tk_path::{Algorithm, ContentAddress, Hash, Method, NarHash, References};

    const BASE: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";

    fn info(keys: &[&SecretKey]) -> PathInfo {
        let path = StorePath::parse(BASE).unwrap();
        let mut info = PathInfo::new(path, NarHash::from_bytes([0; 32]), 123);
        for key in keys {
            info.sign(&StoreDir::default(), key).unwrap();
        }
        info
    }

    fn policy(keys: &[&SecretKey], threshold: usize) -> Policy {
        Policy {
            keys: keys.iter().map(|k| k.public()).collect(),
            threshold,
        }
    }

    #[test]
    fn verdicts_come_in_words() {
        let [foo, bar, baz] = ["foo-1", "bar-1", "baz-1"].map(|n| SecretKey::generate(n).unwrap());
        let impostor = SecretKey::generate("bar-1").unwrap();
        let table: [(PathInfo, Policy, Option<&str>); 10] = [
            (info(&[&bar]), policy(&[&bar], 1), None),
            (info(&[&foo, &bar]), policy(&[&bar, &foo], 2), None),
            (info(&[]), policy(&[&bar], 0), None),
            (
                info(&[&foo]),
                policy(&[&bar, &baz], 1),
                Some(
                    "is signed by foo-1, which is not among the trusted keys bar-1, baz-1; add it with --trusted-key",
                ),
            ),
            (
                info(&[&foo, &baz]),
                policy(&[], 1),
                Some(
                    "is signed by baz-1, foo-1, which are not trusted: no key is; add it with --trusted-key",
                ),
            ),
            (
                info(&[]),
                policy(&[&bar], 1),
                Some("is not signed, trusted keys: bar-1"),
            ),
            (
                info(&[]),
                policy(&[], 1),
                Some("is not signed, and no key is trusted"),
            ),
            (
                info(&[&impostor, &foo]),
                policy(&[&bar], 1),
                Some(
                    "is not what was signed by bar-1: its metadata was changed, or the key is another one of that name",
                ),
            ),
            (
                info(&[&bar]),
                policy(&[&bar, &foo], 2),
                Some(
                    "is signed by bar-1 only, trusted keys: bar-1, foo-1 (1 of 2 needed signatures found)",
                ),
            ),
            (
                info(&[&bar, &baz]),
                policy(&[&bar], 2),
                Some(
                    "is signed by baz-1, which is not among the trusted keys bar-1; add it with --trusted-key (1 of 2 needed signatures found)",
                ),
            ),
        ];
        for (info, policy, expected) in table {
            let found = policy
                .check(&StoreDir::default(), &info)
                .err()
                .map(|e| e.to_string());
            assert_eq!(found, expected.map(|words| format!("{BASE} {words}")));
        }
    }

    #[test]
    fn what_cannot_be_verified_is_not_trusted() {
        let bar = SecretKey::generate("bar-1").unwrap();
        let unsized_ = PathInfo {
            nar_size: 0,
            ..info(&[&bar])
        };
        let error = policy(&[&bar], 1)
            .check(&StoreDir::default(), &unsized_)
            .unwrap_err();
        assert!(
            error.source.is_some() && error.to_string().contains("cannot be verified"),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_signature_does_not_outweigh_a_good_one() {
        let bar = SecretKey::generate("bar-1").unwrap();
        let policy = policy(&[&bar], 1);
        let damaged = Signature::parse("bar-1:YWJj").unwrap();
        let mut info = info(&[]);
        info.signatures.insert(damaged);
        let error = policy.check(&StoreDir::default(), &info).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("is not what was signed by bar-1"),
            "{error}"
        );
        info.sign(&StoreDir::default(), &bar).unwrap();
        assert_eq!(policy.check(&StoreDir::default(), &info), Ok(()));
    }

    #[test]
    fn ultimate_is_not_trusted_and_content_addressed_is() {
        let dir = StoreDir::default();
        let policy = policy(&[], 1);
        let ca = ContentAddress {
            method: Method::Nar,
            hash: Hash::digest(Algorithm::Sha256, b"x"),
        };
        let path = dir
            .path_of_content("foo", &ca, &References::default())
            .unwrap();
        let mut addressed = PathInfo::new(path, NarHash::from_bytes([0; 32]), 1);
        addressed.ca = Some(ca);
        assert_eq!(policy.check(&dir, &addressed), Ok(()));

        let ultimate = PathInfo {
            ultimate: true,
            ..info(&[])
        };
        assert!(policy.check(&dir, &ultimate).is_err());

        let error = policy
            .check(
                &dir,
                &PathInfo {
                    ca: Some(ca),
                    ..info(&[])
                },
            )
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("(and its content address does not make this path)"),
            "{error}"
        );
    }

    #[test]
    fn many_strange_names_stay_one_short_line() {
        let mut flooded = info(&[]);
        for i in 0..1000 {
            flooded
                .signatures
                .insert(Signature::new(&format!("a\n\u{1b}[31m{i}"), [0; 64]));
        }
        let words = policy(&[], 1)
            .check(&StoreDir::default(), &flooded)
            .unwrap_err()
            .to_string();
        assert!(
            !words.contains(char::is_control) && words.contains("and 992 more"),
            "{words}"
        );
    }
}
