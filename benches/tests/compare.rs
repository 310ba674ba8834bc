//! `tk-bench` from end to end, on small corpora. What needs real Nix or `tk-store` is skipped, visibly, where it is not there.

#[path = "../instructions/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::skip;

fn compare(work: &Path, args: &[&str]) -> (Output, Value) {
    bench(
        work,
        &["compare", "--scale", "0.002", "--rounds", "2"],
        args,
    )
}

fn bench(work: &Path, command: &[&str], args: &[&str]) -> (Output, Value) {
    let json = work.join("report.json");
    let out = Command::new(env!("CARGO_BIN_EXE_tk-bench"))
        .args(command)
        .arg("--work")
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

/// What it printed; it must have ended well.
fn succeeded(out: &Output) -> String {
    let [stdout, stderr] =
        [&out.stdout, &out.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(out.status.success(), "{stdout}{stderr}");
    stdout
}

#[test]
fn measures_every_job_on_every_corpus() {
    let work = tempfile::tempdir().unwrap();
    let (out, report) = compare(work.path(), &["--contenders", "tk-nar,nix-"]);
    let stdout = succeeded(&out);

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
fn limits_marks_and_the_picture_are_part_of_a_run() {
    let work = tempfile::tempdir().unwrap();
    let svg = work.path().join("report.svg");
    let args = ["--contenders", "tk-nar,limit,tar", "--corpus", "big,many"];
    let args = [
        &args[..],
        &["--jobs", "dump,hash,unpack", "--svg"],
        &[svg.to_str().unwrap()],
    ];
    let (out, report) = compare(work.path(), &args.concat());
    let stdout = succeeded(&out);

    let row = |job: &str, corpus: &str, who: &str| {
        let same =
            |row: &&Value| row["job"] == job && row["corpus"] == corpus && row["contender"] == who;
        let rows = report["results"].as_array().unwrap();
        rows.iter()
            .find(same)
            .unwrap_or_else(|| panic!("{job} {corpus} {who}: {stdout}"))
            .clone()
    };
    for (job, limits) in [
        ("dump", &["limit: reading"][..]),
        ("hash", &["limit: reading", "limit: SHA-256"]),
        ("unpack", &["limit: creating files"]),
    ] {
        for limit in limits {
            let limit = row(job, "many", limit);
            assert_eq!(
                (&limit["role"], &limit["ours"]),
                (&"limit".into(), &false.into())
            );
            assert!(limit["itByLimit"].as_f64().unwrap() <= 1.0, "{limit}");
        }
        assert!(row(job, "many", "tk-nar")["itByLimit"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(row("dump", "many", "tar")["role"], "yardstick");

    let marks = report["marks"].as_array().unwrap();
    let measured = marks.iter().filter(|mark| !mark["met"].is_null());
    let measured: Vec<_> = measured.map(|mark| mark["job"].as_str().unwrap()).collect();
    let sha256 = "NAR hash of 1 GiB / SHA-256 of the bytes";
    assert_eq!(measured, [sha256, "peak memory of any of these, MiB"]);
    assert!(stdout.contains(sha256), "{stdout}");
    let picture = std::fs::read_to_string(svg).unwrap();
    assert!(
        ["dump big", "hash many", "unpack many"]
            .iter()
            .all(|job| picture.contains(job)),
        "{picture}"
    );

    // The same picture from the file, and a part of it.
    let plot = |args: &[&str]| {
        let again = work.path().join("again.svg");
        let mut plot = Command::new(env!("CARGO_BIN_EXE_tk-bench"));
        let plot = plot.arg("plot").arg(work.path().join("report.json"));
        assert!(plot.arg(&again).args(args).status().unwrap().success());
        std::fs::read_to_string(again).unwrap()
    };
    assert_eq!(plot(&[]), picture);
    let part = plot(&["--jobs", "hash;dump many", "--without", "tar"]);
    let has = |text: &str| part.contains(text);
    assert!(
        has("hash big") && has("dump many") && has("tk-nar"),
        "{part}"
    );
    assert!(
        !has("dump big") && !has("unpack many") && !has(">tar<"),
        "{part}"
    );
}

#[test]
fn many_paths_go_to_and_from_folders() {
    let Some(tk_store) = tk_store("many_paths_go_to_and_from_folders") else {
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let command = [
        "network",
        "--jobs",
        "push folder none,push folder zstd,pull folder xz",
        "--scale",
        "0.004",
        "--rounds",
        "1",
    ];
    let (out, report) = bench(
        work.path(),
        &command,
        &["--tk-store", tk_store.to_str().unwrap()],
    );
    succeeded(&out);
    for (job, limit) in [
        ("push folder none", "limit: writing"),
        ("push folder zstd", "limit: zstd"),
        ("pull folder xz", "limit: SHA-256"),
    ] {
        let rows = report["results"].as_array().unwrap();
        let who = rows.iter().filter(|row| row["job"] == job);
        let who: Vec<_> = who.map(|row| row["contender"].as_str().unwrap()).collect();
        assert!(
            who.contains(&"tk-store") && who.contains(&limit),
            "{job}: {who:?}"
        );
    }
}

#[test]
fn many_paths_go_to_a_daemon() {
    let name = "many_paths_go_to_a_daemon";
    let Some(tk_store) = tk_store(name) else {
        return;
    };
    if !rig().join("2.34/bin/nix").exists() {
        return skip(
            name,
            "real Nix is not installed; tests/rig/install does it on Debian",
        );
    }
    let work = tempfile::tempdir().unwrap();
    let command = [
        "daemon",
        "--jobs",
        "copy-in-xz",
        "--scale",
        "0.004",
        "--rounds",
        "1",
    ];
    let (out, report) = bench(
        work.path(),
        &command,
        &["--tk-store", tk_store.to_str().unwrap()],
    );
    let stdout = succeeded(&out);
    let rows = report["results"].as_array().unwrap();
    let who: Vec<_> = rows
        .iter()
        .map(|row| row["contender"].as_str().unwrap())
        .collect();
    assert!(
        who[0] == "tk-store" && who[1].starts_with("nix 2.34"),
        "{who:?}"
    );
    let marks = report["marks"].as_array().unwrap();
    let met = marks
        .iter()
        .find(|mark| mark["job"] == "add to a daemon, from xz / nix");
    assert!(met.unwrap()["measured"].as_f64().unwrap() > 0.0, "{stdout}");
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

/// Built by whoever tests everything.
fn tk_store(test: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_tk-bench")).with_file_name("tk-store");
    if !path.exists() {
        skip(test, "tk-store is not built");
        return None;
    }
    Some(path)
}

fn rig() -> PathBuf {
    std::env::var_os("NIX_RIG_DIR").map_or_else(|| "/opt/nix-rig".into(), PathBuf::from)
}
