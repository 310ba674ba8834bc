//! What fails is told as values, soon, and leaves no process behind.

use super::{Project, Table, read, with_each};
use crate::support::{VERSIONS, each_version};
use serde_json::{Value, json};

#[test]
fn builds_that_fail() {
    let table = Table::new("builds that fail by real Nix");
    let ran = with_each(|version, project| {
        for (attr, options, expected) in [
            (
                "exit3",
                "",
                json!({"cause": "builder", "exitCode": 3, "log": ["line one", "line two"]}),
            ),
            (
                "quotes",
                "",
                json!({"cause": "builder", "exitCode": 1, "retryable": false}),
            ),
            (
                "full",
                "",
                json!({"cause": "noSpace", "exitCode": 1, "retryable": true}),
            ),
            (
                "fetches",
                "",
                json!({"cause": "network", "exitCode": 6, "retryable": true}),
            ),
            (
                "killed",
                "",
                json!({"cause": "builder", "signal": 9, "exitCode": null}),
            ),
            (
                "noOutput",
                "",
                json!({"cause": "missingOutput", "output": "out"}),
            ),
            (
                "fixed",
                "",
                json!({
                    "cause": "hashMismatch",
                    "expectedHash": "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                    "actualHash": "sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=",
                }),
            ),
            // The one that it needs is what failed.
            (
                "needs",
                "",
                json!({"cause": "builder", "exitCode": 3, "log": ["line one", "line two"]}),
            ),
            (
                "endless",
                "--option max-build-log-size 10000",
                json!({"cause": "logLimit"}),
            ),
            (
                "sleeps",
                "--timeout 1",
                json!({"cause": "timedOut", "retryable": true, "log": ["asleep"]}),
            ),
            (
                "silent",
                "--max-silent-time 1",
                json!({"cause": "timedOut", "log": []}),
            ),
        ] {
            let line = format!("build path:.#{attr} --no-log --json {options}");
            let (status, value) = project.json(&line);
            let failure = &value[0]["failure"];
            // What another try may do is no answer about the build.
            let expected_status = if ["full", "fetches"].contains(&attr) {
                2
            } else {
                1
            };
            assert_eq!(
                (status, &value[0]["success"]),
                (expected_status, &json!(false)),
                "{version}: {value}"
            );
            for (key, expected) in expected.as_object().unwrap() {
                assert_eq!(&failure[key], expected, "{version}: {attr}: {key}: {value}");
            }
            let name = if attr == "needs" { "exit3" } else { attr };
            let drv = failure["derivation"].as_str().unwrap().to_lowercase();
            let name = name.replace("noOutput", "no-output");
            assert!(drv.ends_with(&format!("-{name}.drv")), "{version}: {drv}");
            table.ok(&format!("{attr} {options}"), version);
        }
        // The daemon is as good as before.
        let (status, value) = project.json("build path:.#plain --json");
        assert_eq!(
            (status, &value[0]["status"]),
            (0, &json!("Built")),
            "{version}: {value}"
        );
        for words in ["sleep 1000", "sleep 1001", "nix-daemon --stdio"] {
            project.ends(words);
        }
    });
    table.finish(&ran);
}

