//! Store paths, store directories and content addresses that are accepted are printed as texts that mean the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_path::{
    ContentAddress, HashPart, MethodAlgorithm, References, StoreDir, StorePath, clean_path,
};

fuzz_target!(|text: &str| {
    let dir = StoreDir::default();
    if let Ok(path) = StorePath::parse(text) {
        assert_eq!(path.as_str(), text);
        check_path(&dir, &path);
    }
    if let Ok(path) = dir.parse(text) {
        check_path(&dir, &path);
        assert_eq!(dir.split(text), Ok((path, String::new())));
    }
    if let Ok(path) = dir.parse_canonical(text) {
        assert_eq!(dir.path(&path), text);
    }
    if let Ok((path, rest)) = dir.split(text) {
        check_path(&dir, &path);
        assert!(!rest.starts_with('/') && !rest.ends_with('/'));
        let whole = format!("{}/{rest}", dir.path(&path));
        assert_eq!(dir.split(&whole), Ok((path, rest)));
    }
    if let Some(clean) = clean_path(text) {
        assert_eq!(clean_path(&clean).as_ref(), Some(&clean));
    }
    if let Ok(other) = StoreDir::new(text) {
        assert_eq!(StoreDir::new(other.as_str()), Ok(other.clone()));
        let path = StorePath::from_digest(&[7; 20], "name").expect("a path");
        check_path(&other, &path);
    }
    check_address(&dir, text);
});

fn check_path(dir: &StoreDir, path: &StorePath) {
    let made = StorePath::from_digest(&path.digest(), path.name());
    assert_eq!(made.as_ref(), Ok(path));
    let part = path.to_hash_part();
    assert_eq!(HashPart::parse(path.hash_part()), Ok(part));
    assert_eq!(HashPart::from_digest(&path.digest()), part);
    let full = dir.path(path);
    assert_eq!(dir.parse_canonical(&full).as_ref(), Ok(path), "{full}");
    assert_eq!(dir.parse(&full).as_ref(), Ok(path), "{full}");
    assert_eq!(dir.display(path).to_string(), full);
}

fn check_address(dir: &StoreDir, text: &str) {
    if let Ok(address) = text.parse::<ContentAddress>() {
        assert_eq!(address.to_string().parse(), Ok(address));
        let mut references = References::default();
        for itself in [false, true] {
            references.itself = itself;
            if let Ok(path) = dir.path_of_content("name", &address, &references) {
                check_path(dir, &path);
            }
        }
    }
    let methods = [text.parse(), MethodAlgorithm::parse_aterm(text)];
    for method in methods.into_iter().flatten() {
        assert_eq!(method.to_string().parse(), Ok(method));
        let aterm = method.to_aterm();
        assert_eq!(MethodAlgorithm::parse_aterm(&aterm), Ok(method));
    }
}
