//! `flake lock`, `update`, `inputs` and `verify` of the program: what the library makes of locks is tested beside it.

use super::Machine;
use crate::support::shelf::Shelf;
use serde_json::Value;
use std::fs;

/// A flake in `p` with one input, a folder; the place of the folder.
fn with_flake(machine: &Machine) -> String {
    let input = machine.write("input/file", "text\n");
    let input = input.parent().unwrap().display().to_string();
    let flake = format!(
        "{{\n  inputs.n.url = \"path:{input}\";\n  inputs.n.flake = false;\n  outputs = _: {{ }};\n}}\n"
    );
    machine.write("p/flake.nix", flake);
    input
}

#[test]
fn a_lock_is_written_shown_verified_and_updated() {
    let machine = Machine::new();
    let input = with_flake(&machine);
    let file = machine.home().join("p/flake.lock");
    let shown = machine.ok("flake lock p --json");
    assert!(!file.exists());
    let said = machine.run("flake lock p");
    assert_eq!((said.status, said.out.as_str()), (0, ""));
    assert!(said.err.contains("added n: path:"), "{}", said.err);
    let first = fs::read_to_string(&file).unwrap();
    assert_eq!(first.trim_end(), shown.trim_end());
    let hash = machine.ok("hash path input");
    assert!(first.contains(hash.trim()), "{first}");

    let verified = machine.ok("flake verify p");
    assert!(verified.starts_with("n\tverified\t"), "{verified}");
    let graph: Value = serde_json::from_str(&machine.ok("flake inputs p --json")).unwrap();
    assert_eq!(graph["inputs"][0]["path"][0], "n", "{graph}");

    fs::write(format!("{input}/file"), "other\n").unwrap();
    let tampered = machine.run("flake verify p --json");
    let told: Value = serde_json::from_str(&tampered.out).unwrap();
    assert_eq!(
        (tampered.status, &told["inputs"][0]["verdict"]),
        (1, &"tampered".into())
    );
    machine.ok("flake lock p");
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    machine.ok("flake update --flake p n");
    assert_ne!(fs::read_to_string(&file).unwrap(), first);
    machine.ok("flake verify p");
}

#[test]
fn what_fails_leaves_the_lock_as_it_was() {
    let machine = Machine::new();
    with_flake(&machine);
    let file = machine.write("p/flake.lock", "{ \"nodes\": {\n");
    for line in ["flake lock p", "flake verify p", "flake inputs p"] {
        let error = machine.fails(2, line);
        assert!(error.contains("p/flake.lock:"), "{line}: {error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "{ \"nodes\": {\n");
    machine.write(
        "p/flake.lock",
        r#"{ "nodes": { "root": {} }, "root": "root", "version": 8 }"#,
    );
    let error = machine.fails(2, "flake lock p");
    assert!(error.contains("version 8"), "{error}");

    fs::remove_file(&file).unwrap();
    machine.write(
        "p/flake.nix",
        "{\n  inputs.n.url = \"what:x\";\n  outputs = _: { };\n}\n",
    );
    let error = machine.fails(2, "flake lock p");
    assert!(error.contains("flake.nix:2: "), "{error}");
    machine.write("p/flake.nix", "{\n  inputs = 1;\n  outputs = _: { };\n}\n");
    let error = machine.fails(2, "flake lock p");
    assert!(
        error.contains("flake.nix:2: inputs must be a set"),
        "{error}"
    );
    assert!(!file.exists());
}

#[test]
fn what_is_not_here_is_looked_for_in_caches() {
    let machine = Machine::new();
    machine.write("input/flake.nix", "{ outputs = _: { }; }\n");
    let hash = machine.ok("hash path input");
    let node = format!(
        r#"{{ "locked": {{ "narHash": "{}", "owner": "o", "repo": "r", "rev": "{}", "type": "github" }},
             "original": {{ "owner": "o", "repo": "r", "type": "github" }} }}"#,
        hash.trim(),
        "1".repeat(40)
    );
    // A name that would forge lines of its own.
    let name = "a\\tverified\\tx\\nb";
    let lock = format!(
        r#"{{ "nodes": {{ "n": {node}, "root": {{ "inputs": {{ "{name}": "n" }} }} }}, "root": "root", "version": 7 }}"#
    );
    machine.write("p/flake.nix", "{ outputs = _: { }; }\n");
    machine.write("p/flake.lock", lock);
    let told = machine.ok("flake verify p");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("\tunverifiable\t"), "{told}");

    let cache = machine.cache("cache");
    machine.ok(&format!("push ./input --name source --to {cache}"));
    let empty = machine.cache("empty");
    fs::create_dir(machine.home().join("empty")).unwrap();
    let told = machine.ok(&format!("flake verify p --in {empty} --in {cache}"));
    assert!(told.contains("\tverified\t"), "{told}");
}

#[test]
fn a_file_of_a_server_is_locked() {
    let machine = Machine::new();
    let server =
        Shelf::new(|asked| (asked.path == "/data.txt").then_some(("200 OK", "from afar\n")));
    let url = server.url("");
    machine.write(
        "p/flake.nix",
        format!(
            "{{\n  inputs.n = {{ url = \"file+{url}/data.txt\"; flake = false; }};\n  outputs = _: {{ }};\n}}\n"
        ),
    );
    machine.ok("flake lock p");
    let lock: Value =
        serde_json::from_slice(&fs::read(machine.home().join("p/flake.lock")).unwrap()).unwrap();
    machine.write("data.txt", "from afar\n");
    let hash = machine.ok("hash path data.txt");
    assert_eq!(lock["nodes"]["n"]["locked"]["narHash"], hash.trim());

    machine.write(
        "p/flake.nix",
        format!(
            "{{\n  inputs.n = {{ url = \"file+{url}/gone\"; flake = false; }};\n  outputs = _: {{ }};\n}}\n"
        ),
    );
    let error = machine.fails(2, "flake lock p");
    assert!(error.contains("404"), "{error}");
}
