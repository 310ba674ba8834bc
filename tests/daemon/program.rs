//! The program beside a daemon: what people type, and what comes out.

use crate::{
    cli::Machine,
    support::{RigDaemon, each_version},
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
  top = make "top" "echo ${make "good" "echo one; echo two >&2; echo content > $out"} > $out";
}
"#;

each_version!(build_log_and_info);

fn build_log_and_info(version: &'static str) {
    let Some(daemon) = RigDaemon::start(version, true) else {
        return;
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

each_version!(every_command_takes_a_daemon);

fn every_command_takes_a_daemon(version: &'static str) {
    let Some(daemon) = RigDaemon::start(version, true) else {
        return;
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
        return;
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

each_version!(copies_of_what_was_built);

/// What a daemon built is named by its derivation, goes without its closure only when that is
/// said, and takes its log along.
fn copies_of_what_was_built(version: &'static str) {
    let Some(daemon) = RigDaemon::start(version, true) else {
        return;
    };
    let machine = Machine::new();
    let uri = format!(
        "unix://{}?root={}",
        daemon.socket().display(),
        daemon.state().display()
    );
    let file = daemon.folder().join("expression.nix");
    fs::write(&file, EXPRESSION).expect("writable");
    let top = daemon.ask("nix-instantiate", &[file.to_str().unwrap(), "-A", "top"]);
    let good = daemon.ask("nix-instantiate", &[file.to_str().unwrap(), "-A", "good"]);
    let path = machine.ok(&format!("build {top}^out --store {uri}"));
    let reference = machine.ok(&format!("build {good}^out --store {uri}"));
    let report = |line: &str| -> Value { serde_json::from_str(&machine.ok(line)).expect("JSON") };
    let copied = |report: &Value| -> Vec<String> {
        let entries = report["copied"].as_array().expect("a list");
        let path = |entry: &Value| entry["path"].as_str().map(str::to_owned);
        entries.iter().filter_map(path).collect()
    };

    // The reference would be missing: that has to be said.
    let cache = machine.cache("cache");
    let copy = format!("copy {top}^out --from {uri} --to {cache} --json");
    let alone = report(&format!("{copy} --no-closure"));
    assert_eq!(copied(&alone), [path.as_str()]);
    assert_eq!(alone["roots"], serde_json::json!([path]));
    assert_eq!(alone["logs"], serde_json::json!([]), "none was asked for");
    machine.fails(1, &format!("check --closure {path} --in {cache}"));
    let rest = report(&format!(
        "copy {good}^* --from {uri} --to {cache} --json --logs"
    ));
    assert_eq!(copied(&rest), [reference.as_str()]);
    assert_eq!(rest["logs"], serde_json::json!([good]));
    machine.ok(&format!("check --closure {path} --in {cache}"));
    for named in [&good, &reference] {
        let log = machine.ok(&format!("log {named} --store {cache}"));
        assert_eq!(log, "one\ntwo");
    }
    machine.fails(1, &format!("log {top} --store {cache}"));
    machine.fails(2, &format!("copy {top}^nothing --from {uri} --to {cache}"));

    // With all that it refers to.
    let whole = machine.cache("whole");
    let mut both = copied(&report(&format!(
        "copy {top}^out --from {uri} --to {whole} --json"
    )));
    both.sort();
    let mut want = [path.as_str(), reference.as_str()];
    want.sort();
    assert_eq!(both, want);
}

each_version!(repair_through_a_daemon);

fn repair_through_a_daemon(version: &'static str) {
    let Some(daemon) = RigDaemon::start(version, true) else {
        return;
    };
    let machine = Machine::new();
    let uri = format!("unix://{}", daemon.socket().display());
    let cache = machine.cache("cache");
    machine.write("file", "a file");
    machine.ok("key generate program-1 --secret s --public p");
    let path = machine.ok(&format!("push file --to {cache} --sign-key s"));
    let pull = format!("pull {path} --from {cache} --to {uri} --trusted-key p --json");
    machine.ok(&pull);
    let stored = daemon.store().join(path.rsplit('/').next().unwrap());
    let damage = || {
        fs::remove_file(&stored).expect("it is there");
        fs::write(&stored, "damaged").expect("writable");
    };
    damage();
    machine.ok(&pull);
    assert_eq!(fs::read(&stored).unwrap(), b"damaged", "{version}");
    for word in ["--repair", "--force"] {
        damage();
        let report: Value =
            serde_json::from_str(&machine.ok(&format!("{pull} {word}"))).expect("JSON");
        assert_eq!(report["replaced"], serde_json::json!([path]), "{version}");
        assert_eq!(fs::read(&stored).unwrap(), b"a file", "{version}");
    }
}
