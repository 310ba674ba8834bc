//! Realisations as Nix had them up to 2.34, and as it still speaks of them to older daemons.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};
use tk_path::{Encoding, Hash, HashError, OutputName, StorePath};

use super::{at, count_valid, required, signatures, store_path};
use crate::json::{JsonError, JsonVersion, expected, parse, signature_to_json, text};
use crate::keys::{SecretKey, Signature, TrustedKeys};
use crate::text::shown;

/// An output of all derivations that do the same. `Display` and `FromStr` are `sha256:<hex>!<output>`; the hash is read in
/// every form that has its algorithm in front.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegacyDrvOutput {
    /// The derivation's hash modulo its inputs.
    pub hash: Hash,
    /// The name of the output.
    pub output: OutputName,
}

impl LegacyDrvOutput {
    /// Reads the form `sha256:<hex>!<output>`; other forms of the hash are taken as well.
    pub fn parse(id: &str) -> Result<LegacyDrvOutput, DrvOutputError> {
        let fault = |source| DrvOutputError {
            id: shown(id),
            source,
        };
        let (hash, output) = id
            .split_once('!')
            .ok_or_else(|| fault(LegacyFault::NoSeparator))?;
        Ok(LegacyDrvOutput {
            hash: Hash::parse_any(hash, None).map_err(|e| fault(LegacyFault::Hash(e)))?,
            output: OutputName::parse(output)
                .map_err(|e| fault(LegacyFault::Output(e.to_string())))?,
        })
    }
}

impl fmt::Display for LegacyDrvOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}!{}", self.hash.to_text(Encoding::Base16), self.output)
    }
}

impl FromStr for LegacyDrvOutput {
    type Err = DrvOutputError;

    fn from_str(id: &str) -> Result<LegacyDrvOutput, DrvOutputError> {
        LegacyDrvOutput::parse(id)
    }
}

/// Why a text is no [`LegacyDrvOutput`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id} does not name an output of a derivation")]
pub struct DrvOutputError {
    id: String,
    source: LegacyFault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum LegacyFault {
    #[error("there is no '!' between hash and output name")]
    NoSeparator,
    #[error(transparent)]
    Hash(HashError),
    #[error("{0}")]
    Output(String),
}

/// That a certain output is a certain path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegacyRealisation {
    /// The output that the realisation is about.
    pub id: LegacyDrvOutput,
    /// The path that the output turned out to be.
    pub out_path: StorePath,
    /// Who vouches for that.
    pub signatures: BTreeSet<Signature>,
    /// What the outputs it was built from turned out to be. Signed too.
    pub dependent: BTreeMap<LegacyDrvOutput, StorePath>,
}

impl LegacyRealisation {
    /// That the output `id` is `out_path`, which nobody vouches for.
    pub fn new(id: LegacyDrvOutput, out_path: StorePath) -> LegacyRealisation {
        LegacyRealisation {
            id,
            out_path,
            signatures: BTreeSet::new(),
            dependent: BTreeMap::new(),
        }
    }

    /// `{"dependentRealisations","id","outPath","signatures"}`, as it lies in a cache and goes over the wire, compact.
    pub fn to_json(&self) -> Value {
        let mut value = self.to_unsigned_json();
        let signatures = self.signatures.iter();
        let signatures = signatures.map(|s| signature_to_json(s, JsonVersion::V1));
        value["signatures"] = signatures.collect();
        value
    }

    /// Reads what [`LegacyRealisation::to_json`] writes. Missing signatures and dependent realisations are none: Nix from 2.35
    /// on sends neither.
    pub fn from_json(value: &Value) -> Result<LegacyRealisation, JsonError> {
        Ok(LegacyRealisation {
            id: required(value, "id", |v| parse(LegacyDrvOutput::parse(text(v)?)))?,
            out_path: required(value, "outPath", store_path)?,
            signatures: signatures(value)?,
            dependent: match value.get(DEPENDENT) {
                None => BTreeMap::new(),
                Some(map) => dependent(map).map_err(|what| at(DEPENDENT, what))?,
            },
        })
    }

    /// The text that signatures cover.
    pub fn fingerprint(&self) -> String {
        self.to_unsigned_json().to_string()
    }

    /// Adds the signature of `key`; tells whether it was not there yet.
    pub fn sign(&mut self, key: &SecretKey) -> bool {
        let signature = key.sign(self.fingerprint().as_bytes());
        self.signatures.insert(signature)
    }

    /// How many of `keys` have signed exactly this; two signatures of one key count once.
    pub fn valid_signatures(&self, keys: &TrustedKeys) -> usize {
        count_valid(&self.fingerprint(), &self.signatures, keys)
    }

    /// Whether both say the same, whoever vouches for it and whatever it was built from (as in Nix).
    pub fn is_compatible(&self, other: &LegacyRealisation) -> bool {
        self.id == other.id && self.out_path == other.out_path
    }

