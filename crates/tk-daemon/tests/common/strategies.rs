//! Values for properties.

use bstr::BString;
use bytes::Bytes;
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
};
use std::{collections::BTreeSet, time::Duration};
use tk_narinfo::{
    PathInfo, Signature,
    build_result::{BuildResult, BuildStatus, KeyedBuildResult},
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, BasicDerivation, ContentAddress, DerivationOutput, DerivedPath, Hash, HashPart,
    Method, MethodAlgorithm, NarHash, OutputName, OutputsSpec, SingleDerivedPath, StorePath,
};
use tk_store::{
    BuildMode,
    log::{ActivityType, Level, LogEvent, LogField, ResultType},
};

pub fn path() -> impl Strategy<Value = StorePath> {
    (
        any::<[u8; 20]>(),
        "[a-z0-9][a-zA-Z0-9+._?=-]{0,20}(\\.drv)?",
    )
        .prop_map(|(digest, name)| StorePath::from_digest(&digest, &name).expect("a name"))
}

pub fn drv() -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), "[a-z0-9][a-z0-9-]{0,9}").prop_map(|(digest, name)| {
        StorePath::from_digest(&digest, &format!("{name}.drv")).expect("a name")
    })
}

pub fn paths() -> impl Strategy<Value = BTreeSet<StorePath>> {
    btree_set(path(), 0..4)
}

pub fn hash_part() -> impl Strategy<Value = HashPart> {
    path().prop_map(|path| path.to_hash_part())
}

pub fn output() -> impl Strategy<Value = OutputName> {
    "[a-z][a-z0-9_-]{0,7}".prop_map(|name| OutputName::parse(&name).expect("a name"))
}

pub fn signature() -> impl Strategy<Value = Signature> {
    ("[a-z.-]{1,20}", any::<[u8; 32]>()).prop_map(|(key, half)| {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&half);
        Signature::new(&key, bytes)
    })
}

pub fn signatures() -> impl Strategy<Value = BTreeSet<Signature>> {
    btree_set(signature(), 0..3)
}

pub fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop::sample::select(vec![
        Algorithm::Md5,
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha512,
    ])
}

pub fn method() -> impl Strategy<Value = MethodAlgorithm> {
    (prop::sample::select(Method::ALL.to_vec()), algorithm()).prop_map(|(method, algorithm)| {
        MethodAlgorithm {
            method,
            // Texts are named by this one only, and Git knows no others than these two.
            algorithm: match method {
                Method::Text => Algorithm::Sha256,
                Method::Git => Algorithm::Sha1,
                _ => algorithm,
            },
        }
    })
}

pub fn content_address() -> impl Strategy<Value = ContentAddress> {
    (method(), any::<u64>()).prop_map(|(method, seed)| ContentAddress {
        method: method.method,
        hash: Hash::digest(method.algorithm, &seed.to_le_bytes()),
    })
}

pub fn time() -> impl Strategy<Value = u64> {
    0..=i64::MAX as u64
}

prop_compose! {
    pub fn path_info()(
        path in path(),
        deriver in option::of(drv()),
        hash in any::<[u8; 32]>(),
        references in paths(),
        registration_time in time(),
        nar_size in any::<u64>(),
        ultimate in any::<bool>(),
        signatures in signatures(),
        ca in option::of(content_address()),
    ) -> PathInfo {
        let mut info = PathInfo::new(path, NarHash::from_bytes(hash), nar_size);
        info.deriver = deriver;
        info.references = references;
        info.registration_time = registration_time;
        info.ultimate = ultimate;
        info.signatures = signatures;
        info.ca = ca;
        info
    }
}

pub fn outputs_spec() -> impl Strategy<Value = OutputsSpec> {
    prop_oneof![
        Just(OutputsSpec::All),
        btree_set(output(), 1..4).prop_map(OutputsSpec::Names),
    ]
}

pub fn single() -> impl Strategy<Value = SingleDerivedPath> {
    let leaf = path().prop_map(SingleDerivedPath::Opaque);
    (leaf, vec(output(), 0..4))
        .prop_map(|(path, outputs)| outputs.into_iter().fold(path, SingleDerivedPath::output))
}

pub fn derived() -> impl Strategy<Value = DerivedPath> {
    prop_oneof![
        path().prop_map(DerivedPath::Opaque),
        (single(), outputs_spec()).prop_map(|(drv, outputs)| DerivedPath::Built { drv, outputs }),
    ]
}

pub fn mode() -> impl Strategy<Value = BuildMode> {
    prop::sample::select(vec![BuildMode::Normal, BuildMode::Repair, BuildMode::Check])
}

pub fn unkeyed_realisation() -> impl Strategy<Value = UnkeyedRealisation> {
    (path(), signatures()).prop_map(|(out_path, signatures)| UnkeyedRealisation {
        out_path,
        signatures,
    })
}

