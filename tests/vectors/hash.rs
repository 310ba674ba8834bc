//! Hashes and nix32: `derived/hash-text.json`, `derived/nix32*.json`, `nix/libutil/hash`.

use super::{say, text, unhex};
use crate::support::{Tally, Vectors, equal};
use tk_path::{Algorithm, Encoding, Hash, nix32};

#[test]
fn hashes() {
    let vectors = Vectors::find();
    let rows = [
        "digest of a text",
        "printed, four encodings",
        "parsed, prefixed or SRI",
        "parsed, bare digits",
        "SRI in JSON, both directions",
    ];
    let mut tally = Tally::new("golden data: hashes", &rows);
    for item in vectors.items("derived/hash-text.json") {
        let algorithm: Algorithm = text(&item, "algo").parse().expect("an algorithm");
        let hash = Hash::digest(algorithm, text(&item, "input").as_bytes());
        let what = format!("{algorithm} of {}", item["input"]);
        let base16 = text(&item, "base16");
        tally.equal(
            "digest of a text",
            &what,
            hash.as_bytes(),
            &unhex(bare(base16)),
        );
        for (key, encoding) in ENCODINGS {
            let printed = text(&item, key);
            let expected = printed.to_owned();
            tally.equal(
                "printed, four encodings",
                &what,
                hash.to_text(encoding),
                expected,
            );
            for context in [None, Some(algorithm)] {
                tally.case("parsed, prefixed or SRI", printed, || {
                    equal(Hash::parse_any(printed, context).map_err(say)?, hash)
                });
            }
            if encoding != Encoding::Sri {
                tally.case("parsed, bare digits", printed, || {
                    equal(
                        Hash::parse_any(bare(printed), Some(algorithm)).map_err(say)?,
                        hash,
                    )?;
                    equal(hash.digits(encoding), bare(printed).to_owned())
                });
            }
        }
    }
    for file in vectors.files("nix/libutil/hash", ".json") {
        let json = file.json();
        let printed = json.as_str().expect("a JSON string");
        tally.case("SRI in JSON, both directions", &file.name, || {
            let hash = Hash::parse_any(printed, None).map_err(say)?;
            equal(hash.to_text(Encoding::Sri), printed.to_owned())
        });
    }
    tally.finish();
}

#[test]
fn nix32_digits() {
    let vectors = Vectors::find();
    let rows = ["bytes to digits", "digits to bytes", "refused"];
    let mut tally = Tally::new("golden data: nix32", &rows);
    for item in vectors.items("derived/nix32.json") {
        let (bytes, digits) = (unhex(text(&item, "hex")), text(&item, "nix32"));
        tally.equal(
            "bytes to digits",
            digits,
            nix32::encode(&bytes),
            digits.to_owned(),
        );
        tally.case("digits to bytes", digits, || {
            equal(
                nix32::decode(digits.as_bytes()).map_err(say)?,
                bytes.clone(),
            )
        });
    }
    for item in vectors.items("derived/nix32-invalid.json") {
        let digits = text(&item, "nix32");
        let refused = Hash::parse_digits(digits, Algorithm::Sha256).is_err();
        tally.equal("refused", text(&item, "why"), refused, true);
    }
    tally.finish();
}

/// The digits of a hash behind its algorithm.
fn bare(text: &str) -> &str {
    text.split_once([':', '-'])
        .map_or(text, |(_, digits)| digits)
}

const ENCODINGS: [(&str, Encoding); 4] = [
    ("base16", Encoding::Base16),
    ("nix32", Encoding::Nix32),
    ("base64", Encoding::Base64),
    ("sri", Encoding::Sri),
];
