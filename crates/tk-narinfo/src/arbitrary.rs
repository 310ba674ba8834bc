//! Random values for the property tests.

use proptest::prelude::*;
use tk_path::{Algorithm, ContentAddress, Hash, Method, NarHash, StorePath, nix32};

use crate::text::encode_base64;
use crate::{Compression, NarInfo, PathInfo, Signature};

prop_compose! {
    fn store_path()(digest in any::<[u8; 20]>(), name in "[a-z0-9+_?=][a-zA-Z0-9+._?=-]{0,40}") -> StorePath {
        StorePath::parse(&format!("{}-{name}", nix32::encode(&digest))).unwrap()
    }
}

prop_compose! {
    fn signature()(name in "[^:\n]{1,20}", bytes in proptest::collection::vec(any::<u8>(), 1..70)) -> Signature {
        Signature::from_parts(&name, &encode_base64(&bytes)).unwrap()
    }
}

prop_compose! {
    fn path_info()(
        path in store_path(),
        deriver in proptest::option::of(store_path()),
        nar_hash in any::<[u8; 32]>(),
        nar_size in 1u64..,
        references in proptest::collection::btree_set(store_path(), 0..5),
        signatures in proptest::collection::btree_set(signature(), 0..3),
        content in proptest::option::of(any::<[u8; 4]>()),
    ) -> PathInfo {
        let ca = content.map(|c| ContentAddress { method: Method::Flat, hash: Hash::digest(Algorithm::Sha256, &c) });
        PathInfo { deriver, references, signatures, ca, ..PathInfo::new(path, NarHash::from_bytes(nar_hash), nar_size) }
    }
}

prop_compose! {
    pub(crate) fn narinfo()(
        info in path_info(),
        url in "[^\n]{1,40}",
        compression in proptest::sample::select(&Compression::ALL[..]),
        file in proptest::option::of(any::<[u8; 4]>()),
        file_size in proptest::option::of(1u64..),
    ) -> NarInfo {
        let file_hash = file.map(|f| Hash::digest(Algorithm::Sha256, &f));
        NarInfo { file_hash, file_size, ..NarInfo::new(info, url, compression) }
    }
}
