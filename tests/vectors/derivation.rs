//! Derivations: files and JSON in both directions, the paths of files and outputs, hashes modulo, resolving. What
//! `derived/drv-results.json` says of a file is held against ours.

use super::{say, text};
use crate::support::{Golden, Tally, Vectors, equal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tk_path::modulo::Modulo;
use tk_path::{
    Algorithm, BasicDerivation, Derivation, DerivationErrorKind as Kind, DerivationJsonVersion,
    DerivationOutput, Hash, Inputs, Method, MethodAlgorithm, OutputError, OutputName, StoreDir,
    StorePath,
};

#[test]
fn derivations() {
    let vectors = Vectors::find();
    let mut tally = Tally::new("golden data: derivations", &ROWS);
    files(&vectors, &mut tally);
    jsons(&vectors, &mut tally);
    hashes(&vectors, &mut tally);
    invariants(&vectors, &mut tally);
    resolving(&vectors, &mut tally);
    tally.finish();
}

const ROWS: [&str; 15] = [
    "file in canonical order: printed back byte for byte",
    "file in another order: read, then stable",
    "file: its own path",
    "file: refused",
    "file cut short or changed: refused or another",
    "JSON 4: as the file, both directions",
    "JSON 4 without a file: both directions",
    "JSON of one output: both directions",
    "JSON 1, as written by others",
    "output paths: as stated in the file",
    "output paths: of a changed file others",
    "hash modulo",
    "filling in",
    "filling in: refused",
    "resolving",
];

fn files(vectors: &Vectors, tally: &mut Tally) {
    let results = vectors.json("derived/drv-results.json").unwrap_or_default();
    let folders = [
        "nix/libstore/derivation",
        "nix/fuzz/derivations",
        "nix/drv",
        "snix/drv",
        "go-nix/drv",
        "harmonia/drv",
    ];
    let mut all: Vec<Golden> = folders
        .iter()
        .flat_map(|folder| vectors.below(folder, ".drv"))
        .filter(|file| !file.base().ends_with("-modulo.drv"))
        .collect();
    for file in &all {
        if ["bad-", "unterminated-"]
            .iter()
            .any(|bad| file.base().starts_with(bad))
        {
            tally.case("file: refused", &file.name, || match parse(file) {
                Err(_) => Ok(()),
                Ok(drv) => Err(format!("read as {drv:?}")),
            });
            continue;
        }
        let known = results.get(&file.name);
        let canonical = known.is_none_or(|known| known["canonicalOrder"] == true);
        let dir = StoreDir::default();
        if canonical {
            tally.case(ROWS[0], &file.name, || {
                let printed = parse(file)?.to_aterm(&dir).map_err(say)?;
                equal(show(&printed), show(&file.bytes))
            });
            tally.case(ROWS[4], &file.name, || changed(file));
        } else {
            tally.case(ROWS[1], &file.name, || {
                let drv = parse(file)?;
                let printed = drv.to_aterm(&dir).map_err(say)?;
                equal(read(&drv.name, &printed)?, drv)
            });
        }
        if let Some(known) = known.filter(|known| canonical && known["drvPath"].is_string()) {
            tally.case("file: its own path", &file.name, || {
                let path = parse(file)?.path(&dir).map_err(say)?;
                equal(dir.path(&path), text(known, "drvPath").to_owned())
            });
        }
    }
    // The intermediates of hash-modulo state paths made before they had variables; Nix's own check refuses them.
    all.retain(|file| {
        let known = results.get(&file.name);
        let own = known.is_none_or(|known| known["drvPathMatchesFileName"] != false);
        own && !file.name.contains("/hash-modulo/")
    });
    output_paths(&all, tally);
    for folder in ["nix/drv", "snix/drv/ok", "go-nix/drv"] {
        for file in vectors.files(folder, ".drv.json") {
            tally.case("JSON 1, as written by others", &file.name, || {
                let drv = vectors.files(folder, ".drv");
                let drv = drv
                    .iter()
                    .find(|drv| file.name == format!("{}.json", drv.name));
                older_json(drv.ok_or("no file beside it")?, &file)
            });
        }
    }
}

/// Each derivation whose inputs are there too states the paths that we compute.
fn output_paths(files: &[Golden], tally: &mut Tally) {
    let dir = StoreDir::default();
    let known: BTreeMap<StorePath, Derivation> = files
        .iter()
        .filter_map(|file| parse(file).ok())
        .filter_map(|drv| Some((drv.path(&dir).ok()?, drv)))
        .collect();
    for (path, drv) in &known {
        let Ok(modulo) = loaded(drv, &known) else {
            continue;
        };
        let stated = |o: &DerivationOutput| matches!(o, DerivationOutput::InputAddressed(_));
        if drv.kind().is_err() || !drv.outputs.values().all(stated) {
            continue;
        }
        tally.case("output paths: as stated in the file", path.as_str(), || {
            drv.check_outputs(&modulo).map_err(say)
        });
        let mut other = drv.clone();
        other.builder.push(b'x');
        tally.case(
            "output paths: of a changed file others",
            path.as_str(),
            || match other.check_outputs(&modulo) {
                Ok(()) => Err("not noticed".to_owned()),
                Err(_) => Ok(()),
            },
        );
    }
}

/// Every file that ends early is refused, and one with a changed byte is, or means something else.
fn changed(file: &Golden) -> Result<(), String> {
    let drv = parse(file)?;
    for at in (0..file.bytes.len()).step_by(1 + file.bytes.len() / 200) {
        if read(&drv.name, &file.bytes[..at]).is_ok() {
            return Err(format!("read although cut after {at} bytes"));
        }
        let mut bytes = file.bytes.clone();
        bytes[at] ^= 1;
        if let Ok(other) = read(&drv.name, &bytes) {
            let printed = other.to_aterm(&StoreDir::default()).map_err(say)?;
            if other == drv && printed != bytes {
                return Err(format!("byte {at} means nothing"));
            }
        }
    }
    Ok(())
}

fn older_json(drv: &Golden, json: &Golden) -> Result<(), String> {
    let drv = parse(drv)?;
    let dir = StoreDir::default();
    let ours = drv.to_json(&dir, DerivationJsonVersion::V1);
    let Ok(theirs) = serde_json::from_slice::<Value>(&json.bytes) else {
        return ours.map_or(Ok(()), |_| Err("has a text that is not UTF-8".to_owned()));
    };
    let full = dir.path(&drv.path(&dir).map_err(say)?);
    let theirs = theirs.get(&full).unwrap_or(&theirs);
    match ours {
        Ok(ours) => equal(&ours, theirs),
        // They put U+FFFD in its place.
        Err(_) if theirs.to_string().contains('\u{fffd}') => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn jsons(vectors: &Vectors, tally: &mut Tally) {
    for folder in ["", "/ia", "/ca", "/hash-modulo"] {
        let folder = format!("nix/libstore/derivation{folder}");
        let drvs = vectors.files(&folder, ".drv");
        for file in vectors.files(&folder, ".json") {
            if file.base().starts_with("output-") {
                tally.case("JSON of one output: both directions", &file.name, || {
                    let output = DerivationOutput::from_json(&file.json()).map_err(say)?;
                    equal(output.to_json(), file.json())
                });
                continue;
            }
            let stem = file.name.trim_end_matches(".json");
            match drvs.iter().find(|drv| drv.name == format!("{stem}.drv")) {
                Some(drv) => tally.case("JSON 4: as the file, both directions", &file.name, || {
                    let from_json = Derivation::from_json(&file.json()).map_err(say)?;
                    let from_file = read(&from_json.name, &drv.bytes)?;
                    equal(&from_file, &from_json)?;
                    equal(v4(&from_file)?, file.json())
                }),
                None => tally.case("JSON 4 without a file: both directions", &file.name, || {
                    equal(v4(&full(&file)?)?, file.json())
                }),
            }
        }
    }
}

fn hashes(vectors: &Vectors, tally: &mut Tally) {
    let folder = "nix/libstore/derivation/hash-modulo";
    let dir = StoreDir::default();
    let known: BTreeMap<StorePath, Derivation> = vectors
        .files(folder, ".json")
        .iter()
        .filter_map(|file| full(file).ok())
        .filter_map(|drv| Some((drv.path(&dir).ok()?, drv)))
        .collect();
    for file in vectors.files(folder, "-modulo.drv") {
        tally.case("hash modulo", &file.name, || {
            let stem = file.name.trim_end_matches("-modulo.drv");
            let drv =
                Derivation::from_json(&vectors.json(&format!("{stem}.json")).ok_or("no JSON")?);
            let drv: Derivation = drv.map_err(say)?;
            let hash = Hash::digest(Algorithm::Sha256, &file.bytes);
            let path = |name: &OutputName| {
                let path =
                    dir.make_path(&format!("output:{name}"), &hash, &name.path_name(&drv.name));
                (name.clone(), path.ok())
            };
            let paths = loaded(&drv, &known)?.output_paths(&drv).map_err(say)?;
            equal(paths, drv.outputs.keys().map(path).collect())
        });
    }
}

fn invariants(vectors: &Vectors, tally: &mut Tally) {
    let folder = "nix/libstore/derivation/invariants";
    for file in vectors.files(folder, ".json") {
        let stem = file.base().trim_end_matches(".json");
        let filled = || {
            let mut drv = full(&file)?;
            let modulo = with_floating_inputs(&drv)?;
            drv.fill_outputs(&modulo).map_err(say)?;
            drv.check_outputs(&modulo).map_err(say)?;
            v4(&drv)
        };
        if stem.ends_with("-post") {
            continue;
        }
        if stem.starts_with("bad-") {
            tally.case("filling in: refused", &file.name, || match filled() {
                Err(_) => Ok(()),
                Ok(drv) => Err(format!("filled in as {drv}")),
            });
            continue;
        }
        let post = format!("{folder}/{}-post.json", stem.trim_end_matches("-pre"));
        let expected = vectors.json(&post).unwrap_or_else(|| file.json());
        tally.case("filling in", &file.name, || equal(filled()?, expected));
    }
}

fn resolving(vectors: &Vectors, tally: &mut Tally) {
    let folder = "nix/libstore/derivation/try-resolve";
    for file in vectors.files(folder, "-before.json") {
        let stem = file.name.trim_end_matches("-before.json");
        let trace = vectors.items(&format!("{stem}-buildTrace.json"));
        let after = ["after", "resolved"]
            .iter()
            .find_map(|end| vectors.json(&format!("{stem}-{end}.json")));
        tally.case("resolving", &file.name, || {
            let realised = |drv: &StorePath, output: &OutputName| {
                let key = json!({"drvPath": drv.as_str(), "output": output.as_str()});
                let entry = trace.iter().find(|entry| entry[0] == key)?;
                StorePath::parse(entry[1].as_str()?).ok()
            };
            let dir = StoreDir::default();
            match (full(&file)?.resolve(&dir, realised), after) {
                (Err(_), None) => Ok(()),
                (Ok(drv), None) => Err(format!("resolved to {drv:?}")),
                (Err(error), Some(_)) => Err(error.to_string()),
                (Ok(drv), Some(after)) => {
                    equal(
                        BasicDerivation::from_json(&after).map_err(say)?,
                        drv.clone(),
                    )?;
                    equal(
                        drv.to_json(&dir, DerivationJsonVersion::V4).map_err(say)?,
                        after,
                    )
                }
            }
        });
    }
}

/// All inputs of `drv` are of floating content.
fn with_floating_inputs(drv: &Derivation) -> Result<Modulo, String> {
    let mut modulo = Modulo::new(StoreDir::default());
    let method = MethodAlgorithm {
        method: Method::Nar,
        algorithm: Algorithm::Sha256,
    };
    let mut input = drv.clone();
    input.inputs = Inputs::default();
    input.outputs = [(OutputName::out(), DerivationOutput::Floating(method))].into();
    for path in drv.inputs.drvs.keys() {
        modulo.add(path.clone(), &input).map_err(say)?;
    }
    Ok(modulo)
}

fn loaded(drv: &Derivation, known: &BTreeMap<StorePath, Derivation>) -> Result<Modulo, String> {
    let mut modulo = Modulo::new(StoreDir::default());
    let get = |path: &StorePath| {
        let drv = known.get(path).ok_or("it is not among the golden data")?;
        Ok(drv.clone().into())
    };
    modulo.load(drv, get).map_err(say)?;
    Ok(modulo)
}

fn parse(file: &Golden) -> Result<Derivation, String> {
    let base = file.base().trim_end_matches(".drv");
    let named = StorePath::parse(base);
    let mut name = named.as_ref().map_or(base, |path| path.name());
    // Those are called after what they are for.
    if file.name.contains("/hash-modulo/") {
        name = name.split('-').next().unwrap_or(name);
    }
    let error = match Derivation::parse_aterm(&StoreDir::default(), name, &file.bytes) {
        Err(error) if file.name.starts_with("harmonia/") => error,
        other => return other.map_err(say),
    };
    // Anonymised: a fixed output has another path than its content makes.
    let Kind::Output(_, OutputError::OtherPath { stated, computed }) = error.kind() else {
        return Err(error.to_string());
    };
    let text = file.text().replace(stated.as_str(), computed.as_str());
    read(name, text.as_bytes())
}

fn read(name: &str, bytes: &[u8]) -> Result<Derivation, String> {
    Derivation::parse_aterm(&StoreDir::default(), name, bytes).map_err(say)
}

fn full(file: &Golden) -> Result<Derivation, String> {
    Derivation::from_json(&file.json()).map_err(say)
}

fn v4(drv: &Derivation) -> Result<Value, String> {
    drv.to_json(&StoreDir::default(), DerivationJsonVersion::V4)
        .map_err(say)
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
