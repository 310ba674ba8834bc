//! Realisations: `nix/libstore/realisation/X.json` with `X-fingerprint.txt`, `X-sig.json` and
//! `unkeyed-X.json`; the older form from `common-protocol`, where it is the JSON that goes over the wire.

use super::{say, signature::secret};
use crate::support::{Tally, Vectors, equal};
use serde_json::Value;
use tk_narinfo::{
    TrustedKeys,
    json::signature_from_json,
    realisation::{Realisation, UnkeyedRealisation, legacy},
};

#[test]
fn realisations() {
    let vectors = Vectors::find();
    let rows = [WHOLE, UNKEYED, TEXT, SIGNED, LEGACY, LEGACY_IDS];
    let mut tally = Tally::new("golden data: realisations", &rows);
    for file in vectors.files("nix/libstore/realisation", ".json") {
        let base = file.base().to_owned();
        if base.ends_with("-sig.json") {
            continue;
        }
        if base.starts_with("unkeyed-") {
            tally.case(UNKEYED, &file.name, || {
                let read = UnkeyedRealisation::from_json(&file.json()).map_err(say)?;
                equal(read.to_json(), file.json())
            });
            continue;
        }
        let read = Realisation::from_json(&file.json()).map_err(say);
        tally.case(WHOLE, &file.name, || {
            equal(read.clone()?.to_json(), file.json())
        });
        let stem = file.name.trim_end_matches(".json");
        if let Ok(text) = std::fs::read_to_string(vectors.path(&format!("{stem}-fingerprint.txt")))
        {
            tally.case(TEXT, &file.name, || {
                equal(read.clone()?.fingerprint(), text)
            });
        }
        if let Some(json) = vectors.json(&format!("{stem}-sig.json")) {
            tally.case(SIGNED, &file.name, || signed(read.clone()?, &json));
        }
    }
    for folder in ["common-protocol", "worker-protocol", "serve-protocol"] {
        legacy_forms(&mut tally, &vectors, &format!("nix/libstore/{folder}"));
    }
    tally.finish();
}

/// Signing gives the golden signature, which holds for this realisation and for no other.
fn signed(mut realisation: Realisation, json: &Value) -> Result<(), String> {
    let signature = signature_from_json(json).map_err(say)?;
    let key = secret(signature.key_name()).ok_or("made by an unknown key")?;
    let keys: TrustedKeys = [key.public()].into_iter().collect();
    let before = realisation.value.signatures.clone();
    equal(realisation.sign(&key), true)?;
    let new: Vec<_> = realisation.value.signatures.difference(&before).collect();
    equal(new, vec![&signature])?;
    equal(realisation.valid_signatures(&keys), 1)?;
    realisation.value.out_path = realisation.id.drv.clone();
    equal(realisation.valid_signatures(&keys), 0)
}

/// What has an `id` of the older form, wherever it stands in the JSON of a protocol.
fn legacy_forms(tally: &mut Tally, vectors: &Vectors, folder: &str) {
    for file in vectors.files(folder, ".json") {
        let mut found = Vec::new();
        collect(&file.json(), &mut found);
        for value in found {
            let read = legacy::LegacyRealisation::from_json(&value).map_err(say);
            tally.case(LEGACY, &file.name, || {
                let read = read.clone()?;
                equal(&texts(read.to_json()), &texts(value.clone()))?;
                let again = legacy::LegacyRealisation::from_json(&read.to_json());
                equal(again.map_err(say)?, read)
            });
            tally.case(LEGACY_IDS, &file.name, || {
                let id = value["id"].as_str().ok_or("no id")?;
                let read = id.parse::<legacy::LegacyDrvOutput>().map_err(say)?;
                equal(read.to_string().as_str(), id)
            });
        }
    }
}

fn collect(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(object) if object.contains_key("id") && object.contains_key("outPath") => {
            found.push(value.clone());
        }
        Value::Object(object) => object.values().for_each(|value| collect(value, found)),
        Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// With signatures as texts, which is how the older form was written in its time.
fn texts(mut value: Value) -> Value {
    let signatures = value["signatures"].as_array_mut();
    for signature in signatures.into_iter().flatten() {
        if let Ok(read) = signature_from_json(signature) {
            *signature = read.to_string().into();
        }
    }
    value
}

const WHOLE: &str = "key and value, both directions";
const UNKEYED: &str = "value, both directions";
const TEXT: &str = "signed text";
const SIGNED: &str = "signed with the test key, and verified";
const LEGACY: &str = "older form, both directions";
const LEGACY_IDS: &str = "ids of the older form, both directions";
