//! What is written is what Nix reads.

use super::support::{Rig, VERSIONS, cases, rig};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};
use tk_project::{
    emit::{EmitError, emit},
    nix_expr::{NixBinding, NixExpr},
};

/// Strings made of what is special somewhere, of words, and of anything.
pub fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec![
            "'", "''", "'''", "$", "${", "$${", "''${", "}", "\"", "\\", "\\n", "\n", "\n\n", "\r", "\r\n",
            "\t", " ", "  ", "\n  ", "\n\t", "#", "/*", "*/", ";", "=", "''\\", "${x}", "\u{1b}[1m", "\u{7f}",
            "é", "\u{2028}", "\u{feff}", "😀", ".", "/", "let", "or", "with", "a", "b c", "-", "_", "0",
        ]).prop_map(str::to_owned),
        2 => "[a-z -~]{0,12}",
        1 => any::<String>().prop_map(|text| text.replace('\0', "")),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Texts as hooks are, with what makes the indentation hard.
pub fn lines() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        hostile().prop_map(|text| text.replace(['\n', '\r'], "")),
        "[ ]{0,4}[a-z]{0,6}",
        "if \\[ -n '[a-z]' \\]; then|  echo \"\\$\\{[A-Z]+:-x\\}\"|fi|''|  ''",
    ];
    (vec(line, 1..8), any::<bool>()).prop_map(|(lines, ends)| {
        let mut text = lines.join("\n");
        if ends {
            text.push('\n');
        }
        text
    })
}

pub fn generated<T>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut one = || strategy.new_tree(&mut runner).expect("no filter").current();
    (0..count).map(|_| one()).collect()
}

/// Every field that takes a string, with a string in it, and what Nix is to make of all of them.
fn all_fields(texts: &[String]) -> (NixExpr, Value) {
    // Of the same name twice the first stands.
    let mut first = BTreeMap::new();
    let mut bindings = Vec::new();
    let mut values = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let comment = NixExpr::Commented(vec![text.clone()], Box::new(NixExpr::string(text)));
        let deep = NixExpr::Attrs(vec![NixBinding::named(text, NixExpr::string(text))]);
        let path = vec![text.clone(), "x".to_owned()];
        let chosen = NixExpr::Select(
            Box::new(NixExpr::Attrs(vec![NixBinding::Set {
                path: path.clone(),
                value: NixExpr::Integer(at as i64 - 3),
                comment: vec![text.clone()],
                because: Some(at),
            }])),
            path,
        );
        let called = NixExpr::call(
            NixExpr::Function("x", Box::new(NixExpr::Code("x"))),
            NixExpr::string(text),
        );
        let items = vec![
            NixExpr::string(text),
            comment.because(at),
            deep,
            chosen,
            called,
        ];
        values.push(NixExpr::List(items));
        if !first.contains_key(text) {
            first.insert(text.clone(), at);
            bindings.push(NixBinding::named(text, NixExpr::Integer(at as i64)).commented(text));
        }
    }
    let expected: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(at, text)| json!([text, text, { text: text }, at as i64 - 3, text]))
        .collect();
    let whole = NixExpr::Attrs(vec![
        NixBinding::set("names", NixExpr::Attrs(bindings)),
        NixBinding::set("values", NixExpr::List(values)),
    ]);
    (whole, json!({ "names": first, "values": expected }))
}

fn evaluated(rig: &Rig, text: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.nix"), text).unwrap();
    let mut command = rig.command("nix-instantiate");
    command.args([
        "--eval", "--strict", "--json", "--store", "dummy://", "x.nix",
    ]);
    let out = rig
        .try_run(command.current_dir(folder.path()))
        .unwrap_or_else(|e| panic!("{e}"));
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn strings_through_every_field_come_back_from_nix() {
    let count = cases(1000);
    let mut texts = generated(hostile(), count / 2);
    texts.extend(generated(lines(), count - count / 2));
    let (expr, expected) = all_fields(&texts);
    let emitted = emit(&expr).unwrap();
    let indented = emitted.text.matches("''\n").count();
    assert!(
        indented > count / 10,
        "{indented} of {count} in the indented form"
    );
    assert_eq!(nixfmt_rs::format(&emitted.text).unwrap(), emitted.text);
    for version in VERSIONS {
        let Some(rig) = rig(version) else { continue };
        let found = evaluated(&rig, &emitted.text);
        for (at, text) in texts.iter().enumerate() {
            assert_eq!(
                found["values"][at], expected["values"][at],
                "Nix {version}: {text:?}"
            );
        }
        assert_eq!(found["names"], expected["names"], "Nix {version}");
    }
}

#[test]
fn what_nix_cannot_hold_is_refused() {
    let nul = emit(&NixExpr::string("a\0b"));
    assert!(matches!(nul, Err(EmitError::Nul(_))), "{nul:?}");
    let one = || NixExpr::Integer(1);
    for set in [
        vec![NixBinding::set("a", one()), NixBinding::set("a", one())],
        vec![NixBinding::set("a.b", one()), NixBinding::set("a", one())],
        vec![NixBinding::set("a", one()), NixBinding::set("a.b", one())],
    ] {
        let twice = emit(&NixExpr::Attrs(set));
        assert!(matches!(twice, Err(EmitError::Twice(_))), "{twice:?}");
    }
    let fine = vec![NixBinding::set("a.b", one()), NixBinding::set("a.c", one())];
    assert!(emit(&NixExpr::Attrs(fine)).is_ok());
    let arguments = NixExpr::SetFunction(vec!["a b".into()], Box::new(one()));
    assert!(emit(&arguments).is_err());
}

#[test]
fn reasons_come_back_with_their_lines() {
    let list = NixExpr::List(vec![
        NixExpr::select("pkgs", "openssl").because(1),
        NixExpr::select("pkgs", "a b.zlib").because(2),
    ]);
    let set = NixExpr::Attrs(vec![
        NixBinding::set("hook", NixExpr::string("one\ntwo\n")).because(3),
        NixBinding::set("packages", list)
            .because(0)
            .commented("of it"),
    ]);
    let emitted = emit(&set).unwrap();
    let lines: Vec<_> = emitted.text.lines().zip(&emitted.reasons).collect();
    let shown: Vec<_> = lines
        .iter()
        .map(|(line, why)| format!("{line} {why:?}"))
        .collect();
    let wanted = [
        "{ []",
        "  hook = '' [3]",
        "    one [3]",
        "    two [3]",
        "  ''; [3]",
        "  # of it []",
        "  packages = [ [0]",
        "    pkgs.openssl [1]",
        "    pkgs.\"a b\".zlib [2]",
        "  ]; [0]",
        "} []",
    ];
    assert_eq!(shown, wanted);
}
