//! `tk-bench compare` from end to end, on small corpora and with our crate alone, so that it runs anywhere.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn compare(work: &Path, args: &[&str]) -> (Output, Value) {
    let json = work.join("report.json");
    let out = Command::new(env!("CARGO_BIN_EXE_tk-bench"))
        .args(["compare", "--scale", "0.002", "--rounds", "2", "--work"])
        .arg(work)
        .arg("--json")
        .arg(&json)
        .args(args)
        .output()
        .unwrap();
    let report =
        std::fs::read(&json).map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
    (out, report)
}

#[test]
fn measures_every_job_on_every_corpus() {
    let work = tempfile::tempdir().unwrap();
    let (out, report) = compare(work.path(), &["--contenders", "tk-nar,nix-"]);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(out.status.success(), "{stdout}{stderr}");

    for corpus in ["big", "many", "real"] {
        for job in ["dump", "hash", "unpack"] {
            let results = report["results"].as_array().unwrap();
            let rows = results
                .iter()
                .filter(|row| row["job"] == job && row["corpus"] == corpus);
            let rows: Vec<_> = rows.collect();
            assert_eq!(rows.len(), 3, "{job} {corpus}: {stdout}");
            for row in rows {
                let times = row["eachSeconds"].as_array().unwrap();
                assert_eq!(times.len(), 2, "{row}");
                assert!(
                    times.iter().all(|time| time.as_f64().unwrap() > 0.0),
                    "{row}"
                );
                assert!(row["peak"].as_u64().unwrap() > 100_000, "{row}");
                assert_eq!(row["comparedWith"], "tk-nar", "{row}");
            }
            assert!(
                stdout.contains(&format!("{job} {corpus}, 2 rounds")),
                "{stdout}"
            );
        }
    }
    // The made corpora have the same bytes on every machine.
    let corpora = &report["corpora"];
    assert_eq!(
        (&corpora[0]["narHash"], &corpora[0]["entries"]),
        (&BIG_HASH.into(), &1.into()),
        "{corpora}"
    );
    assert_eq!(
        (&corpora[1]["narHash"], &corpora[1]["entries"]),
        (&MANY_HASH.into(), &(200 + 211).into()),
        "{corpora}"
    );
    assert!(
        !work.path().join("fresh").exists(),
        "what was unpacked is still there"
    );

    let skipped = report["skipped"].as_array().unwrap();
    let pushes = skipped
        .iter()
        .filter(|skip| skip["what"].as_str().unwrap().starts_with("push"));
    assert_eq!(pushes.count(), 2, "{stdout}");
}

#[test]
fn a_failure_of_ours_is_told_and_ends_with_status_1() {
    let work = tempfile::tempdir().unwrap();
    let args = [
        "--contenders",
        "tk-store",
        "--tk-store",
        "/bin/false",
        "--corpus",
        "big",
        "--jobs",
        "hash",
    ];
    let (out, report) = compare(work.path(), &args);
    assert_eq!(out.status.code(), Some(1));
    let skip = &report["skipped"][0];
    assert_eq!(
        (&skip["contender"], &skip["what"]),
        (&"tk-store".into(), &"hash big".into()),
        "{report}"
    );
}

#[test]
fn a_wrong_answer_is_no_result() {
    let work = tempfile::tempdir().unwrap();
    let args = [
        "--contenders",
        "tk-store",
        "--tk-store",
        "/bin/echo",
        "--corpus",
        "big",
        "--jobs",
        "hash",
    ];
    let (out, report) = compare(work.path(), &args);
    assert_eq!(out.status.code(), Some(1));
    let why = report["skipped"][0]["why"].as_str().unwrap();
    assert!(why.contains("no hash"), "{why}");
    assert_eq!(
        report["results"].as_array().map(Vec::len),
        Some(0),
        "{report}"
    );
}

const BIG_HASH: &str = "sha256:0q49b7i1v5dxbgxmbbnni1ia1ckk871fmr694m3l0i6nkarn4h62";
const MANY_HASH: &str = "sha256:030psw22iha8v3bvpfdhxcinkcqxbbzxn36p5gkz378bw9ngygl5";
