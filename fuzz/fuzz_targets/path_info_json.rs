//! A path info or narinfo that is accepted is written, in each version, as JSON that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tk_narinfo::PathInfo;
use tk_narinfo::json::{self, JsonFields, JsonVersion};
use tk_path::{StoreDir, StorePath};

fuzz_target!(|text: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    let dir = StoreDir::default();
    let path = StorePath::parse("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo").expect("a path");
    let _ = json::path_inside(&value, &dir);
    let _ = json::signature_from_json(&value);
    if let Ok(info) = json::path_info_from_json(&value, &dir, &path) {
        check_info(&info, &dir);
    }
    let Ok(narinfo) = json::narinfo_from_json(&value, &dir, &path) else {
        return;
    };
    for version in JsonVersion::ALL {
        let written = json::narinfo_to_json(&narinfo, &dir, version, JsonFields::Impure);
        let back = json::narinfo_from_json(&written, &dir, &path);
        assert_eq!(back.as_ref(), Ok(&narinfo), "{written}");
    }
});

fn check_info(info: &PathInfo, dir: &StoreDir) {
    let pure = PathInfo {
        references: info.references.clone(),
        ca: info.ca,
        ..PathInfo::new(info.path.clone(), info.nar_hash, info.nar_size)
    };
    for version in JsonVersion::ALL {
        for (fields, meant) in [(JsonFields::Pure, &pure), (JsonFields::Impure, info)] {
            let written = json::path_info_to_json(info, dir, version, fields);
            let back = json::path_info_from_json(&written, dir, &info.path);
            assert_eq!(back.as_ref(), Ok(meant), "{written}");
        }
    }
    let first = json::path_info_to_json(info, dir, JsonVersion::V1, JsonFields::Impure);
    let old = json::nix_2_8(first, dir, &info.path);
    assert_eq!(
        json::path_info_from_json(&old, dir, &info.path).as_ref(),
        Ok(info)
    );
    assert_eq!(json::path_inside(&old, dir), Ok(Some(info.path.clone())));
}
