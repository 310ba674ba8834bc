//! Random values for the property tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use tk_path::{Algorithm, ContentAddress, Hash, Method, NarHash, OutputName, StorePath, nix32};

use crate::build_result::{BuildResult, BuildStatus};
use crate::realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy};
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

fn output_name() -> impl Strategy<Value = OutputName> {
    "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,10}".prop_map(|name| OutputName::parse(&name).unwrap())
}

fn signatures() -> impl Strategy<Value = BTreeSet<Signature>> {
    proptest::collection::btree_set(signature(), 0..3)
}

prop_compose! {
    fn unkeyed_realisation()(out_path in store_path(), signatures in signatures()) -> UnkeyedRealisation {
        UnkeyedRealisation { out_path, signatures }
    }
}

prop_compose! {
    pub(crate) fn realisation()(
        drv in store_path(),
        output in output_name(),
        value in unkeyed_realisation(),
    ) -> Realisation {
        Realisation { id: DrvOutput { drv, output }, value }
    }
}

prop_compose! {
    fn legacy_drv_output()(content in any::<[u8; 4]>(), output in output_name()) -> legacy::LegacyDrvOutput {
        legacy::LegacyDrvOutput { hash: Hash::digest(Algorithm::Sha256, &content), output }
    }
}

prop_compose! {
    pub(crate) fn legacy_realisation()(
        id in legacy_drv_output(),
        out_path in store_path(),
        signatures in signatures(),
        dependent in proptest::collection::btree_map(legacy_drv_output(), store_path(), 0..3),
    ) -> legacy::LegacyRealisation {
        legacy::LegacyRealisation { signatures, dependent, ..legacy::LegacyRealisation::new(id, out_path) }
    }
}

prop_compose! {
    pub(crate) fn build_result()(
        status in proptest::sample::select(&BuildStatus::ALL[..]),
        error in ".{0,40}",
        non_deterministic: bool,
        times_built: u32,
        (start, stop) in any::<(i64, i64)>(),
        cpu in any::<(Option<u64>, Option<u64>)>(),
        outputs in proptest::collection::btree_map(output_name(), unkeyed_realisation(), 0..3),
    ) -> BuildResult {
        let good = status.is_success();
        BuildResult {
            times_built,
            start,
            stop,
            cpu_user: cpu.0.map(Duration::from_micros),
            cpu_system: cpu.1.map(Duration::from_micros),
            error: if good { String::new() } else { error },
            non_deterministic: !good && non_deterministic,
            outputs: if good { outputs } else { BTreeMap::new() },
            ..BuildResult::new(status)
        }
    }
}
