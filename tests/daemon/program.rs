//! The program beside a daemon: what people type, and what comes out.

use crate::{
    cli::Machine,
    support::{RigDaemon, VERSIONS},
};
use serde_json::Value;
use std::fs;

/// A derivation that works, and one that does not.
const EXPRESSION: &str = r#"
let make = name: text: derivation {
  inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" text ];
}; in {
  good = make "good" "echo one; echo two >&2; echo content > $out";
  bad = make "bad" "echo first; echo last; exit 3";
}
"#;

#[test]
fn build_log_and_info() {
    for version in VERSIONS {
        let Some(daemon) = RigDaemon::start(version, true) else {
            continue;
        };
        let machine = Machine::new();
        let uri = format!(
            "unix://{}?root={}",
            daemon.socket().display(),
            daemon.state().display()
        );
        let file = daemon.folder().join("expression.nix");
        fs::write(&file, EXPRESSION).expect("writable");
        let drv = |name: &str| daemon.ask("nix-instantiate", &[file.to_str().unwrap(), "-A", name]);
        let (good, bad) = (drv("good"), drv("bad"));

        let info = machine.ok(&format!("store info --json {uri}"));
        let info: Value = serde_json::from_str(&info).expect("JSON");
        assert!(
            info["version"].as_str().unwrap().starts_with(version),
            "{info}"
        );
        assert_eq!(info["storeDir"], "/nix/store");
        let told = (version != "2.8").then_some(true);
        assert_eq!(info["trusted"].as_bool(), told, "{info}");

        let plan = machine.run(&format!("build --dry-run {good}^out --store {uri}"));
        assert_eq!((plan.status, plan.out.trim_end()), (0, &*good), "{plan:?}");
        let built = machine.run(&format!("build {good}^out --store {uri} --out-link result"));
        assert_eq!(built.status, 0, "{built:?}");
        let path = built.out.trim_end().to_owned();
        assert_eq!(path, daemon.ask("nix-store", &["-q", "--outputs", &good]));
        for line in ["building /nix/store", "good> one", "good> two"] {
            assert!(built.err.contains(line), "{line}: {built:?}");
        }
        let link = fs::read_to_string(machine.home().join("result"));
        assert_eq!(link.expect("a link to what was built"), "content\n");
        let quiet = machine.run(&format!("build -q {good}^* --json --store {uri}"));
        let results: Value = serde_json::from_str(&quiet.out).expect("JSON");
        assert_eq!(results[0]["status"], "AlreadyValid", "{results}");
        assert_eq!(results[0]["outputs"]["out"], *path, "{results}");
        assert_eq!(quiet.err, "");

        let failed = machine.run(&format!("build {bad} --json --store {uri}"));
        assert_eq!(failed.status, 1, "{failed:?}");
        let results: Value = serde_json::from_str(&failed.out).expect("JSON");
        assert_eq!(results[0]["success"], false, "{results}");
        assert_eq!(results[0]["drvPath"], *bad, "{results}");
        for line in ["bad> first", "bad> last", "was not built"] {
            assert!(failed.err.contains(line), "{line}: {failed:?}");
        }
        assert!(!failed.err.contains('\x1b') && !failed.out.contains("\\u001b"));

        for named in [&good, &path] {
            assert_eq!(
                machine.ok(&format!("log {named} --store {uri}")),
                "one\ntwo"
            );
        }
        let source = daemon.ask("nix-store", &["--add", file.to_str().unwrap()]);
        machine.fails(1, &format!("log {source} --store {uri}"));
    }
}

#[test]
fn every_command_takes_a_daemon() {
    for version in VERSIONS {
        let Some(daemon) = RigDaemon::start(version, true) else {
            continue;
        };
        let machine = Machine::new();
        let uri = format!("unix://{}", daemon.socket().display());
        let (store, cache) = (format!("--store {uri}"), machine.cache("cache"));
        machine.write("file", "a file");
        machine.ok("key generate program-1 --secret s --public p");
        let path = machine.ok(&format!("add file {store}"));
        assert_eq!(machine.ok(&format!("path-info --all {store}")), path);
        assert_eq!(machine.ok(&format!("cat {path} {store}")), "a file");
        assert_eq!(machine.ok(&format!("closure {path} {store}")), path);
        machine.ok(&format!("sign {path} --key-file s {store}"));
        assert!(
            machine
                .ok(&format!("path-info --sigs {path} {store}"))
                .contains("program-1:")
        );
        machine.ok(&format!("verify --all --trusted-key p {store}"));
        assert_eq!(
            machine.ok(&format!("push {path} --from {uri} --to {cache}")),
            path
        );

        // There, and back to a daemon that has nothing.
        let Some(other) = RigDaemon::start(version, true) else {
            continue;
        };
        let to = format!("unix://{}", other.socket().display());
        assert_eq!(
            machine.ok(&format!(
                "pull {path} --from {cache} --to {to} --trusted-key p"
            )),
            path
        );
        other.ask("nix-store", &["--verify-path", &path]);
        let absent = "/nix/store/575s52sh487i0ylmbs9pvi606ljdszr0-hello";
        machine.fails(1, &format!("path-info {absent} {store}"));
        machine.fails(1, &format!("copy {absent} --from {uri} --to {to}"));
    }
}
