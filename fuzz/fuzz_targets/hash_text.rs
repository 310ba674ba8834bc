//! Hashes that are accepted are written, in each encoding, as texts that mean the same; nix32 has one text a value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_path::{Algorithm, Encoding, Hash, NarHash, nix32};

fuzz_target!(|text: &[u8]| {
    check_nix32(text);
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let expected = Algorithm::ALL.map(Some);
    for expected in expected.into_iter().chain([None]) {
        if let Ok(hash) = Hash::parse_any(text, expected) {
            assert!(expected.is_none_or(|algorithm| hash.algorithm() == algorithm));
            check_hash(hash);
        }
    }
    if let Ok(hash) = Hash::parse_sri(text) {
        // A colon after the first `=` is not looked at there, but here it is looked for first, as in Nix.
        assert!(text.contains(':') || Hash::parse_any(text, None) == Ok(hash));
    }
    if let Ok(hash) = NarHash::parse(text) {
        assert_eq!(NarHash::parse(&hash.to_string()), Ok(hash));
        assert_eq!(NarHash::parse(&hash.sri()), Ok(hash));
    }
    let _ = (text.parse::<Algorithm>(), text.parse::<Encoding>());
});

fn check_nix32(text: &[u8]) {
    assert_eq!(
        nix32::decode(nix32::encode(text).as_bytes()).as_deref(),
        Ok(text)
    );
    if let Ok(bytes) = nix32::decode(text) {
        assert_eq!(nix32::encode(&bytes).as_bytes(), text);
    }
    for algorithm in Algorithm::ALL {
        assert_eq!(
            Hash::new(algorithm, text).is_ok(),
            text.len() == algorithm.size()
        );
    }
}

fn check_hash(hash: Hash) {
    for encoding in Encoding::ALL {
        let text = hash.to_text(encoding);
        assert_eq!(Hash::parse_prefixed(&text), Ok(hash), "{text}");
        let digits = hash.digits(encoding);
        let back = Hash::parse_digits(&digits, hash.algorithm());
        assert_eq!(back, Ok(hash), "{digits}");
    }
    assert_eq!(hash.to_string(), hash.to_text(Encoding::Nix32));
    assert_eq!(hash.compress(20).len(), 20);
}