pub fn drv_output() -> impl Strategy<Value = DrvOutput> {
    (drv(), output()).prop_map(|(drv, output)| DrvOutput { drv, output })
}

pub fn realisation() -> impl Strategy<Value = Realisation> {
    (drv_output(), unkeyed_realisation()).prop_map(|(id, value)| Realisation { id, value })
}

pub fn old_drv_output() -> impl Strategy<Value = legacy::LegacyDrvOutput> {
    (any::<u64>(), output()).prop_map(|(seed, output)| legacy::LegacyDrvOutput {
        hash: Hash::digest(Algorithm::Sha256, &seed.to_le_bytes()),
        output,
    })
}

prop_compose! {
    pub fn old_realisation()(
        id in old_drv_output(),
        out_path in path(),
        signatures in signatures(),
        dependent in btree_map(old_drv_output(), path(), 0..3),
        bare in any::<bool>(),
    ) -> legacy::LegacyRealisation {
        let mut realisation = legacy::LegacyRealisation::new(id, out_path);
        if !bare {
            realisation.signatures = signatures;
            realisation.dependent = dependent;
        }
        realisation
    }
}

pub fn status() -> impl Strategy<Value = BuildStatus> {
    // A hash mismatch goes as another status.
    let all = BuildStatus::ALL.into_iter();
    let all = all.filter(|status| *status != BuildStatus::HashMismatch);
    prop::sample::select(all.collect::<Vec<_>>())
}

fn processor_time() -> impl Strategy<Value = Option<Duration>> {
    option::of(time().prop_map(Duration::from_micros))
}

prop_compose! {
    pub fn build_result()(
        status in status(),
        error in ".{0,20}",
        times_built in any::<u32>(),
        non_deterministic in any::<bool>(),
        start in 0..i64::MAX,
        stop in 0..i64::MAX,
        cpu_user in processor_time(),
        cpu_system in processor_time(),
        outputs in btree_map(output(), unkeyed_realisation(), 0..3),
    ) -> BuildResult {
        BuildResult {
            status,
            error,
            times_built,
            non_deterministic,
            start,
            stop,
            cpu_user,
            cpu_system,
            outputs,
            legacy_hash: None,
        }
    }
}

pub fn keyed_build_result() -> impl Strategy<Value = KeyedBuildResult> {
    (derived(), build_result()).prop_map(|(path, result)| KeyedBuildResult { path, result })
}

pub fn bstring() -> impl Strategy<Value = BString> {
    vec(any::<u8>(), 0..20).prop_map(BString::from)
}

pub fn data() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..50).prop_map(Bytes::from)
}

fn derivation_output() -> impl Strategy<Value = DerivationOutput> {
    prop_oneof![
        path().prop_map(DerivationOutput::InputAddressed),
        content_address().prop_map(DerivationOutput::Fixed),
        method().prop_map(DerivationOutput::Floating),
        method().prop_map(DerivationOutput::Impure),
        Just(DerivationOutput::Deferred),
    ]
}

prop_compose! {
    /// A derivation with its path, from which it has its name.
    pub fn derivation()(
        path in drv(),
        outputs in btree_map(output(), derivation_output(), 0..3),
        inputs in paths(),
        platform in bstring(),
        builder in bstring(),
        args in vec(bstring(), 0..3),
        env in btree_map(bstring(), bstring(), 0..3),
    ) -> (StorePath, BasicDerivation) {
        let name = path.name().trim_end_matches(".drv").to_owned();
        let derivation = BasicDerivation { name, outputs, inputs, platform, builder, args, env };
        (path, derivation)
    }
}

pub fn level() -> impl Strategy<Value = Level> {
    (0..8u64).prop_map(Level::from_u64)
}

pub fn fields() -> impl Strategy<Value = Vec<LogField>> {
    let field = prop_oneof![
        any::<u64>().prop_map(LogField::Int),
        ".{0,20}".prop_map(LogField::Text),
    ];
    vec(field, 0..5)
}

pub fn log_event() -> impl Strategy<Value = LogEvent> {
    let start = (
        any::<u64>(),
        level(),
        any::<u64>(),
        ".{0,20}",
        fields(),
        any::<u64>(),
    );
    prop_oneof![
        ".{0,20}".prop_map(|text| LogEvent::message(Level::Notice, text)),
        start.prop_map(|(id, level, kind, text, fields, parent)| LogEvent::Start {
            id,
            level,
            kind: ActivityType(kind),
            text,
            fields,
            parent,
        }),
        any::<u64>().prop_map(|id| LogEvent::Stop { id }),
        (any::<u64>(), any::<u64>(), fields()).prop_map(|(id, kind, fields)| LogEvent::Result {
            id,
            kind: ResultType(kind),
            fields,
        }),
    ]
}
