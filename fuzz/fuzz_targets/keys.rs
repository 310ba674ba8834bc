//! Keys and signatures that are accepted are printed as texts that mean the same; a secret key signs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tk_narinfo::{PublicKey, SecretKey, Signature, TrustedKeys};

fuzz_target!(|text: &str| {
    if let Ok(key) = PublicKey::parse(text) {
        let printed = key.to_string();
        assert_eq!(PublicKey::parse(&printed), Ok(key.clone()));
        assert_eq!(PublicKey::new(key.name(), *key.as_bytes()), key);
        let _ = key.verify(b"text", &Signature::new("name", [1; 64]));
    }
    if let Ok(signature) = Signature::parse(text) {
        let printed = signature.to_string();
        assert_eq!(Signature::parse(&printed), Ok(signature.clone()));
        let name = signature.key_name();
        let parts = Signature::from_parts(name, &signature.to_base64());
        assert_eq!(parts.as_ref(), Ok(&signature));
        let _ = PublicKey::new(name, [1; 32]).verify(b"text", &signature);
    }
    if let Ok(key) = SecretKey::parse(text) {
        let printed = key.to_text();
        let back = SecretKey::parse(&printed).expect("our own key");
        assert_eq!(back.to_text(), printed);
        let signature = back.sign(text.as_bytes());
        assert_eq!(key.public().verify(text.as_bytes(), &signature), Ok(true));
    }
    if let Ok(keys) = TrustedKeys::parse_list(text) {
        let list: Vec<_> = keys.iter().map(ToString::to_string).collect();
        assert_eq!(TrustedKeys::parse_list(&list.join(" ")), Ok(keys));
    }
});
