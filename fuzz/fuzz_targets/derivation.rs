//! A derivation that is accepted, as a file or as JSON, is written as both with the same meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_path::modulo::Modulo;
use tk_path::{Derivation, DerivationJsonVersion, StoreDir};

fuzz_target!(|file: &[u8]| {
    let dir = StoreDir::default();
    if let Ok(drv) = Derivation::parse_aterm(&dir, "flat", file) {
        check(&dir, drv);
    }
    if let Ok(value) = serde_json::from_slice(file)
        && let Ok(drv) = Derivation::from_json(&value)
    {
        check(&dir, drv);
    }
});

fn check(dir: &StoreDir, mut drv: Derivation) {
    // What no file can hold is an error, not a file that means something else.
    if let Ok(file) = drv.to_aterm(dir) {
        let again = Derivation::parse_aterm(dir, &drv.name, &file);
        assert_eq!(again.as_ref(), Ok(&drv));
    }
    for version in [
        DerivationJsonVersion::V1,
        DerivationJsonVersion::V2,
        DerivationJsonVersion::V3,
    ] {
        let _ = drv.to_json(dir, version);
    }
    if let Ok(json) = drv.to_json(dir, DerivationJsonVersion::V4) {
        let again: Derivation = Derivation::from_json(&json).expect("our own JSON");
        // Structured attributes come back in the form of Nix, which is then stable.
        let json = again.to_json(dir, DerivationJsonVersion::V4).expect("JSON");
        assert_eq!(Derivation::from_json(&json), Ok(again));
    }
    let _ = drv.path(dir);
    let _ = drv.resolve(dir, |drv, _| Some(drv.clone()));
    let modulo = Modulo::new(dir.clone());
    if drv.fill_outputs(&modulo).is_ok() {
        assert_eq!(drv.check_outputs(&modulo), Ok(()));
    }
}
