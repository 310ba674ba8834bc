//! The JSON forms of Nix: hashes as SRI, store paths as base names, content addresses as objects.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Algorithm, ContentAddress, Encoding, Hash, HashPart, Method, NarHash, StoreDir, StorePath,
};

/// Serialises by `Display` and deserialises by `FromStr`.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        from_text!($type);
    )*};
}

macro_rules! from_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

as_text!(Algorithm, Encoding, HashPart, Method, StoreDir, StorePath);
from_text!(Hash);
from_text!(NarHash);

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text(Encoding::Sri))
    }
}

impl Serialize for NarHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.sri())
    }
}

impl Serialize for ContentAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ContentAddress { hash, method } = *self;
        Object { hash, method }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ContentAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Object { hash, method } = Object::deserialize(deserializer)?;
        Ok(ContentAddress { method, hash })
    }
}

#[derive(Serialize, Deserialize)]
struct Object {
    hash: Hash,
    method: Method,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_str, to_string};

    #[test]
    fn json_of_nix() {
        let hash = r#""sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J0=""#;
        let address = format!(r#"{{"hash":{hash},"method":"nar"}}"#);
        let path = r#""n5wkd9frr45pa74if5gpz9j7mifg27fh-foo""#;
        assert_eq!(
            to_string(&from_str::<Hash>(hash).expect("hash")).expect("json"),
            hash
        );
        assert_eq!(
            to_string(&from_str::<ContentAddress>(&address).expect("ca")).expect("json"),
            address
        );
        assert_eq!(
            to_string(&from_str::<StorePath>(path).expect("path")).expect("json"),
            path
        );
        assert!(from_str::<NarHash>(hash).is_err());
        assert!(from_str::<StorePath>(r#""foo""#).is_err());
        assert!(from_str::<ContentAddress>(r#"{"hash":"x","method":"nar"}"#).is_err());
    }
}
