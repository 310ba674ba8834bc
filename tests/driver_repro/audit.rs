//! What makes builds impure, in flakes that real Nix evaluates.

use super::Bench;
use crate::{cli::Machine, support::each_version};
use std::{fs, path::Path};

const FLAKE: &str = r#"{
  inputs.dep = { url = "path:DEP"; flake = false; };
  outputs = { self, dep }: {
    packages.x86_64-linux = rec {
      default = derivation {
        name = "TAG-clean"; system = "x86_64-linux"; builder = "/bin/sh";
        args = [ "-c" "echo $dep > $out" ]; dep = "${dep}/file";
      };
      impure = derivation {
        name = "TAG-impure"; system = "x86_64-linux"; builder = "/bin/sh";
        args = [ "-c" "echo hi > $out" ]; inherit fetch; __noChroot = true;
      };
      fetch = derivation {
        name = "TAG-fetch"; system = "builtin"; builder = "builtin:fetchurl"; url = "file:///a";
        outputHashMode = "flat"; outputHashAlgo = "sha1"; unpack = ""; executable = "";
        outputHash = "0a0a9f2a6772942557ab5355d76af442f8f65e01";
      };
    };
  };
}
"#;

/// Findings, each as `severity kind where`; derivations by their names.
fn kinds(bench: &Bench, line: &str) -> (i32, Vec<String>) {
    let (status, found) = bench.json(&format!("repro audit --json {line}"));
    let told = found.iter().map(|finding| {
        let text = |key: &str| finding[key].as_str().unwrap();
        assert!(!text("message").is_empty() && !text("advice").is_empty());
        let place = match text("where").split_once(&format!("{}-", bench.tag)) {
            Some((_, name)) => name,
            None => text("where"),
        };
        format!("{} {} {place}", text("severity"), text("kind"))
    });
    (status, told.collect())
}

each_version!(audits);

fn audits(version: &'static str) {
    let Some(bench) = Bench::start(version) else {
        return;
    };
    let folder = bench.daemon.folder();
    let (flake, dep) = (folder.join("flake"), folder.join("dep"));
    for (place, file, text) in [(&dep, "file", "dep"), (&flake, "flake.nix", FLAKE)] {
        let text = text
            .replace("DEP", &dep.to_string_lossy())
            .replace("TAG", &bench.tag);
        fs::create_dir_all(place).unwrap();
        fs::write(place.join(file), text).unwrap();
    }
    unlocked(&bench, &flake);
    locked(&bench, &flake);
    in_git(&bench, &flake);
    without_nix(&bench, &flake);
}

fn unlocked(bench: &Bench, flake: &Path) {
    let version = bench.daemon.version;
    let (status, found) = kinds(bench, &format!("path:{}", flake.display()));
    assert_eq!(status, 1, "{version}");
    for expected in [
        "error sandboxOff sandbox",
        "error unlockedInput dep",
        "warning localInput dep",
        "warning hostBuilder clean.drv",
    ] {
        assert!(
            found.iter().any(|f| f == expected),
            "{version} {expected}: {found:?}"
        );
    }
    assert!(
        !flake.join("flake.lock").exists(),
        "an audit changes nothing"
    );
}

fn locked(bench: &Bench, flake: &Path) {
    let version = bench.daemon.version;
    let flake = format!("path:{}", flake.display());
    bench.daemon.ask("nix", &["flake", "lock", &flake]);
    let sandboxed = "--option sandbox true --option sandbox-fallback false";
    let (status, found) = kinds(bench, &format!("{flake} {sandboxed}"));
    assert_eq!(status, 0, "{version}: {found:?}");
    assert!(
        found.iter().all(|f| !f.starts_with("error")),
        "{version}: {found:?}"
    );
    let (status, found) = kinds(bench, &format!("{flake} {sandboxed} --impure"));
    assert_eq!(status, 1, "{version}: {found:?}");
    assert!(
        found[0].starts_with("error impureEvaluation"),
        "{version}: {found:?}"
    );
    let (status, found) = kinds(bench, &format!("{flake}#impure {sandboxed}"));
    assert_eq!(status, 1, "{version}: {found:?}");
    assert_eq!(
        found[0], "error noChroot impure.drv",
        "{version}: {found:?}"
    );
    assert!(
        found.contains(&"warning weakHash fetch.drv".to_owned()),
        "{version}: {found:?}"
    );
    let (status, found) = kinds(bench, &format!("-f default.nix -A same {sandboxed}"));
    assert_eq!(status, 0, "{version}: {found:?}");
    let unpinned = |f: &String| f.starts_with("warning unpinnedEvaluation");
    assert!(found.iter().any(unpinned), "{version}: {found:?}");
    let (status, out, err) = bench.tk(&format!("repro audit {flake}#nothing"));
    assert_eq!((status, out.as_str()), (2, ""), "{version}: {err}");
}

fn in_git(bench: &Bench, flake: &Path) {
    let version = bench.daemon.version;
    let git = "git -c user.name=a -c user.email=a@example.org";
    let begun = bench.daemon.sh(&format!(
        "cd {} && git init -q && git add . && {git} commit -qm all",
        flake.display()
    ));
    assert_eq!(begun.status, 0, "{begun:?}");
    let dirty = |found: &[String]| found.iter().any(|f| f.starts_with("warning dirtyTree"));
    let line = format!("git+file://{}", flake.display());
    let (_, found) = kinds(bench, &line);
    assert!(!dirty(&found), "{version}: {found:?}");
    let changed = bench
        .daemon
        .sh(&format!("echo '# more' >> {}/flake.nix", flake.display()));
    assert_eq!(changed.status, 0);
    let (_, found) = kinds(bench, &line);
    assert!(dirty(&found), "{version}: {found:?}");
}

/// A derivation in a cache, on a machine that has no nix.
fn without_nix(bench: &Bench, flake: &Path) {
    let version = bench.daemon.version;
    let attr = format!(
        "path:{}#packages.x86_64-linux.impure.drvPath",
        flake.display()
    );
    let drv = bench.daemon.ask("nix", &["eval", "--raw", &attr]);
    let machine = Machine::new();
    let cache = machine.cache("drvs");
    let (status, _, err) = bench.tk(&format!("push {drv} --to {cache}"));
    assert_eq!(status, 0, "{err}");
    let done = machine.run(&format!(
        "repro audit --nix /nowhere/nix --store {cache} {drv}"
    ));
    assert_eq!(done.status, 1, "{version}: {done:?}");
    assert!(
        done.out.starts_with(&format!("error noChroot {drv}: ")),
        "{done:?}"
    );
    assert!(done.err.contains("settings are not looked at"), "{done:?}");
}
