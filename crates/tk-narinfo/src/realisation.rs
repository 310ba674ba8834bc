//! Realisations: which store path an output of a derivation turned out to be (Nix's build trace).
//!
//! Only content-addressed derivations need them: where an output will lie is not known before it is built. There are two
//! forms, and the key of the older one cannot be turned into that of the newer.
//!
//! | | since Nix 2.35 (here) | up to 2.34 ([`legacy`]) |
//! |---|---|---|
//! | key | path of the derivation, output name | hash of the derivation modulo its inputs, output name |
//! | key as text | `<store dir>/<base name>^<output>` | `sha256:<hex>!<output>` |
//! | JSON | `{"key":{"drvPath","outputName"},"value":{"outPath","signatures"}}` | `{"dependentRealisations","id","outPath","signatures"}` |
//! | signatures in JSON | objects | texts |
//! | signed text | the JSON without `signatures`, compact, keys sorted | the same |
//! | file in a cache | `build-trace-v2/<derivation>/<output>.doi`, the value only | `realisations/<key>.doi` |
//!
//! Paths in JSON are base names. Both readers take either form of signatures, and ignore keys that they do not know.
//!
//! # Security
//! A realisation is a claim: neither the path nor the derivation needs to exist. [`Policy`](crate::Policy) tells whether
//! someone trusted made it.

pub mod legacy;

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};
use tk_path::{OutputName, StoreDir, StorePath};

use crate::json::{
    JsonError, JsonVersion, expected, parse, set, signature, signature_to_json, text,
};
use crate::keys::{SecretKey, Signature, TrustedKeys};
use crate::path_info::{distinct_valid, verdicts};

/// An output of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrvOutput {
    /// The path of the derivation.
    pub drv: StorePath,
    /// Which of its outputs.
    pub output: OutputName,
}

impl DrvOutput {
    /// `<store dir>/<base name>^<output>`, as Nix prints it.
    pub fn display<'a>(&'a self, dir: &'a StoreDir) -> impl fmt::Display + 'a {
        Shown(self, dir)
    }

    /// Returns the object `{"drvPath","outputName"}`, with the base name of the derivation.
    pub fn to_json(&self) -> Value {
        json!({ "drvPath": self.drv.as_str(), "outputName": self.output.as_str() })
    }

    /// Reads what [`DrvOutput::to_json`] writes.
    pub fn from_json(value: &Value) -> Result<DrvOutput, JsonError> {
        Ok(DrvOutput {
            drv: required(value, "drvPath", store_path)?,
            output: required(value, "outputName", |v| parse(OutputName::parse(text(v)?)))?,
        })
    }
}

struct Shown<'a>(&'a DrvOutput, &'a StoreDir);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}^{}", self.1.display(&self.0.drv), self.0.output)
    }
}

/// What an output turned out to be, and who says so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnkeyedRealisation {
    /// The path of the output.
    pub out_path: StorePath,
    /// Who vouches for that.
    pub signatures: BTreeSet<Signature>,
}

impl UnkeyedRealisation {
    /// That the output is `out_path`, which nobody vouches for.
    pub fn new(out_path: StorePath) -> UnkeyedRealisation {
        UnkeyedRealisation {
            out_path,
            signatures: BTreeSet::new(),
        }
    }

    /// Returns the object `{"outPath","signatures"}`, with the base name of the path.
    pub fn to_json(&self) -> Value {
        let signatures = self.signatures.iter();
        let signatures = signatures.map(|s| signature_to_json(s, JsonVersion::V3));
        json!({ "outPath": self.out_path.as_str(), "signatures": signatures.collect::<Value>() })
    }

    /// Reads what [`UnkeyedRealisation::to_json`] writes; missing `signatures` are none. The older form of a realisation
    /// is read too, but for its key.
    pub fn from_json(value: &Value) -> Result<UnkeyedRealisation, JsonError> {
        Ok(UnkeyedRealisation {
            out_path: required(value, "outPath", store_path)?,
            signatures: signatures(value)?,
        })
    }
}

