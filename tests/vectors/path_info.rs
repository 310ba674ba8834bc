//! Path infos and narinfos as JSON: `nix/libstore/{path-info,nar-info}/json-VERSION`, and whole
//! stores as JSON: `nix/libstore/{dummy-store,worker-substitution}`.

use super::{nar::encode_tree, say};
use crate::support::{Golden, Tally, Vectors, equal};
use serde_json::Value;
use tk_nar::Encoder;
use tk_narinfo::json::{
    JsonFields, JsonVersion, narinfo_from_json, narinfo_to_json, path_info_from_json,
    path_info_to_json,
};
use tk_path::{Algorithm, Hash, StoreDir, StorePath, scan::RefScanner};

#[test]
fn path_infos() {
    let vectors = Vectors::find();
    let rows = [
        "v1, both directions",
        "v2, both directions",
        "v3, both directions",
        "without version, read",
        SAME,
    ];
    for (title, folder, print) in KINDS {
        let mut tally = Tally::new(title, &rows);
        let mut read: Vec<(String, Value)> = Vec::new();
        for version in JsonVersion::ALL {
            let row = rows[version.number() as usize - 1];
            for file in vectors.files(&format!("{folder}/json-{}", version.number()), ".json") {
                let stem = file.base().trim_end_matches(".json");
                let fields = if stem.contains("impure") {
                    JsonFields::Impure
                } else {
                    JsonFields::Pure
                };
                match stem.strip_suffix("_noversion") {
                    // Nothing writes it any more; it says what its sibling says.
                    Some(sibling) => tally.case("without version, read", &file.name, || {
                        let sibling = vectors
                            .path(&file.name.replace(stem, sibling))
                            .exists()
                            .then_some(sibling);
                        let printed = print(&file, version, fields)?;
                        sibling.map_or(Ok(()), |name| {
                            equal(Some(printed), vectors.json(&file.name.replace(stem, name)))
                        })
                    }),
                    None => tally.case(row, &file.name, || {
                        equal(print(&file, version, fields)?, file.json())
                    }),
                }
                // Whatever the version, the same stem says the same.
                let Ok(newest) = print(&file, JsonVersion::V3, fields) else {
                    continue;
                };
                match read.iter().find(|(known, _)| known == stem) {
                    Some((_, other)) => tally.equal(SAME, &file.name, &newest, other),
                    None => read.push((stem.to_owned(), newest)),
                }
            }
        }
        tally.finish();
    }
}

#[test]
fn stores_as_json() {
    let vectors = Vectors::find();
    let rows = [
        "metadata, both directions",
        "hash and size of the contents",
        "path of the contents",
        "references found by scanning",
    ];
    let mut tally = Tally::new("golden data: paths of whole stores", &rows);
    let folders = [
        "nix/libstore/dummy-store",
        "nix/libstore/worker-substitution",
    ];
    for file in folders
        .iter()
        .flat_map(|folder| vectors.below(folder, ".json"))
    {
        let json = file.json();
        let Some(contents) = json["contents"].as_object() else {
            continue;
        };
        let dir =
            StoreDir::new(json["config"]["store"].as_str().expect("a text")).expect("a folder");
        let paths: Vec<_> = contents
            .keys()
            .map(|base| StorePath::parse(base).expect("a path"))
            .collect();
        for (path, value) in paths.iter().zip(contents.values()) {
            let what = format!("{} {path}", file.name);
            let info = path_info_from_json(&value["info"], &dir, path).map_err(say);
            let nar = packed(&value["contents"]);
            tally.case(rows[0], &what, || {
                let stated = |v: &JsonVersion| value["info"]["version"] == v.number();
                let version = JsonVersion::ALL
                    .into_iter()
                    .find(stated)
                    .ok_or("no version")?;
                let json = path_info_to_json(&info.clone()?, &dir, version, JsonFields::Impure);
                equal(&json, &value["info"])
            });
            tally.case(rows[1], &what, || {
                let (info, nar) = (info.clone()?, nar.clone()?);
                equal(
                    Hash::from(info.nar_hash),
                    Hash::digest(Algorithm::Sha256, &nar),
                )?;
                equal(info.nar_size, nar.len() as u64)
            });
            tally.case(rows[2], &what, || {
                equal(info.clone()?.is_content_addressed(&dir), true)
            });
            tally.case(rows[3], &what, || {
                let mut scanner = RefScanner::new(paths.iter().map(StorePath::to_hash_part));
                for piece in nar.clone()?.chunks(7) {
                    scanner.feed(piece);
                }
                let found = scanner.found().map(|i| paths[i].clone()).collect();
                equal(info.clone()?.references, found)
            });
        }
    }
    tally.finish();
}

/// The NAR of a JSON tree with contents.
fn packed(tree: &Value) -> Result<Vec<u8>, String> {
    let mut encoder = Encoder::new(Vec::new());
    encode_tree(&mut encoder, tree)?;
    encoder.finish().map_err(say)
}

/// Reads a golden and prints it in a version.
type Print = fn(&Golden, JsonVersion, JsonFields) -> Result<Value, String>;

const KINDS: [(&str, &str, Print); 2] = [
    (
        "golden data: path info JSON",
        "nix/libstore/path-info",
        |file, version, fields| {
            let dir = StoreDir::default();
            let info = path_info_from_json(&file.json(), &dir, &path()).map_err(say)?;
            Ok(path_info_to_json(&info, &dir, version, fields))
        },
    ),
    (
        "golden data: narinfo JSON",
        "nix/libstore/nar-info",
        |file, version, fields| {
            let dir = StoreDir::default();
            let info = narinfo_from_json(&file.json(), &dir, &path()).map_err(say)?;
            Ok(narinfo_to_json(&info, &dir, version, fields))
        },
    ),
];

/// The path that these goldens are about.
fn path() -> StorePath {
    StorePath::parse("n5wkd9frr45pa74if5gpz9j7mifg27fh-foo").expect("a store path")
}

const SAME: &str = "the same value from every version";