/// With one that fails the others are built as far as they can be, and each is told of.
#[test]
fn others_go_on() {
    let Some(project) = VERSIONS.into_iter().find_map(Project::start) else {
        return;
    };
    let line = "build path:.#exit3 path:.#plain path:.#fixed --keep-going --json --no-log";
    let done = project.run(line);
    let (status, value): (i32, Value) = (done.status, serde_json::from_str(&done.stdout).unwrap());
    assert!(done.stderr.contains("\nbuilt 1 derivation;"), "{done:?}");
    let told = |key: &str| {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r[key].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(status, 1, "{value}");
    assert_eq!(
        told("success"),
        [json!(false), json!(true), json!(false)],
        "{value}"
    );
    assert_eq!(value[2]["failure"]["cause"], "hashMismatch", "{value}");
}

/// A build that is given up ends at once, with its builder: by a daemon, and by a nix-daemon of its
/// own. What was going on is told, and what was there.
#[test]
fn given_up() {
    let mut took = Vec::new();
    for version in VERSIONS {
        let Some(project) = Project::start(version) else {
            continue;
        };
        let plain = project.run("build path:.#plain");
        assert_eq!(plain.status, 0, "{version}: {plain:?}");
        for (store, signal, status) in [("daemon", "INT", 130), ("local", "TERM", 143)] {
            let program = env!("CARGO_BIN_EXE_tk-store");
            let folder = project.folder.display();
            let script = format!(
                "cd {folder} || exit 1
                 {program} build path:.#sleeps path:.#plain --store {store} --json >told 2>log & pid=$!
                 i=0; until grep -q asleep {folder}/log 2>/dev/null; do
                   i=$((i + 1)); [ $i -lt 600 ] || exit 1; sleep 0.05
                 done
                 begun=$EPOCHREALTIME
                 kill -{signal} $pid; wait $pid; echo $? $begun $EPOCHREALTIME"
            );
            // A shell without job control starts its children with interrupts ignored.
            let script = format!("bash -mc '{}'", script.replace('\'', "'\\''"));
            let done = project.daemon.sh(&script);
            let words: Vec<_> = done.stdout.split_whitespace().collect();
            let [ended, begun, end] = words[..] else {
                panic!("{version}: {store}: {done:?}");
            };
            assert_eq!(ended, status.to_string(), "{version}: {store}: {done:?}");
            took.push(end.parse::<f64>().unwrap() - begun.parse::<f64>().unwrap());
            let told: Value = serde_json::from_str(&read(project.folder.join("told"))).unwrap();
            let failure = &told[0]["failure"];
            assert_eq!(told[0]["success"], false, "{version}: {store}: {told}");
            assert_eq!(told[1]["success"], true, "{version}: {store}: {told}");
            for (key, value) in [
                ("cause", json!("cancelled")),
                ("retryable", json!(true)),
                ("log", json!(["asleep"])),
                ("derivation", told[0]["drvPath"].clone()),
            ] {
                assert_eq!(failure[key], value, "{version}: {store}: {key}: {told}");
            }
            project.ends("sleep 1000");
            std::fs::remove_file(project.folder.join("log")).unwrap();
        }
        project.ends("nix-daemon --stdio");
    }
    let quickest = took.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(took.is_empty() || quickest < 1.0, "{took:?}");
}

/// Evaluation that never ends is ended, too.
#[test]
fn endless_evaluation_is_given_up() {
    let Some(project) = VERSIONS.into_iter().find_map(Project::start) else {
        return;
    };
    let program = env!("CARGO_BIN_EXE_tk-store");
    let endless = "let f = n: if n == 0 then 0 else f (n - 1) + f (n - 1); in f 60 + 4711";
    let done = project.daemon.sh(&format!(
        "timeout -s TERM 1 {program} eval --expr '{endless}'; echo $?"
    ));
    assert_eq!(done.stdout.trim(), "124", "{done:?}");
    project.ends("f 60 + 4711");
}

each_version!(told_within_a_second);

/// Each kind is told within a second of what happened: in one of some tries, since the machine may be
/// busy with anything else.
fn told_within_a_second(version: &'static str) {
    let Some(project) = Project::start(version) else {
        return;
    };
    for (attr, options, limit) in [
        ("exit3", "", 0.0),
        ("killed", "", 0.0),
        ("noOutput", "", 0.0),
        ("fixed", "", 0.0),
        ("endless", "--option max-build-log-size 10000", 0.0),
        ("sleeps", "--timeout 2", 2.0),
        ("sleeps", "--max-silent-time 2", 2.0),
        ("throws", "", 0.0),
        ("unknown", "", 0.0),
    ] {
        let mut took = Vec::new();
        let quick = (0..TRIES).any(|i| {
            // Another derivation each time: a failure may be remembered.
            project.write("flake.nix", &TIMED.replace("TRY", &i.to_string()));
            let begun = seconds();
            let line = format!("build path:.#{attr} --json --no-log {options}");
            let (status, value) = project.json(&line);
            let told = seconds();
            assert_eq!(status, 1, "{version}: {value}");
            let log = value[0]["failure"]["log"].as_array().unwrap();
            let mut lines = log.iter().filter_map(Value::as_str);
            // What happened came right after the builder's first line, or the whole of it is
            // counted.
            let at = lines.find_map(|line| line.strip_prefix("at "));
            let at = at.map(|at| at.parse().unwrap_or_else(|_| panic!("{value}")));
            assert_eq!(at.is_some(), BUILT.contains(&attr), "{version}: {value}");
            took.push(told - at.unwrap_or(begun) - limit);
            took.last().is_some_and(|took| *took < 1.0)
        });
        assert!(quick, "{version}: {attr} {options} after {took:?} s");
    }
}

/// Builders that tell when they began.
const TIMED: &str = r#"
{
  outputs = { self }: let
    mk = name: more: script: derivation ({
      inherit name; system = "x86_64-linux"; builder = "/bin/bash"; LC_ALL = "C";
      args = [ "-c" "echo at $EPOCHREALTIME; : TRY; ${script}" ]; PATH = "/usr/bin:/bin";
    } // more);
  in {
    packages.x86_64-linux = {
      exit3 = mk "exit3" { } "exit 3";
      killed = mk "killed" { } "kill -9 $$";
      noOutput = mk "no-output" { } "true";
      fixed = mk "fixed" {
        outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; outputHashMode = "flat";
        outputHashAlgo = null;
      } "echo hello > $out";
      endless = mk "endless" { } "while :; do echo y; done";
      sleeps = mk "sleeps" { } "sleep 1000";
      throws = throw "no such luck";
    };
  };
}
"#;
/// Those of them that are built.
const BUILT: [&str; 5] = ["exit3", "killed", "noOutput", "fixed", "sleeps"];
const TRIES: u32 = 3;

fn seconds() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

#[test]
fn failures_of_evaluation_as_json() {
    let Some(project) = VERSIONS.into_iter().find_map(Project::start) else {
        return;
    };
    for (line, words) in [
        ("build path:.#throws --json", "no such luck"),
        ("build path:.#plian --json", "did you mean plain?"),
    ] {
        let done = project.run(line);
        assert_eq!(done.status, 1, "{done:?}");
        assert!(done.stderr.contains(words), "{done:?}");
        let value: Value = serde_json::from_str(&done.stdout).expect("JSON");
        assert_eq!(value[0]["success"], false, "{value}");
    }
}