/// That a certain output of a derivation is a certain path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Realisation {
    /// The output that the realisation is about.
    pub id: DrvOutput,
    /// The path that the output turned out to be, with its signatures.
    pub value: UnkeyedRealisation,
}

impl Realisation {
    /// Returns the object `{"key","value"}`, made of the JSON of both parts.
    pub fn to_json(&self) -> Value {
        json!({ "key": self.id.to_json(), "value": self.value.to_json() })
    }

    /// Reads what [`Realisation::to_json`] writes.
    pub fn from_json(value: &Value) -> Result<Realisation, JsonError> {
        let part = |key| value.get(key).ok_or_else(|| at(key, "is missing".into()));
        Ok(Realisation {
            id: DrvOutput::from_json(part("key")?)?,
            value: UnkeyedRealisation::from_json(part("value")?)?,
        })
    }

    /// The text that signatures cover. It does not depend on the store directory.
    pub fn fingerprint(&self) -> String {
        let value = json!({ "outPath": self.value.out_path.as_str() });
        json!({ "key": self.id.to_json(), "value": value }).to_string()
    }

    /// Adds the signature of `key`; tells whether it was not there yet.
    pub fn sign(&mut self, key: &SecretKey) -> bool {
        let signature = key.sign(self.fingerprint().as_bytes());
        self.value.signatures.insert(signature)
    }

    /// How many of `keys` have signed exactly this; two signatures of one key count once.
    pub fn valid_signatures(&self, keys: &TrustedKeys) -> usize {
        count_valid(&self.fingerprint(), &self.value.signatures, keys)
    }

    /// Whether both say the same, whoever vouches for it.
    pub fn is_compatible(&self, other: &Realisation) -> bool {
        self.id == other.id && self.value.out_path == other.value.out_path
    }
}

fn count_valid(text: &str, signatures: &BTreeSet<Signature>, keys: &TrustedKeys) -> usize {
    distinct_valid(&verdicts(text, signatures, keys), keys)
}

fn signatures(value: &Value) -> Result<BTreeSet<Signature>, JsonError> {
    match value.get("signatures") {
        None => Ok(BTreeSet::new()),
        Some(list) => set(list, signature).map_err(|what| at("signatures", what)),
    }
}

fn required<'a, T>(
    value: &'a Value,
    key: &'static str,
    read: impl FnOnce(&'a Value) -> Result<T, String>,
) -> Result<T, JsonError> {
    if !value.is_object() {
        return Err(at(key, expected("an object around it", value)));
    }
    let found = value.get(key).ok_or_else(|| at(key, "is missing".into()))?;
    read(found).map_err(|what| at(key, what))
}

fn store_path(value: &Value) -> Result<StorePath, String> {
    parse(StorePath::parse(text(value)?))
}

