//! A narinfo that is accepted is printed as a text that means the same, and that is printed as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_narinfo::{NarInfo, Policy, TrustedKeys};
use tk_path::StoreDir;

fuzz_target!(|text: &[u8]| {
    let dir = StoreDir::default();
    let Ok(narinfo) = NarInfo::parse(&dir, text).inspect_err(|error| drop(error.to_string()))
    else {
        return;
    };
    let printed = narinfo.print(&dir);
    let back = NarInfo::parse(&dir, &printed).expect("our own narinfo");
    assert_eq!(back.print(&dir), printed);
    // What is only about the spelling is not printed.
    let known = NarInfo {
        extra: Vec::new(),
        quirks: back.quirks.clone(),
        ..narinfo.clone()
    };
    assert_eq!(back, known);

    let info = &narinfo.info;
    assert_eq!(info.fingerprint(&dir), back.info.fingerprint(&dir));
    info.is_content_addressed(&dir);
    let _ = Policy::new(TrustedKeys::new()).check(&dir, info);
    narinfo
        .expect(&info.path.to_hash_part())
        .expect("it is about itself");
    let _ = tk_cache::layout::path_of_url(&narinfo.url);
});
