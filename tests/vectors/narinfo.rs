//! Narinfos: every `*.narinfo`, and the real ones of cache.nixos.org that `*/narinfo/*.txt` holds,
//! a blank line between two.

use super::{say, text};
use crate::support::{Tally, Vectors, equal};
use serde_json::Value;
use tk_narinfo::{NarInfo, PublicKey, Signature, TrustedKeys};
use tk_path::StoreDir;

#[test]
fn narinfos() {
    let vectors = Vectors::find();
    let mut tally = Tally::new("golden data: narinfo", &ROWS);
    let results = vectors
        .json("derived/narinfo-results.json")
        .unwrap_or_default();
    for file in vectors.below("", ".narinfo") {
        narinfo(&mut tally, &file.name, file.text());
        if let Some(expected) = results.get(&file.name) {
            as_expected(&mut tally, &file.name, file.text(), expected);
        }
    }
    let trusted = cache_nixos_org();
    for file in vectors.below("", ".txt") {
        if !file.name.contains("/narinfo/") {
            continue;
        }
        for (i, entry) in file.text().split("\n\n").enumerate() {
            let entry = format!("{}\n", entry.trim_end_matches('\n'));
            let what = format!("{} entry {i}", file.name);
            narinfo(&mut tally, &what, &entry);
            tally.case(REAL, &what, || {
                let info = parse(&entry)?.info;
                let valid = info
                    .valid_signatures(&StoreDir::default(), &trusted)
                    .map_err(say)?;
                let by_it = |s: &&Signature| trusted.get(s.key_name()).is_some();
                equal(valid, info.signatures.iter().filter(by_it).count())?;
                equal(valid > 0, true)
            });
        }
    }
    tally.finish();
}

fn narinfo(tally: &mut Tally, what: &str, text: &str) {
    let dir = StoreDir::default();
    tally.case(PARSED, what, || parse(text).map(drop));
    tally.case(AGAIN, what, || {
        let first = parse(text)?;
        let printed = first.print(&dir);
        let second = parse(&printed)?;
        equal(&second.info, &first.info)?;
        equal(
            (&second.url, second.compression),
            (&first.url, first.compression),
        )?;
        equal(
            (second.file_hash, second.file_size),
            (first.file_hash, first.file_size),
        )?;
        equal(is_canonical(&printed), true)?;
        equal(second.print(&dir), printed)
    });
    if is_canonical(text) && one_signature_a_key(text) {
        tally.case(EXACT, what, || {
            equal(parse(text)?.print(&dir), text.to_owned())
        });
    }
}

fn as_expected(tally: &mut Tally, what: &str, narinfo: &str, expected: &Value) {
    let dir = StoreDir::default();
    if expected["fingerprintSorted"].is_string() {
        tally.case(SIGNED, what, || {
            let fingerprint = parse(narinfo)?.info.fingerprint(&dir).map_err(say)?;
            equal(fingerprint.as_str(), text(expected, "fingerprintSorted"))
        });
    }
    if let Some(keys) = expected["keys"].as_array() {
        tally.case(KEYS, what, || {
            let signatures = parse(narinfo)?.info.signatures;
            let mut names: Vec<_> = signatures.iter().map(|s| s.key_name().to_owned()).collect();
            names.dedup();
            equal(Value::from(names), Value::from(keys.clone()))
        });
    }
    if let Some(verifies) = expected["cacheNixosOrg1Verifies"].as_bool() {
        tally.case(VERIFIES, what, || {
            let info = parse(narinfo)?.info;
            let valid = info
                .valid_signatures(&dir, &cache_nixos_org())
                .map_err(say)?;
            equal(valid, usize::from(verifies))
        });
    }
    if let Some(count) = expected["references"].as_u64() {
        tally.case(COUNT, what, || {
            equal(parse(narinfo)?.info.references.len() as u64, count)
        });
    }
}

/// Whether real Nix would print exactly this: known fields in its order, hashes in nix32,
/// references sorted. Told without the parser under test.
fn is_canonical(text: &str) -> bool {
    let fields: Option<Vec<_>> = text.lines().map(|line| line.split_once(": ")).collect();
    let Some(fields) = fields else { return false };
    let places: Option<Vec<_>> = fields
        .iter()
        .map(|(key, _)| ORDER.iter().position(|known| known == key))
        .collect();
    let Some(places) = places else { return false };
    let in_order = places
        .windows(2)
        .all(|p| p[0] < p[1] || (p[0] == p[1] && ORDER[p[0]] == "Sig"));
    let required = [
        "StorePath",
        "URL",
        "Compression",
        "NarHash",
        "NarSize",
        "References",
    ];
    let usual = |(key, value): &(&str, &str)| match *key {
        "NarHash" => value
            .strip_prefix("sha256:")
            .is_some_and(|digits| digits.len() == 52),
        "FileHash" => value
            .split_once(':')
            .is_some_and(|(_, digits)| [26, 32, 52, 103].contains(&digits.len())),
        "FileSize" | "NarSize" => !value.starts_with('0'),
        "References" => value.is_empty() || value.split(' ').is_sorted_by(|a, b| a < b),
        "Deriver" => *value != "unknown-deriver",
        "CA" => !value.is_empty(),
        _ => true,
    };
    in_order
        && fields.iter().all(usual)
        && signers(text).is_sorted()
        && required
            .iter()
            .all(|name| fields.iter().any(|(key, _)| key == name))
}

/// Several of one key are sorted by their bytes, which the text does not show.
fn one_signature_a_key(text: &str) -> bool {
    signers(text).is_sorted_by(|a, b| a < b)
}

fn signers(text: &str) -> impl Iterator<Item = &str> {
    let signatures = text.lines().filter_map(|line| line.strip_prefix("Sig: "));
    signatures.map(|signature| signature.split(':').next().unwrap_or(signature))
}

fn parse(text: &str) -> Result<NarInfo, String> {
    NarInfo::parse(&StoreDir::default(), text).map_err(say)
}

fn cache_nixos_org() -> TrustedKeys {
    let key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    [PublicKey::parse(key).expect("a key")]
        .into_iter()
        .collect()
}

const PARSED: &str = "parsed";
const AGAIN: &str = "printed, and read back the same";
const EXACT: &str = "in Nix's own form: printed byte for byte";
const SIGNED: &str = "signed text as expected";
const KEYS: &str = "names of the signing keys";
const VERIFIES: &str = "signature of cache.nixos.org-1: yes or no as expected";
const COUNT: &str = "number of references";
const REAL: &str = "real narinfos that verify against their key";
const ROWS: [&str; 8] = [PARSED, AGAIN, EXACT, SIGNED, KEYS, VERIFIES, COUNT, REAL];

const ORDER: [&str; 11] = [
    "StorePath",
    "URL",
    "Compression",
    "FileHash",
    "FileSize",
    "NarHash",
    "NarSize",
    "References",
    "Deriver",
    "Sig",
    "CA",
];