fn at(key: &'static str, what: String) -> JsonError {
    let of = "realisation";
    JsonError { of, key, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary;
    use proptest::prelude::*;

    const DRV: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar.drv";
    const OUT: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";

    fn realisation() -> Realisation {
        Realisation {
            id: DrvOutput {
                drv: StorePath::parse(DRV).unwrap(),
                output: OutputName::parse("out").unwrap(),
            },
            value: UnkeyedRealisation::new(StorePath::parse(OUT).unwrap()),
        }
    }

    #[test]
    fn shapes() {
        let mut full = realisation();
        full.value
            .signatures
            .insert(Signature::parse("k-1:YWJj").unwrap());
        let key = json!({ "drvPath": DRV, "outputName": "out" });
        let value = json!({ "outPath": OUT, "signatures": [{ "keyName": "k-1", "sig": "YWJj" }] });
        let whole = json!({ "key": key, "value": value });
        assert_eq!(full.to_json(), whole);
        assert_eq!(Realisation::from_json(&whole).unwrap(), full);
        let mut texts = whole;
        texts["value"]["signatures"] = json!(["k-1:YWJj"]);
        assert_eq!(Realisation::from_json(&texts).unwrap(), full);
        assert_eq!(
            full.fingerprint(),
            format!(
                r#"{{"key":{{"drvPath":"{DRV}","outputName":"out"}},"value":{{"outPath":"{OUT}"}}}}"#
            )
        );
        assert_eq!(
            full.id.display(&StoreDir::default()).to_string(),
            format!("/nix/store/{DRV}^out")
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = realisation().to_json();
        let wrong = |change: fn(&mut Value), words: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = Realisation::from_json(&bad).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        wrong(|v| *v = json!([]), "key: is missing");
        wrong(|v| v["key"] = json!("x"), "drvPath: expected an object");
        wrong(|v| v["key"]["drvPath"] = json!("x"), "drvPath: ");
        wrong(
            |v| v["key"]["drvPath"] = json!(format!("/nix/store/{DRV}")),
            "drvPath: ",
        );
        wrong(|v| v["key"]["outputName"] = json!("a/b"), "outputName: ");
        wrong(|v| v["value"] = Value::Null, "outPath: expected an object");
        wrong(
            |v| v["value"]["outPath"] = json!(1),
            "outPath: expected a string",
        );
        wrong(
            |v| v["value"]["signatures"] = json!("k:YWJj"),
            "signatures: expected a list",
        );
        wrong(|v| v["value"]["signatures"] = json!([{}]), "signatures: ");
    }

    #[test]
    fn signatures_cover_key_and_path() {
        let key = SecretKey::generate("k-1").unwrap();
        let trusted: TrustedKeys = [key.public()].into_iter().collect();
        let mut signed = realisation();
        assert!(signed.sign(&key));
        assert!(!signed.sign(&key));
        assert_eq!(signed.valid_signatures(&trusted), 1);
        assert_eq!(signed.valid_signatures(&TrustedKeys::new()), 0);
        let changes: [fn(&mut Realisation); 3] = [
            |r| r.id.output = OutputName::parse("dev").unwrap(),
            |r| r.id.drv = StorePath::parse(OUT).unwrap(),
            |r| r.value.out_path = StorePath::parse(DRV).unwrap(),
        ];
        for change in changes {
            let mut changed = signed.clone();
            change(&mut changed);
            assert_eq!(changed.valid_signatures(&trusted), 0);
            assert!(!changed.is_compatible(&signed));
        }
        assert!(signed.is_compatible(&realisation()));
        signed
            .value
            .signatures
            .insert(Signature::parse("k-1:YWJj").unwrap());
        assert_eq!(
            signed.valid_signatures(&trusted),
            1,
            "a damaged one beside it"
        );
    }

    #[test]
    fn a_policy_wants_signatures() {
        let key = SecretKey::generate("k-1").unwrap();
        let policy = crate::Policy::new([key.public()].into_iter().collect());
        let mut claim = realisation();
        let refused = policy.check_realisation(&claim).unwrap_err();
        assert_eq!(refused.path, claim.value.out_path);
        claim.sign(&key);
        policy.check_realisation(&claim).unwrap();
        let anything = crate::Policy {
            threshold: 0,
            ..policy.clone()
        };
        anything.check_realisation(&realisation()).unwrap();
        let damaged = Signature::parse("k-1:YWJj").unwrap();
        claim.value.signatures.insert(damaged.clone());
        policy
            .check_realisation(&claim)
            .expect("the good one still counts");
        claim.value.signatures = [damaged].into();
        let refused = policy.check_realisation(&claim).unwrap_err();
        assert_eq!(refused.valid, 0);
        assert!(refused.signed_by.contains_key("k-1"), "{refused}");
    }

    proptest! {
        #[test]
        fn any_comes_back(realisation in arbitrary::realisation()) {
            let text = realisation.to_json().to_string();
            let value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(Realisation::from_json(&value), Ok(realisation));
        }
    }
}
