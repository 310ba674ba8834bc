//! CI files of a small flake, made and run with real Nix.

use crate::support::{RigDaemon, VERSIONS, daemon::quote};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

struct Project {
    daemon: RigDaemon,
    home: PathBuf,
}

impl Project {
    fn start(version: &'static str) -> Option<Project> {
        let daemon = RigDaemon::start(version, true)?;
        let home = daemon.folder();
        let project = Project { daemon, home };
        fs::create_dir_all(project.home.join("flake")).unwrap();
        fs::create_dir_all(project.home.join("tool")).unwrap();
        let tool = TOOL.replace("PROGRAM", env!("CARGO_BIN_EXE_tk-store"));
        fs::write(project.home.join("tool/flake.nix"), tool).unwrap();
        fs::write(project.home.join("flake/flake.nix"), FLAKE).unwrap();
        project
            .ok("git init -q . && git add . && nix flake lock && git add . && git commit -qm one");
        Some(project)
    }

    /// Runs a script in the flake's folder: status, stdout, stderr.
    fn sh(&self, script: &str) -> (i32, String, String) {
        let home = quote(&self.home.display().to_string());
        let program = quote(env!("CARGO_BIN_EXE_tk-store"));
        let done = self.daemon.sh(&format!(
            "export HOME={home} XDG_CACHE_HOME={home}/cache XDG_STATE_HOME={home}/state\n\
             export GIT_CONFIG_GLOBAL={home}/gitconfig GIT_CONFIG_NOSYSTEM=1\n\
             export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b\n\
             export NIX_CONFIG='experimental-features = nix-command flakes'\n\
             unset TK_NIX TK_SIGN_KEY; tk() {{ {program} \"$@\"; }}; cd {home}/flake\n{script}"
        ));
        (done.status, done.stdout, done.stderr)
    }

    #[track_caller]
    fn ok(&self, script: &str) -> String {
        let done = self.sh(script);
        assert_eq!(done.0, 0, "{script}: {done:?}");
        done.1
    }

    /// The steps that `ci run` ran, each with its exit status.
    fn ran(&self, args: &str) -> (i32, Vec<(String, i64)>, String) {
        let (status, out, words) = self.sh(&format!("tk ci run --json {args}"));
        let json: Value =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {words}"));
        let steps = json["steps"].as_array().unwrap().iter();
        let steps = steps.map(|s| {
            (
                s["step"].as_str().unwrap().into(),
                s["exitCode"].as_i64().unwrap(),
            )
        });
        (status, steps.collect(), words)
    }

    fn edit(&self, from: &str, to: &str) {
        let file = self.home.join("flake/flake.nix");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from));
        fs::write(&file, text.replace(from, to)).unwrap();
    }
}

const COMMIT: &str = "git add . && git commit -qm next";

#[test]
fn what_a_file_says_runs_here() {
    for version in VERSIONS {
        let Some(project) = Project::start(version) else {
            continue;
        };
        let made = project.ok("tk ci generate github");
        assert!(made.contains(".#packages.x86_64-linux.default"), "{made}");
        assert!(
            !project.home.join("flake/.github").exists(),
            "it is only shown"
        );
        project.ok("tk ci generate github --write --job 'own=test -e flake.nix && test ! -e new'");
        project.ok(&format!("tk ci generate github --check --job 'own=test -e flake.nix && test ! -e new' && {COMMIT}"));
        let fine = |names: &[&str]| -> Vec<(String, i64)> {
            names.iter().map(|name| ((*name).to_owned(), 0)).collect()
        };
        // What is not committed is not seen.
        let (status, steps, words) = project.ran("2>&2; touch new");
        assert_eq!(
            (status, steps),
            (0, fine(&["Check", "Build", "Run"])),
            "{version}: {words}"
        );
        let (status, steps, words) = project.ran("");
        assert_eq!(
            (status, steps),
            (0, fine(&["Check", "Build", "Run"])),
            "{version}: {words}"
        );
        assert!(words.contains("not committed"), "{words}");

        // A check that fails ends its job, and not the other.
        project.edit("echo checked", "echo no; exit 3");
        project.ok("rm new");
        project.ok(COMMIT);
        let (status, steps, _) = project.ran("");
        assert_eq!(status, 1, "{version}");
        assert_eq!(
            (steps[0].0.as_str(), steps[1].0.as_str(), steps.len()),
            ("Check", "Run", 2)
        );
        assert!(steps[0].1 != 0 && steps[1].1 == 0, "{steps:?}");
    }
}

