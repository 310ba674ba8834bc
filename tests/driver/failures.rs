//! What fails is told as values, soon, and leaves no process behind.

use super::{Project, Table, with_each};
use crate::support::VERSIONS;
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
            assert_eq!(
                (status, &value[0]["success"]),
                (1, &json!(false)),
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
    let (status, value) = project.json(line);
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
/// own.
#[test]
fn given_up() {
    for version in VERSIONS {
        let Some(project) = Project::start(version) else {
            continue;
        };
        for (store, signal, status) in [("daemon", "INT", 130), ("local", "TERM", 143)] {
            let program = env!("CARGO_BIN_EXE_tk-store");
            let folder = project.folder.display();
            let script = format!(
                "cd {folder} || exit 1
                 {program} build path:.#sleeps --store {store} 2>log & pid=$!
                 i=0; until grep -q asleep {folder}/log 2>/dev/null; do
                   i=$((i + 1)); [ $i -lt 600 ] || exit 1; sleep 0.05
                 done
                 kill -{signal} $pid; wait $pid; echo $?"
            );
            // A shell without job control starts its children with interrupts ignored.
            let script = format!("bash -mc '{}'", script.replace('\'', "'\\''"));
            let done = project.daemon.sh(&script);
            assert_eq!(
                done.stdout.trim(),
                status.to_string(),
                "{version}: {store}: {done:?}"
            );
            project.ends("sleep 1000");
            std::fs::remove_file(project.folder.join("log")).unwrap();
        }
        project.ends("nix-daemon --stdio");
    }
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
