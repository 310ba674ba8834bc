//! Signatures: `nix/libstore/realisation/X-fingerprint.txt` with `X-sig.json`, and narinfos signed
//! with a test key whose secret half is public.

use super::say;
use crate::support::{Tally, Vectors, equal};
use tk_narinfo::json::{JsonVersion, signature_from_json, signature_to_json};
use tk_narinfo::{NarInfo, SecretKey, Signature};
use tk_path::StoreDir;

#[test]
fn signatures() {
    let vectors = Vectors::find();
    let rows = [SIGNED, VERIFIED, JSON, KEYS];
    let mut tally = Tally::new("golden data: signatures", &rows);
    for (secret, public) in TEST_KEYS {
        tally.case(KEYS, public, || {
            let key = SecretKey::parse(secret).map_err(say)?;
            equal(key.public().to_string().as_str(), public)?;
            equal(key.to_text().as_str(), secret)
        });
    }
    for file in vectors.files("nix/libstore/realisation", "-fingerprint.txt") {
        let Some(json) = vectors.json(&file.name.replace("-fingerprint.txt", "-sig.json")) else {
            continue;
        };
        tally.case(JSON, &file.name, || {
            let signature = signature_from_json(&json).map_err(say)?;
            equal(
                Signature::parse(&signature.to_string()).map_err(say)?,
                signature.clone(),
            )?;
            equal(signature_to_json(&signature, JsonVersion::V3), json.clone())
        });
        check(
            &mut tally,
            &file.name,
            &file.bytes,
            signature_from_json(&json).map_err(say),
        );
    }
    let dir = StoreDir::default();
    for file in vectors.below("", ".narinfo") {
        let Ok(info) = NarInfo::parse(&dir, &file.bytes).map(|narinfo| narinfo.info) else {
            continue;
        };
        for signature in &info.signatures {
            let Ok(fingerprint) = info.fingerprint(&dir) else {
                continue;
            };
            if secret(signature.key_name()).is_some() {
                check(
                    &mut tally,
                    &file.name,
                    fingerprint.as_bytes(),
                    Ok(signature.clone()),
                );
            }
        }
    }
    tally.finish();
}

/// Signing `text` gives `signature`, which holds for this text and for no other.
fn check(tally: &mut Tally, what: &str, text: &[u8], signature: Result<Signature, String>) {
    tally.case(SIGNED, what, || {
        let signature = signature.clone()?;
        let secret = secret(signature.key_name()).ok_or("made by an unknown key")?;
        equal(secret.sign(text), signature)
    });
    tally.case(VERIFIED, what, || {
        let signature = signature?;
        let public = secret(signature.key_name())
            .ok_or("made by an unknown key")?
            .public();
        equal(public.verify(text, &signature).map_err(say)?, true)?;
        let mut other = text.to_vec();
        other[text.len() / 2] ^= 1;
        equal(public.verify(&other, &signature).map_err(say)?, false)
    });
}

pub(super) fn secret(name: &str) -> Option<SecretKey> {
    let keys = TEST_KEYS
        .iter()
        .map(|(secret, _)| SecretKey::parse(secret).expect("a key"));
    keys.into_iter().find(|key| key.name() == name)
}

const SIGNED: &str = "signing gives the same bytes";
const VERIFIED: &str = "verified, and refused after one flipped bit";
const JSON: &str = "JSON, both directions";
const KEYS: &str = "key pairs";

const TEST_KEYS: [(&str, &str); 2] = [
    (
        "test-key:tU7tTvLcScf8pmz/eTV0BEtLmRsPpZfKaRcd0nCN+pysBZPHSeg61/u2oc7mIOewfuAY1V1BiX32homTaDJ2Jw==",
        "test-key:rAWTx0noOtf7tqHO5iDnsH7gGNVdQYl99oaJk2gydic=",
    ),
    (
        "test1:jbX9NxZp8WB/coK8k7yLf0gNYmBbIbCrOFwgJgI7OV+0sASf4R5oFQlioSlN3bJ56uvshzr7S9Z75pcv+9hSkQ==",
        "test1:tLAEn+EeaBUJYqEpTd2yeerr7Ic6+0vWe+aXL/vYUpE=",
    ),
];
