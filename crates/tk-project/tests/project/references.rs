//! What flake.nix may say of an input.

use super::flakes::FlakeBench;
use serde_json::{Value, json};
use tk_project::inputs::{DeclaredInputs, parse_reference};

/// References that mean the same to Nix.
const URLS: &[&str] = &[
    "nixpkgs",
    "nixpkgs/nixos-24.05",
    "nixpkgs/0123456789012345678901234567890123456789",
    "nixpkgs/nixos-24.05/0123456789012345678901234567890123456789",
    "flake:nixpkgs/master",
    "github:NixOS/nixpkgs",
    "github:NixOS/nixpkgs/nixos-24.05",
    "github:NixOS/nixpkgs/release/24.05",
    "github:NixOS/nixpkgs/0123456789012345678901234567890123456789",
    "github:NixOS/nixpkgs?ref=x&dir=lib&host=git.example.org",
    "github:NixOS/nixpkgs?dir=a%20b",
    "gitlab:a/b/c?host=h.example",
    "gitlab:group%2Fsub/project",
    "sourcehut:~user/repo/main",
    "path:/a/b",
    "path:/a//b/./c",
    "path:/a/b/",
    "path:/a%20b?dir=c",
    "path:/a?lastModified=3&narHash=sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    "/a/b",
    "/a/b c?dir=d",
    "git+https://h.example/r",
    "git+https://user@h.example:8080/r?ref=main&x=2&a=1",
    "git+ssh://git@h.example/r?rev=0123456789012345678901234567890123456789",
    "git://h.example/r?submodules=1&shallow=0&lfs=1&exportIgnore=1&allRefs=1",
    "git+file:///a/b?dir=c&ref=refs/heads/x",
    "git+file:/a/b",
    "https://h.example/a.tar.gz",
    "https://h.example/a?x=%2F&rev=1234567890123456789012345678901234567890&revCount=3",
    "https://h.example/a;b=c,d/(e)?q=a+b:@/?%26",
    "https://h.example",
    "https://h.example/%C3%A9/%41",
    "tarball+https://h.example/a",
    "tarball+file:///a/b.tar?narHash=sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    "file+https://h.example/a.json",
    "file+file:///a",
    "file:///a/b.zip",
];

#[test]
fn references_are_read_as_nix_reads_them() {
    let Some(bench) = FlakeBench::new("2.34") else {
        return;
    };
    let list = serde_json::to_string(URLS)
        .unwrap()
        .replace(',', " ")
        .replace("d/(e)", ",d/(e)")
        .replace("c ,d", "c,d");
    let code = format!("map builtins.parseFlakeRef {list}");
    let told = bench.nix(&["eval", "--json", "--expr", &code]).unwrap();
    let told: Vec<Value> = serde_json::from_str(&told).unwrap();
    assert_eq!(told.len(), URLS.len());
    for (url, expected) in URLS.iter().zip(told) {
        let found = parse_reference(url, true).map(|attrs| attrs.to_json());
        assert_eq!(found, Ok(expected), "{url}");
    }
}

#[test]
fn what_is_no_reference() {
    for url in [
        "",
        "github:a",
        "x:y",
        "foo/bar/baz/qux",
        "git+file://host/a",
        "path:/a?x=1",
        "https://h/a b",
        "github:a/b/c?ref=d",
        "github:a/b?rev=x&ref=y",
        "git+https://h/r?ref=-x",
        "path:/a#x",
        "file+git:///a",
    ] {
        assert!(parse_reference(url, true).is_err(), "{url}");
    }
}

fn inputs(text: &str) -> Result<Value, String> {
    let declared = DeclaredInputs::parse("flake.nix", text, "").map_err(|e| e.to_string())?;
    let all = declared.inputs.iter().map(|(name, input)| {
        let reference = input.reference.as_ref().map(|attrs| attrs.to_url());
        let follows = input.follows.as_ref().map(|path| path.0.clone());
        let inner: Vec<_> = input.overrides.keys().collect();
        (
            name.clone(),
            json!([reference, follows, input.is_flake, inner]),
        )
    });
    Ok(Value::Object(all.collect()))
}

