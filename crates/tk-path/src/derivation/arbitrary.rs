//! Derivations for property tests.

use bstr::BString;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::{Derivation, DerivationOutput, InputOutputs, Inputs};
use crate::{Algorithm, ContentAddress, Hash, Method, MethodAlgorithm, OutputName, StorePath};

/// Derivations of all kinds, also such as break the rules for outputs; every one has a file.
pub fn derivation() -> impl Strategy<Value = Derivation> {
    let inputs = (btree_set(path(), 0..3), btree_map(path(), node(), 0..3))
        .prop_map(|(srcs, drvs)| Inputs { srcs, drvs });
    let env = btree_map(bytes(), bytes(), 0..4);
    let texts = ("[a-z0-9_-]{0,9}", bytes(), vec(bytes(), 0..4), env);
    (
        "[a-z]{1,9}",
        btree_map(name(), output(), 0..4),
        inputs,
        texts,
    )
        .prop_map(
            |(name, outputs, inputs, (platform, builder, args, env))| Derivation {
                name,
                outputs,
                inputs,
                platform: platform.into(),
                builder,
                args,
                env,
            },
        )
}

fn output() -> impl Strategy<Value = DerivationOutput> {
    let method = (
        proptest::sample::select(&Method::ALL[..]),
        proptest::sample::select(&Algorithm::ALL[..]),
    )
        .prop_map(|(method, algorithm)| MethodAlgorithm { method, algorithm });
    let fixed = any::<[u8; 8]>().prop_map(|bytes| ContentAddress {
        method: Method::Nar,
        hash: Hash::digest(Algorithm::Sha256, &bytes),
    });
    prop_oneof![
        path().prop_map(DerivationOutput::InputAddressed),
        fixed.prop_map(DerivationOutput::Fixed),
        method.clone().prop_map(DerivationOutput::Floating),
        Just(DerivationOutput::Deferred),
        method.prop_map(DerivationOutput::Impure),
    ]
}

fn node() -> impl Strategy<Value = InputOutputs> {
    let leaf = btree_set(name(), 1..3).prop_map(|outputs| InputOutputs {
        outputs,
        ..InputOutputs::default()
    });
    leaf.prop_recursive(3, 8, 3, |inner| {
        (btree_set(name(), 0..2), btree_map(name(), inner, 1..3))
            .prop_map(|(outputs, dynamic)| InputOutputs { outputs, dynamic })
    })
}

fn name() -> impl Strategy<Value = OutputName> {
    "out|[a-z][a-z0-9]{0,3}".prop_map(|name| OutputName::parse(&name).expect("a name"))
}

fn path() -> impl Strategy<Value = StorePath> {
    "[0-9a-d]{32}-[a-z]{1,4}(\\.drv)?".prop_map(|base| StorePath::parse(&base).expect("a path"))
}

/// Bytes of which many want an escape.
fn bytes() -> impl Strategy<Value = BString> {
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(&b"\"\\\n\r\t,)]"[..])];
    vec(byte, 0..9).prop_map(BString::from)
}
