//! Whatever a flake.lock says, what is found in it are sentences.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use tk_nix::{flake::FlakeMetadata, repro::audit_flake};

fuzz_target!(|text: &[u8]| {
    let Ok(lock) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    let metadata: FlakeMetadata = serde_json::from_value(json!({
        "originalUrl": "path:/f", "resolvedUrl": "path:/f", "url": "path:/f", "description": null,
        "path": "/nix/store/x", "revision": null, "lastModified": null, "locks": lock,
    }))
    .expect("as it is printed");
    for lock in [None, Some(&metadata.locks)] {
        for finding in audit_flake(&metadata, lock) {
            assert!(finding.to_json().is_object());
        }
    }
});