#[test]
fn a_push_goes_to_the_cache() {
    let Some(project) = Project::start("2.34") else {
        return;
    };
    let cache = project.home.join("pushed");
    let flags = format!(
        "--to file://{} --tk-store path:{} --job 'own=test -z \"$TK_SIGN_KEY\"'",
        cache.display(),
        project.home.join("tool").display()
    );
    project.ok(&format!("tk ci generate github --write {flags} && {COMMIT} && tk key generate k-1 --secret ../key --public ../pub"));
    let (status, steps, words) = project.ran("");
    assert_eq!((status, steps.len()), (0, 3), "{words}");
    // The secret is there, and only the push sees it.
    let (status, out, words) = project.sh("TK_SIGN_KEY=$(cat ../key) tk ci run");
    assert_eq!(status, 0, "{out} {words}");
    assert!(!cache.exists(), "a pull request pushes nothing");
    let (status, _, words) = project.sh("tk ci run --event push");
    assert_eq!(status, 2, "{words}");
    assert!(words.contains("TK_SIGN_KEY"), "{words}");
    let (status, out, words) = project.sh("TK_SIGN_KEY=$(cat ../key) tk ci run --event push");
    assert_eq!(status, 0, "{out} {words}");
    let listed = project.ok(&format!(
        "tk path-info --all --sigs --store file://{}",
        cache.display()
    ));
    assert!(
        listed.contains("-made\t") && listed.contains("k-1:"),
        "{listed}"
    );
}

#[test]
fn files_of_others_and_edits_stay() {
    let Some(project) = Project::start("2.34") else {
        return;
    };
    let place = project.home.join("flake/.github/workflows/nix.yml");
    let write = "tk ci generate github --write";
    let fails = |script: &str, status: i32, words: &str| {
        let done = project.sh(script);
        assert_eq!(done.0, status, "{script}: {done:?}");
        assert!(done.2.contains(words), "{script}: {done:?}");
    };
    fails("tk ci run", 2, "there is no CI file");
    fails(
        "tk ci generate github --check",
        1,
        "is not what would be written",
    );
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&place, "on: push\n").unwrap();
    fails(write, 2, "did not write");
    fails("tk ci run", 2, "did not write");
    assert_eq!(fs::read_to_string(&place).unwrap(), "on: push\n");
    project.ok(&format!("{write} --force"));
    let made = fs::read_to_string(&place).unwrap();
    project.ok(write);
    assert_eq!(fs::read_to_string(&place).unwrap(), made, "made again");
    fs::write(
        &place,
        made.replace("timeout-minutes: 120", "timeout-minutes: 1"),
    )
    .unwrap();
    fails(write, 2, "was edited");
    fails("tk ci run", 2, "was edited");
    project.ok(&format!("{write} --force"));
    // The flake has another package: what the file does is no longer what it needs.
    project.edit("packages.${system}.default", "packages.${system}.other");
    project.ok(COMMIT);
    fails("tk ci run", 2, "make it anew");
    project.ok(write);
    let new = fs::read_to_string(&place).unwrap();
    assert!(new.contains("x86_64-linux.other"), "{new}");

    fails("tk ci generate gitlab", 2, "--image NAME@sha256:");
    fails("tk ci generate github --to file:///c", 2, "--tk-store");
    fails("tk ci generate github ../tool/nowhere", 2, "nowhere");
    fails(
        "echo '[' >bad.json; tk ci generate github --outputs bad.json",
        2,
        "bad.json",
    );
}

/// The workflow of this repository is what tk-store writes for it.
#[test]
fn our_own_workflow_is_made_by_it() {
    let root = env!("CARGO_MANIFEST_DIR");
    let file = fs::read_to_string(format!("{root}/.github/workflows/nix.yml")).unwrap();
    let outputs = json!({
        "packages": { "x86_64-linux": ["default", "tk-store", "tk-store-static"],
                      "aarch64-linux": ["default", "tk-store", "tk-store-static"] },
        "checks": { "x86_64-linux": ["package"], "aarch64-linux": ["package"] },
    });
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("outputs.json");
    fs::write(&told, outputs.to_string()).unwrap();
    let line = file
        .lines()
        .next()
        .unwrap()
        .strip_prefix("# Made by: tk-store ")
        .unwrap();
    let script = format!("exec \"$0\" {line} --outputs \"$1\"");
    let made = std::process::Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_tk-store")])
        .arg(told)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&made.stdout), file, "{made:?}");
    // What must hold before a change lands is a job of it.
    assert!(file.contains("run: bash .ci/run"), "{file}");
}

const FLAKE: &str = r#"{
  outputs = { self }:
    let
      system = "x86_64-linux";
      build = name: script: derivation {
        inherit name system;
        builder = "/bin/sh";
        args = [ "-c" script ];
        PATH = "/usr/bin:/bin";
      };
    in {
      packages.${system}.default = build "made" "echo made >$out";
      checks.${system}.own = build "check" "echo checked; echo >$out";
    };
}
"#;

/// A flake from which CI takes tk-store.
const TOOL: &str = r#"{
  outputs = _: {
    packages.x86_64-linux.default = derivation {
      name = "tk-store";
      system = "x86_64-linux";
      builder = "/bin/sh";
      PATH = "/usr/bin:/bin";
      args = [ "-c" "mkdir -p $out/bin; printf '#!/bin/sh\nexec PROGRAM \"$@\"\n' >$out/bin/tk-store; chmod +x $out/bin/tk-store" ];
    };
  };
}
"#;
