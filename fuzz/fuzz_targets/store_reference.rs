//! A store reference that is accepted is printed as a text that names the same store.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use tk_store::StoreReference;

fuzz_target!(|text: &str| {
    let cwd = Path::new("/a folder/of?the#user");
    let Ok(reference) = StoreReference::parse(text, cwd) else {
        return;
    };
    let printed = reference.to_string();
    let back = StoreReference::parse(&printed, cwd);
    assert_eq!(back.as_ref(), Ok(&reference), "{printed}");
    assert_eq!(reference.without_params().params.len(), 0);
    let _ = (reference.scheme(), reference.path());

    for key in reference.params.keys() {
        let take = || reference.settings();
        let _ = take().take_bool(key);
        let _ = take().take_u64(key);
        let _ = take().take_i64(key);
        let _ = take().take_path(key);
        let _ = take().take_store_dir();
        let mut rest = take();
        assert_eq!(rest.take(key).as_ref(), reference.params.get(key));
        assert_eq!(rest.unknown().count() + 1, reference.params.len());
    }
});
