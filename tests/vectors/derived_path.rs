//! Outputs specs and derived paths: the JSON goldens of `nix/libstore`, and placeholders.

use super::{say, text};
use crate::support::{Golden, Tally, Vectors, equal};
use serde_json::Value;
use tk_path::{
    DerivedPath, ExtendedOutputsSpec, OutputName, OutputsSpec, Placeholder, SingleDerivedPath,
    StoreDir, StorePath, placeholder,
};

#[test]
fn derived_paths() {
    let vectors = Vectors::find();
    let rows = [
        "outputs spec, JSON and text",
        "extended outputs spec, JSON and text",
        "single derived path, JSON and texts",
        "derived path, JSON and texts",
        "placeholder",
    ];
    let mut tally = Tally::new("golden data: derived paths", &rows);
    for file in vectors.files("nix/libstore/outputs-spec", ".json") {
        tally.case(rows[0], &file.name, || {
            let spec = OutputsSpec::from_json(&file.json()).map_err(say)?;
            equal(spec.to_json(), file.json())?;
            equal(spec.to_string().parse::<OutputsSpec>().map_err(say)?, spec)
        });
    }
    for file in vectors.files("nix/libstore/outputs-spec/extended", ".json") {
        tally.case(rows[1], &file.name, || {
            let spec = ExtendedOutputsSpec::from_json(&file.json()).map_err(say)?;
            equal(spec.to_json(), file.json())?;
            let text = format!("foo{spec}");
            equal(
                ExtendedOutputsSpec::parse(&text).map_err(say)?,
                ("foo", spec),
            )
        });
    }
    for file in vectors.files("nix/libstore/derived-path", ".json") {
        if file.base().starts_with("single_") {
            tally.case(rows[2], &file.name, || single(&file));
        }
        tally.case(rows[3], &file.name, || derived(&file));
    }
    for item in vectors.items("derived/placeholders.json") {
        tally.case(rows[4], &item.to_string(), || {
            let made = made_placeholder(&item)?;
            equal(made, text(&item, "placeholder").to_owned())
        });
    }
    tally.finish();
}

fn single(file: &Golden) -> Result<(), String> {
    let dir = StoreDir::default();
    let path = SingleDerivedPath::from_json(&file.json()).map_err(say)?;
    equal(path.to_json(), file.json())?;
    let modern = path.display(&dir).to_string();
    equal(
        SingleDerivedPath::parse(&dir, &modern).map_err(say)?,
        path.clone(),
    )?;
    let legacy = path.display_legacy(&dir).to_string();
    equal(
        SingleDerivedPath::parse_legacy(&dir, &legacy).map_err(say)?,
        path,
    )
}

/// Single ones too: but for the key of the output they have another JSON, which must be refused here.
fn derived(file: &Golden) -> Result<(), String> {
    let (dir, json) = (StoreDir::default(), file.json());
    let read = DerivedPath::from_json(&json);
    if json.get("output").is_some() {
        return read.map_or(Ok(()), |path| Err(format!("read as {path:?}")));
    }
    let path = read.map_err(say)?;
    equal(path.to_json(), json)?;
    let modern = path.display(&dir).to_string();
    equal(
        DerivedPath::parse(&dir, &modern).map_err(say)?,
        path.clone(),
    )?;
    let legacy = path.display_legacy(&dir).to_string();
    equal(DerivedPath::parse_legacy(&dir, &legacy).map_err(say)?, path)
}

fn made_placeholder(item: &Value) -> Result<String, String> {
    let output = OutputName::parse(text(item, "output")).map_err(say)?;
    match text(item, "kind") {
        "hashPlaceholder" => Ok(placeholder(&output)),
        "unknownCaOutput" => {
            let drv = StorePath::parse(text(item, "drvPath")).map_err(say)?;
            Ok(Placeholder::ca_output(&drv, &output).to_string())
        }
        other => Err(format!("unknown kind {other}")),
    }
}
