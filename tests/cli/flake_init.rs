//! `flake init` and `env convert`: what they print, what they write, and what they leave alone.

use super::Machine;
use serde_json::Value;
use std::fs;

const MANIFEST: &str = "[package]\nname = \"demo\"\nversion = \"1.0.0\"\n";
const LOCK: &str = "version = 4\n\n[[package]]\nname = \"demo\"\nversion = \"1.0.0\"\n";
const OPENSSL: &str = "\n[[package]]\nname = \"openssl-sys\"\nversion = \"0.9.1\"\n";

fn with_project() -> Machine {
    let machine = Machine::new();
    machine.write("p/Cargo.toml", MANIFEST);
    machine.write("p/Cargo.lock", LOCK);
    machine.write("p/src/main.rs", "fn main() {}\n");
    machine
}

#[test]
fn a_flake_is_shown_written_and_kept() {
    let machine = with_project();
    let flake = machine.home().join("p/flake.nix");
    let diff = machine.ok("flake init p");
    assert!(diff.contains("+          pname = \"demo\";"), "{diff}");
    assert!(!flake.exists());
    machine.ok("flake init p --write");
    let first = fs::read_to_string(&flake).unwrap();
    let again = machine.run("flake init p --write");
    assert_eq!((again.status, again.out.as_str()), (0, ""));
    assert!(again.err.contains("as it should be"), "{}", again.err);
    assert_eq!(fs::read_to_string(&flake).unwrap(), first);

    let edited = first.replace("pkgs.cargo\n", "pkgs.cargo\n            pkgs.hello\n");
    fs::write(&flake, edited).unwrap();
    machine.write("p/Cargo.lock", format!("{LOCK}{OPENSSL}"));
    let told: Value = serde_json::from_str(&machine.ok("flake init p --write --json")).unwrap();
    assert_eq!(
        (&told["change"], &told["written"]),
        (&"merged".into(), &true.into())
    );
    let merged = fs::read_to_string(&flake).unwrap();
    assert!(
        merged.contains("pkgs.hello\n") && merged.contains("pkgs.openssl\n"),
        "{merged}"
    );
    let explained = machine.ok("flake init p --explain");
    let of = |word: &str| explained.lines().find(|line| line.contains(word)).unwrap();
    assert!(
        of("pkgs.openssl").ends_with("<- Cargo.lock:7 openssl-sys"),
        "{explained}"
    );
    assert!(
        of("pkgs.hello").ends_with("<- written by hand"),
        "{explained}"
    );
}

#[test]
fn what_others_wrote_stays() {
    let machine = with_project();
    let foreign = "{ outputs = _: { }; }\n";
    let flake = machine.write("p/flake.nix", foreign);
    for line in ["flake init p", "flake init p --write"] {
        let error = machine.fails(2, line);
        assert!(error.contains("p/flake.nix: it was not made by"), "{error}");
        assert_eq!(fs::read_to_string(&flake).unwrap(), foreign);
    }
    machine.ok("flake init p --write --force");
    assert_ne!(fs::read_to_string(&flake).unwrap(), foreign);
    // A link is nobody's file to replace.
    fs::remove_file(&flake).unwrap();
    std::os::unix::fs::symlink("nowhere", &flake).unwrap();
    machine.fails(2, "flake init p --write");
    assert!(flake.is_symlink());
    let names = fs::read_dir(machine.home().join("p")).unwrap();
    let left = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.starts_with(".tk-store")));
}

#[test]
fn bad_projects_fail_with_file_and_line() {
    let machine = Machine::new();
    machine.write("p/Cargo.toml", "[package]\nname = \n");
    let error = machine.fails(2, "flake init p --write");
    assert!(error.contains("p/Cargo.toml:2: "), "{error}");
    machine.write("empty/x", "");
    let error = machine.fails(2, "flake init empty");
    assert!(error.contains("no project that is known here"), "{error}");
    let error = machine.fails(2, "flake init nowhere");
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn dev_shells_are_said_in_other_words() {
    let machine = Machine::new();
    machine.write(
        "p/devenv.nix",
        "{ pkgs, ... }:\n{\n  packages = [ pkgs.git ];\n  env.A = \"b\";\n  languages.go.enable = true;\n}\n",
    );
    let done = machine.run("env convert p --from devenv --to flake");
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.out.contains("pkgs.git\n"), "{}", done.out);
    assert!(
        done.err.contains("devenv.nix:5: languages.go.enable"),
        "{}",
        done.err
    );
    machine.ok("env convert p --from devenv --to shell-nix --write");
    let error = machine.fails(2, "env convert p --from devenv --to shell-nix --write");
    assert!(error.contains("p/shell.nix is there"), "{error}");
    let told = machine.ok("env convert p --from shell-nix --to envrc --json");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["files"][0]["text"], "use nix -p git\nexport A='b'\n");
}

#[test]
fn a_lock_of_devenv_is_verified_as_one_of_a_flake() {
    let machine = Machine::new();
    let input = machine.write("input/file", "text\n");
    let input = input.parent().unwrap().display().to_string();
    let hash = machine.ok("hash path input");
    let lock = |hash: &str| {
        format!(
            r#"{{ "nodes": {{
              "n": {{ "locked": {{ "lastModified": 1, "narHash": "{hash}", "path": "{input}", "type": "path" }},
                     "original": {{ "path": "{input}", "type": "path" }} }},
              "root": {{ "inputs": {{ "n": "n" }} }} }}, "root": "root", "version": 7 }}"#
        )
    };
    machine.write("p/devenv.lock", lock(&hash));
    let told = machine.ok("flake verify p");
    assert!(told.starts_with("n\tverified"), "{told}");
    machine.write(
        "p/devenv.lock",
        lock("sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    );
    let told = machine.run("flake verify p");
    assert!(
        told.status == 1 && told.out.starts_with("n\ttampered"),
        "{told:?}"
    );
}
