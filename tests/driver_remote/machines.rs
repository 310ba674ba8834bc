use super::Lab;
use crate::support::RigDaemon;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use std::fs::{self, File};

/// All machines are asked, and one that does not answer is said not to.
#[test]
fn probes() {
    let (Some(lab), Some(old), Some(wary)) = (
        Lab::new(),
        RigDaemon::start("2.8", true),
        RigDaemon::start("2.34", false),
    ) else {
        return;
    };
    lab.host("old", &old);
    lab.host("wary", &wary);
    lab.say(
        "gone",
        "export FAKE_SSH_STATUS=255 FAKE_SSH_SAYS='no route to host'\n",
    );
    let text = "ssh-ng://old - - 3 1 kvm\nssh-ng://wary;ssh-ng://gone";
    let slots = lab.source.state().join("nix/var/nix/current-load");
    fs::create_dir_all(&slots).unwrap();
    let held = File::create(slots.join("ssh-ng:__old-1")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();

    let done = lab.tk(&["builders", "probe", "--json", "--builders", text]);
    assert_eq!(done.status, 1, "{done:?}");
    let told: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
    let field = |name: &str| told.iter().map(|one| one[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("reachable"), [true, true, false]);
    assert_eq!(field("trusted"), [Value::Null, false.into(), Value::Null]);
    assert_eq!(field("freeSlots"), [2, 1, 1]);
    assert_eq!(told[0]["protocol"], "worker 1.34");
    assert!(told[1]["nixVersion"].as_str().unwrap().starts_with("2.34"));
    assert!(told[0]["latencyMs"].as_f64().unwrap() > 0.0);
    assert_eq!(told[0]["supportedFeatures"], serde_json::json!(["kvm"]));
    let why = told[2]["error"].as_str().unwrap();
    assert!(why.contains("no route to host"), "{why}");

    let done = lab.tk(&["builders", "probe", "--builder", "ssh-ng://wary"]);
    assert_eq!(done.status, 0, "{done:?}");
    for part in [
        "does not trust the account",
        "1 of 1 slots free",
        "worker 1.",
    ] {
        assert!(done.stdout.contains(part), "{done:?}");
    }
}

/// Lines are checked without asking anybody, wherever they come from.
#[test]
fn checks_and_lists() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("machines", "me@one\n\ntwo x - many\n");
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tk-store"));
        command.args(args).env("NIX_CONF_DIR", folder.path());
        command
            .env("NIX_USER_CONF_FILES", "")
            .env_remove("NIX_CONFIG");
        let out = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    // As Nix: without a setting, the machines file beside nix.conf.
    let (status, _, said) = run(&["builders", "check"]);
    assert_eq!(status, Some(1), "{said}");
    let place = format!(
        "{} line 3, field 4 (jobs)",
        folder.path().join("machines").display()
    );
    assert!(
        said.contains(&place) && said.contains("1 machine"),
        "{said}"
    );
    let (status, out, _) = run(&["builders", "check", "--json"]);
    assert_eq!(status, Some(1));
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["faults"][0]["line"], 3);
    assert_eq!(told["faults"][0]["fieldName"], "jobs");
    assert_eq!(told["machines"][0]["uri"], "ssh://me@one");
    assert_eq!(run(&["builders", "list"]).0, Some(2));
    let (status, _, said) = run(&["builders", "check", "--builders", "@/nothing/there"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("there is no /nothing/there"), "{said}");

    write(
        "nix.conf",
        "builders = ssh-ng://a x86_64-linux - 4 2 kvm ; @nothing\nsystem = my-system\n",
    );
    let (status, out, said) = run(&["builders", "list"]);
    assert_eq!(
        (status, out.as_str()),
        (
            Some(0),
            "ssh-ng://a  x86_64-linux  4 builds at once, speed 2, features kvm\n"
        ),
        "{said}"
    );
    let (_, out, _) = run(&["builders", "list", "--builder", "x", "--json"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told[0]["systems"], serde_json::json!(["my-system"]));
}
