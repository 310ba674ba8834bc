//! Store references: `nix/libstore/store-reference/*.txt`.

use super::say;
use crate::support::{Tally, Vectors, equal};
use std::{collections::BTreeMap, path::Path};
use tk_store::{StoreReference, StoreVariant};

#[test]
fn store_references() {
    let vectors = Vectors::find();
    let rows = [
        "parsed as Nix does",
        "printed as Nix does",
        "print after parse is a fixpoint",
        "refused",
    ];
    let mut tally = Tally::new("golden data: store references", &rows);
    for file in vectors.files("nix/libstore/store-reference", ".txt") {
        let text = file.text();
        let name = file.base().trim_end_matches(".txt");
        let parse = |text: &str| StoreReference::parse(text, Path::new("/here")).map_err(say);
        if name.ends_with("_windows") {
            tally.equal("refused", name, parse(text).is_err(), true);
            continue;
        }
        tally.case("print after parse is a fixpoint", name, || {
            let first = parse(text)?;
            let second = parse(&first.to_string())?;
            equal(second.to_string(), first.to_string())?;
            equal(second, first)
        });
        if let Some((.., expected, _)) = EXPECTED.iter().find(|(known, ..)| *known == name) {
            tally.case("parsed as Nix does", name, || {
                equal(parse(text)?, value(expected))
            });
        }
        if let Some((.., true)) = EXPECTED.iter().find(|(known, ..)| *known == name) {
            tally.case("printed as Nix does", name, || {
                equal(parse(text)?.to_string(), text.into())
            });
        }
    }
    tally.finish();
}

type Expected = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

fn value((scheme, authority, params): &Expected) -> StoreReference {
    let variant = match *scheme {
        "auto" => StoreVariant::Auto,
        "the daemon" => StoreVariant::Daemon,
        "the local store" => StoreVariant::Local,
        scheme => StoreVariant::Specified {
            scheme: scheme.into(),
            authority: (*authority).into(),
        },
    };
    let params: BTreeMap<_, _> = params
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    StoreReference { variant, params }
}

/// File stem; scheme, authority and settings; whether printing gives the file back.
const EXPECTED: &[(&str, Expected, bool)] = &[
    ("auto", ("auto", "", &[]), true),
    ("daemon_shorthand", ("the daemon", "", &[]), true),
    ("local_shorthand_3", ("the local store", "", &[]), true),
    ("local_1", ("local", "", &[("root", "/foo/bar/baz")]), true),
    (
        "local_2",
        ("local", "/foo/bar/baz", &[("trusted", "true")]),
        true,
    ),
    ("local_3", ("local", "", &[("root", "/foo bar/baz")]), true),
    (
        "local_shorthand_1",
        ("local", "", &[("root", "/foo/bar/baz")]),
        false,
    ),
    (
        "local_shorthand_path_unix",
        ("local", "/foo/bar/baz", &[("trusted", "true")]),
        false,
    ),
    (
        "unix",
        ("unix", "", &[("max-connections", "7"), ("trusted", "true")]),
        true,
    ),
    ("ssh", ("ssh", "localhost", &[]), true),
    ("ssh_unbracketed_ipv6_1", ("ssh", "[::1]", &[]), false),
    (
        "ssh_unbracketed_ipv6_3",
        (
            "ssh",
            "userinfo@[fea5:23e1:3916:fc24:cb52:2837:2ecb:ea8e]",
            AB_CD,
        ),
        false,
    ),
    (
        "ssh_unbracketed_ipv6_4",
        (
            "ssh",
            "userinfo@[fea5:23e1:3916:fc24:cb52:2837:2ecb:ea8e%25eth0]",
            AB_CD,
        ),
        false,
    ),
    (
        "ssh_unbracketed_ipv6_5",
        (
            "ssh",
            "userinfo@[fea5:23e1:3916:fc24:cb52:2837:2ecb:ea8e%25eth0]",
            AB_CD,
        ),
        false,
    ),
    (
        "ssh_unbracketed_ipv6_7",
        (
            "ssh",
            "userinfo@[fea5:23e1:3916:fc24:cb52:2837:2ecb:ea8e%25eth0]",
            AB_CD,
        ),
        false,
    ),
    (
        "ssh_unbracketed_ipv6_9",
        (
            "ssh",
            "[fea5:23e1:3916:fc24:cb52:2837:2ecb:ea8e%25eth0]",
            &[],
        ),
        false,
    ),
];

const AB_CD: &[(&str, &str)] = &[("a", "b"), ("c", "d")];