    fn to_unsigned_json(&self) -> Value {
        let dependent = self.dependent.iter();
        let dependent: Map<_, _> = dependent
            .map(|(id, path)| (id.to_string(), path.as_str().into()))
            .collect();
        json!({ DEPENDENT: dependent, "id": self.id.to_string(), "outPath": self.out_path.as_str() })
    }
}

fn dependent(value: &Value) -> Result<BTreeMap<LegacyDrvOutput, StorePath>, String> {
    let map = value
        .as_object()
        .ok_or_else(|| expected("an object", value))?;
    let entries = map.iter();
    entries
        .map(|(id, path)| Ok((parse(LegacyDrvOutput::parse(id))?, store_path(path)?)))
        .collect()
}

const DEPENDENT: &str = "dependentRealisations";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary;
    use proptest::prelude::*;
    use tk_path::Algorithm;

    const HEX: &str = "15e3c560894cbb27085cf65b5a2ecb18488c999497f4531b6907a7581ce6d527";
    const OUT: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";

    fn id(output: &str) -> LegacyDrvOutput {
        LegacyDrvOutput::parse(&format!("sha256:{HEX}!{output}")).unwrap()
    }

    fn realisation() -> LegacyRealisation {
        LegacyRealisation::new(id("baz"), StorePath::parse(OUT).unwrap())
    }

    #[test]
    fn ids() {
        assert_eq!(id("baz").to_string(), format!("sha256:{HEX}!baz"));
        let nix32 = id("baz").hash.to_text(Encoding::Nix32);
        assert_eq!(format!("{nix32}!baz").parse(), Ok(id("baz")));
        for (bad, words) in [
            ("", "no '!'"),
            (HEX, "no '!'"),
            (&format!("sha256:{HEX}!"), ""),
            (&format!("sha256:{HEX}!a!b"), ""),
            (&format!("{HEX}!out"), ""),
            ("sha256:00!out", ""),
        ] {
            let error = LegacyDrvOutput::parse(bad).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(words), "{source}");
        }
    }

    #[test]
    fn shapes() {
        let mut full = realisation();
        full.dependent
            .insert(id("quux"), StorePath::parse(OUT).unwrap());
        full.signatures
            .insert(Signature::parse("k-1:YWJj").unwrap());
        let text = format!(
            r#"{{"dependentRealisations":{{"sha256:{HEX}!quux":"{OUT}"}},"id":"sha256:{HEX}!baz","outPath":"{OUT}","signatures":["k-1:YWJj"]}}"#
        );
        assert_eq!(full.to_json().to_string(), text);
        let value = serde_json::from_str(&text).unwrap();
        assert_eq!(LegacyRealisation::from_json(&value).unwrap(), full);
        assert_eq!(
            full.fingerprint(),
            text.replace(r#","signatures":["k-1:YWJj"]"#, "")
        );
        let short = json!({ "id": id("baz").to_string(), "outPath": OUT });
        assert_eq!(LegacyRealisation::from_json(&short).unwrap(), realisation());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = realisation().to_json();
        let wrong = |key: &str, value: Value, words: &str| {
            let mut bad = good.clone();
            bad[key] = value;
            let error = LegacyRealisation::from_json(&bad).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        wrong("id", json!("x"), "id: ");
        wrong("id", json!(format!("/nix/store/{OUT}^out")), "id: ");
        wrong("outPath", Value::Null, "outPath: ");
        wrong(
            DEPENDENT,
            json!([]),
            "dependentRealisations: expected an object",
        );
        wrong(DEPENDENT, json!({ "x": OUT }), "dependentRealisations: ");
        wrong("signatures", json!([1]), "signatures: ");
    }

    #[test]
    fn signatures_cover_everything_else() {
        let key = SecretKey::generate("k-1").unwrap();
        let trusted: TrustedKeys = [key.public()].into_iter().collect();
        let policy = crate::Policy::new(trusted.clone());
        let mut signed = realisation();
        assert!(policy.check_legacy_realisation(&signed).is_err());
        assert!(signed.sign(&key));
        assert_eq!(signed.valid_signatures(&trusted), 1);
        policy.check_legacy_realisation(&signed).unwrap();
        let changes: [fn(&mut LegacyRealisation); 4] = [
            |r| r.id.output = OutputName::parse("dev").unwrap(),
            |r| r.id.hash = Hash::digest(Algorithm::Sha256, b""),
            |r| r.out_path = StorePath::parse(&OUT.replace("foo", "bar")).unwrap(),
            |r| drop(r.dependent.insert(r.id.clone(), r.out_path.clone())),
        ];
        for change in changes {
            let mut changed = signed.clone();
            change(&mut changed);
            assert_eq!(changed.valid_signatures(&trusted), 0);
        }
    }

    proptest! {
        #[test]
        fn any_comes_back(realisation in arbitrary::legacy_realisation()) {
            let text = realisation.to_json().to_string();
            let value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(LegacyRealisation::from_json(&value), Ok(realisation));
        }

        #[test]
        fn ids_come_back(realisation in arbitrary::legacy_realisation()) {
            prop_assert_eq!(realisation.id.to_string().parse(), Ok(realisation.id));
        }
    }
}
