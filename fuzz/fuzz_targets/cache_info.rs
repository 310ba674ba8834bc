//! A nix-cache-info that is accepted is printed as a text that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_narinfo::CacheInfo;
use tk_path::StoreDir;

fuzz_target!(|text: &[u8]| {
    let Ok(info) = CacheInfo::parse(text).inspect_err(|error| drop(error.to_string())) else {
        return;
    };
    let printed = info.print();
    assert_eq!(CacheInfo::parse(&printed).as_ref(), Ok(&info));
    let _ = info.check_store_dir(&StoreDir::default());
});
