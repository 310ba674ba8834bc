//! Build results: `nix/libstore/build-result/*.json`, and those in the protocols' JSON.

use super::say;
use crate::support::{Tally, Vectors, equal};
use serde_json::Value;
use tk_narinfo::build_result::{BuildResult, BuildStatus};

#[test]
fn build_results() {
    let vectors = Vectors::find();
    let rows = [OWN, PROTOCOL, STATUSES];
    let mut tally = Tally::new("golden data: build results", &rows);
    for file in vectors.files("nix/libstore/build-result", ".json") {
        tally.case(OWN, &file.name, || both_ways(&file.json()));
    }
    for folder in ["worker-protocol", "serve-protocol"] {
        for file in vectors.files(&format!("nix/libstore/{folder}"), ".json") {
            let mut found = Vec::new();
            collect(&file.json(), &mut found);
            for value in found {
                tally.case(PROTOCOL, &file.name, || both_ways(&value));
                tally.case(STATUSES, &file.name, || {
                    let name = value["status"].as_str().ok_or("no status")?;
                    let status: BuildStatus = name.parse().map_err(say)?;
                    equal(Some(status.is_success()), value["success"].as_bool())
                });
            }
        }
    }
    tally.finish();
}

fn both_ways(value: &Value) -> Result<(), String> {
    let read = BuildResult::from_json(value).map_err(say)?;
    equal(read.to_json(), without_legacy(value.clone()))
}

/// Realisations of the older form keep their path and signatures only.
fn without_legacy(mut value: Value) -> Value {
    // Those that are keyed have what was asked for beside the result.
    if let Some(object) = value.as_object_mut() {
        object.remove("path");
    }
    let outputs = value["builtOutputs"].as_object_mut();
    for output in outputs.into_iter().flat_map(|outputs| outputs.values_mut()) {
        if let Some(output) = output.as_object_mut() {
            output.retain(|key, _| key == "outPath" || key == "signatures");
        }
    }
    if value["builtOutputs"].is_null()
        && let Some(object) = value.as_object_mut()
    {
        object.remove("builtOutputs");
    }
    value
}

fn collect(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(object) if object.contains_key("success") => found.push(value.clone()),
        Value::Object(object) => object.values().for_each(|value| collect(value, found)),
        Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

const OWN: &str = "JSON, both directions";
const PROTOCOL: &str = "JSON in the protocols' data, both directions";
const STATUSES: &str = "statuses and whether they are success";
