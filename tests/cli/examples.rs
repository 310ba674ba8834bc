//! The examples of the help texts, run as they are printed.

use super::Machine;
use crate::support::trees::Scratch;
use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

/// A home with all that the examples name.
struct Prepared {
    machine: Machine,
    hello: String,
    drv: String,
}

fn prepared() -> Prepared {
    let machine = Machine::new();
    for file in [
        "some-folder/file",
        "source/file",
        "data/file",
        "download.tar.gz",
        "folder/share/doc/README",
        "hello/bin/hello",
        "hello/share/doc/README",
    ] {
        machine.write(file, format!("of {file}"));
    }
    machine.write("base.drv", DRV);
    machine.write("some-project/go.mod", "module example.org/hello\n");
    for folder in ["", "project/"] {
        machine.write(&format!("{folder}flake.nix"), FLAKE);
    }
    let outputs = r#"{"packages": {"x86_64-linux": ["default"]}}"#;
    machine.write("outputs.json", outputs);
    let hello = machine.ok("add hello");
    let drv = machine.ok("add --mode text base.drv");
    machine.ok("key generate my-1 --secret my.key --public my.pub");
    let cache = machine.cache("srv/cache");
    machine.ok(&format!(
        "push {hello} {drv} --to {cache} --sign-key my.key"
    ));
    machine.write("paths", format!("{hello}\n"));
    symlink(&hello, machine.home().join("result")).unwrap();
    fs::create_dir(machine.home().join("bin")).unwrap();
    let program = env!("CARGO_BIN_EXE_tk-store");
    symlink(program, machine.home().join("bin/tk-store")).unwrap();
    for folder in [
        ".local/share/man/man1",
        ".local/share/zsh/site-functions",
        ".config/fish/completions",
        ".local/share/bash-completion/completions",
    ] {
        fs::create_dir_all(machine.home().join(folder)).unwrap();
    }
    let script = "tk-store nar pack folder > folder.nar";
    assert_eq!(run(&machine, machine.home(), script).status, 0);
    Prepared {
        machine,
        hello,
        drv,
    }
}

/// Runs a line of a shell in `home`.
fn run(machine: &Machine, home: &Path, line: &str) -> super::Done {
    let mut bash = Command::new("bash");
    let template = machine.command(["x"]);
    for (name, value) in template.get_envs() {
        match value {
            Some(value) => bash.env(name, value),
            None => bash.env_remove(name),
        };
    }
    let path = format!(
        "{}:{}",
        home.join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    bash.args(["--norc", "-o", "pipefail", "-c", line]);
    bash.current_dir(home).env("HOME", home).env("PATH", path);
    bash.env("NIX_REMOTE", home.join(".local/share/nix/root"));
    bash.env(
        "CI_SECRET_KEY",
        fs::read_to_string(home.join("my.key")).unwrap_or_default(),
    );
    machine.done(bash.stdin(std::process::Stdio::null()).output())
}

/// What needs a network, nix, or a machine that is not there.
const ELSEWHERE: &[&str] = &[
    "https://",
    "s3://",
    "ssh",
    "nix ",
    "nix-",
    ".#",
    "nixpkgs",
    "-f ",
    "jq",
    " daemon",
    "serve-ssh",
    " builders ",
    " shell ",
    " run ",
    " env ",
    " build ",
    " eval ",
    " repro ",
    "^",
    "cache use",
    " ci run",
    "direnv",
    " doctor",
];

#[test]
fn examples_run_as_they_are_printed() {
    let Prepared {
        machine,
        hello,
        drv,
    } = prepared();
    let mut ran = 0;
    for command in super::words::commands(&machine) {
        let mut words = command.clone();
        words.push("--help".into());
        // However narrow the terminal is.
        let help = machine.done(machine.command(&words).env("COLUMNS", "40").output());
        let help = help.out.replace("\\\n", " ");
        let after = help
            .lines()
            .skip_while(|line| !line.starts_with("Example"))
            .skip(1);
        for line in after.take_while(|line| line.starts_with("  ") || line.is_empty()) {
            if line.is_empty() || ELSEWHERE.iter().any(|word| line.contains(word)) {
                continue;
            }
            // What one makes would be in the way of the next.
            let scratch = Scratch::new();
            let home = scratch.path();
            let from = machine.home().join(".");
            let copied = Command::new("cp").arg("-a").arg(from).arg(home).status();
            assert!(copied.unwrap().success());
            if line.contains("key generate") || line.contains("nar unpack") {
                let _ = fs::remove_file(home.join("my.key"));
                let _ = fs::remove_file(home.join("my.pub"));
                let _ = fs::remove_dir_all(home.join("folder"));
            }
            if line.contains("cache init") {
                fs::remove_dir_all(home.join("srv/cache")).unwrap();
            }
            let line = line
                .replace("/nix/store/…-hello.drv", &drv)
                .replace("/nix/store/…-hello", &hello);
            let line = line.replace("./hello.drv", "./base.drv");
            let line = line.replace("/srv/", &format!("{}/srv/", home.display()));
            assert!(!line.contains('…'), "{line}");
            let done = run(&machine, home, &line);
            // The log of what nobody built is not there.
            let expected = if line.contains(" log ") { 1 } else { 0 };
            assert_eq!(done.status, expected, "{line}: {done:?}");
            ran += 1;
        }
    }
    assert!(ran >= 35, "{ran} examples");
}

/// The blocks of the README for a shell, from the first minute on, that need neither nix nor a port of their own.
fn recipes() -> String {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, readme) = readme.split_once("## The first 60 seconds").unwrap();
    let blocks = readme.split("```sh\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    let blocks =
        blocks.filter(|block| !block.contains("nix copy") && !block.contains("http.server"));
    // A namespace of its own is not to be had on every machine.
    let lines = blocks.flat_map(str::lines);
    let lines = lines.filter(|line| !line.starts_with("tk-store run"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn recipes_of_the_readme_run_as_they_are_printed() {
    let machine = Machine::new();
    let home = machine.home();
    fs::create_dir(home.join("bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_tk-store"), home.join("bin/tk-store")).unwrap();
    let recipes = recipes();
    assert!(recipes.matches("tk-store ").count() >= 7, "{recipes}");
    let done = run(&machine, home, &format!("set -euo pipefail\n{recipes}"));
    assert_eq!(done.status, 0, "{done:?}");
    let site = "/nix/store/94cmspdv07lfkry817y755bxms4h3i7h-site";
    assert!(done.out.contains(&format!("{site}\tpresent\t")), "{done:?}");
    assert!(done.out.contains("\nhello\n"), "{done:?}");
    let missing = "/nix/store/00000000000000000000000000000000-nothing\nnot all are there\n";
    assert!(done.out.contains(missing), "{done:?}");
}

/// A derivation, as a file.
pub const DRV: &str = r#"Derive([("out","/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo hello > $out"],[("builder","/bin/sh"),("name","base"),("out","/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base"),("system","x86_64-linux")])"#;

/// A flake without inputs.
const FLAKE: &str = "{ outputs = _: { }; }\n";