#[test]
fn every_spelling() {
    let expected = json!({
        "a": ["path:/a", null, true, ["n"]],
        "b": [null, ["a", "n"], true, []],
        "c": ["git+file:///c?ref=x", null, false, []],
    });
    for text in [
        r#"{
            inputs.a.url = "path:/a";
            inputs.a.inputs.n.follows = "b";
            inputs.b.follows = "a/n";
            inputs.c = { type = "git"; url = "file:///c"; ref = "x"; flake = false; };
            outputs = { self, a, ... }: { };
        }"#,
        r#"{
            inputs = {
                a = { url = "path:/a"; inputs = { n = { follows = "b"; }; }; };
                b = { follows = "a/n"; };
                "c".url = "git+file:///c?ref=x";
                c.flake = false;
            };
            outputs = inputs: { };
        }"#,
        "{
            inputs = { a.url = ''path:/a''; b.follows = (\"a/n\"); };
            inputs.a.inputs = { n.follows = \"b\"; };
            description = \"x\"; nixConfig = { extra = [ 1 ]; };
            outputs = inputs@{ self, b }: { };
            inputs.c = { url = git+file:///c?ref=x; flake = false; };
        }",
    ] {
        assert_eq!(inputs(text).unwrap(), expected, "{text}");
    }
    let text = "{ outputs = { self, nixpkgs, other }: { }; inputs.other.url = ./sub/x; }";
    let expected = json!({
        "nixpkgs": ["flake:nixpkgs", null, true, []],
        "other": ["path:sub/x", null, true, []],
    });
    assert_eq!(inputs(text).unwrap(), expected);
}

#[test]
fn what_is_not_literal_is_told_with_its_line() {
    for (text, expected) in [
        (
            "{\n  inputs.a.url = \"path:${x}\";\n  outputs = _: { };\n}",
            "flake.nix:2: url must be a text, literally, and is `\"path:${x}\"`",
        ),
        (
            "{\n  inputs = import ./x;\n  outputs = _: { };\n}",
            "flake.nix:2: inputs must be a set of attributes, literally, and is a call",
        ),
        (
            "{\n  inputs.a.flake = !true;\n  outputs = _: { };\n}",
            "flake.nix:2: flake must be true or false, literally, and is `!true`",
        ),
        (
            "{\n inputs.a = {\n inherit url;\n };\n  outputs = _: { };\n}",
            "flake.nix:3: url must be a text, literally, and is `inherit url;`",
        ),
        (
            "{\n\n inputs.${x}.url = \"a\"; outputs = _: { };\n}",
            "flake.nix:3: a name is put together",
        ),
        (
            "{\n inputs.a.url = \"x:y\"; outputs = _: { };\n}",
            "flake.nix:2: 'x:y' is of a kind that is not known",
        ),
        (
            "{\n inputs.a.uri = \"x\"; outputs = _: { };\n}",
            "flake.nix:2: an input without a type has no attribute 'uri'",
        ),
        (
            "{\n inputs.a = { url = \"path:/a\"; follows = \"b\"; }; outputs = _: { };\n}",
            "flake.nix:2: an input is something and follows",
        ),
        (
            "{\n inputs.a.url = \"path:/a\";\n inputs.a.url = \"path:/b\"; outputs = _: { };\n}",
            "flake.nix:3: the attribute 'url' stands there twice",
        ),
        (
            "{ inputs = { }; }",
            "flake.nix:1: it is no flake: it has no outputs",
        ),
        (
            "{ outputs = { }; }",
            "flake.nix:1: its outputs are not a function",
        ),
        (
            "{ outputs = _: { };\n output = 1; }",
            "flake.nix:2: a flake has no attribute 'output'",
        ),
        (
            "let x = 1; in { outputs = _: { }; }",
            "flake.nix:1: a flake must be a set of attributes, literally, and is a let",
        ),
        ("{\n  outputs = _: {\n", "flake.nix:2: "),
        ("{\n  outputs = = ;\n}", "flake.nix:2: "),
        ("", "flake.nix:1: "),
    ] {
        let error = inputs(text).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
    let deep = format!(
        "{{ outputs = _: {{ }}; inputs = {}{}; }}",
        "{ a = ".repeat(5000),
        "; }".repeat(5000)
    );
    inputs(&deep).unwrap_err();
}
