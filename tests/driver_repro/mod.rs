//! `repro check` and `repro audit` beside real Nix: planted differences of every kind, builds that give
//! the same again, stores that hold different outputs of one derivation, and what makes builds impure.

mod audit;
mod stores;

use crate::support::{RigDaemon, VERSIONS, daemon::quote, each_version, report};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, process,
    sync::atomic::{AtomicU32, Ordering},
};

/// What is to be found: the path in the output, the kind, the offset.
type Expected = (&'static str, &'static str, Option<u64>);

/// What a build plants: its name, its script, and what is to be found.
const PLANTED: &[(&str, &str, &[Expected])] = &[
    (
        "same",
        "mkdir $out; echo text > $out/file; ln -s file $out/link",
        &[],
    ),
    (
        "stamp",
        "mkdir -p $out/share; echo \"built at $n\" > $out/share/stamp",
        &[("share/stamp", "contents", Some(9))],
    ),
    (
        "size",
        "printf abc > $out; [ $n = 0 ] || printf def >> $out",
        &[("", "contents", Some(3))],
    ),
    (
        "mode",
        "mkdir $out; echo run > $out/tool; [ $n = 0 ] || chmod +x $out/tool",
        &[("tool", "executable", None)],
    ),
    (
        "link",
        "mkdir $out; ln -s /to-$n $out/link",
        &[("link", "target", None)],
    ),
    (
        "lines",
        "if [ $n = 0 ]; then printf 'x\\na\\nb\\n'; else printf 'x\\nb\\na\\n'; fi > $out",
        &[("", "contents", Some(2))],
    ),
    (
        "names",
        "mkdir $out; echo > $out/entry-$n",
        &[("entry-0", "onlyIn", None), ("entry-1", "onlyIn", None)],
    ),
    (
        "type",
        "mkdir $out; if [ $n = 0 ]; then echo > $out/x; else mkdir $out/x; fi",
        &[("x", "type", None)],
    ),
    (
        "self",
        "mkdir $out; echo $out > $out/own; echo $n > $out/z",
        &[("z", "contents", Some(0))],
    ),
];

static TAG: AtomicU32 = AtomicU32::new(0);

/// A daemon, and Nix code whose builds count how often they ran.
pub struct Bench {
    pub daemon: RigDaemon,
    tag: String,
}

impl Bench {
    pub fn start(version: &'static str) -> Option<Bench> {
        let daemon = RigDaemon::start(version, true)?;
        let tag = TAG.fetch_add(1, Ordering::Relaxed);
        Some(Bench::of(daemon, &format!("rp{}-{tag}", process::id())))
    }

    /// With names that begin with `tag`, so that two benches can have the same derivations.
    pub fn of(daemon: RigDaemon, tag: &str) -> Bench {
        let bench = Bench {
            daemon,
            tag: tag.to_owned(),
        };
        fs::create_dir_all(bench.counts()).unwrap();
        let file = bench.daemon.folder().join("default.nix");
        fs::write(file, bench.code()).unwrap();
        bench
    }

    /// Where the builds count: the same place for benches of one tag.
    fn counts(&self) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("{}-counts", self.tag))
    }

    fn code(&self) -> String {
        let mut code = format!(
            r#"let
  d = name: script: attrs: derivation ({{
    name = "{}-${{name}}"; system = "x86_64-linux"; builder = "/bin/sh";
    args = [ "-c" ''
      export PATH=/usr/bin:/bin
      count={}/${{name}}
      n=$(cat $count 2>/dev/null || echo 0); echo $((n + 1)) > $count
      ${{script}}
    '' ];
  }} // attrs);
  floating = {{ __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; }};
in rec {{
  multi = d "multi" "echo $n > $dev; echo same > $doc; echo same > $out" {{ outputs = [ "out" "dev" "doc" ]; }};
  several = d "several" "echo a > $dev; echo b > $out" {{ outputs = [ "out" "dev" ]; }};
  fixed = d "fixed" "printf fixed > $out" {{
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = "sha256-mSqTRVxx/t02rJu8Q5lSwEHPYURZWEcq9Hkmm42HNRM=";
  }};
  caSame = d "ca-same" "echo same > $out" floating;
  caDiffers = d "ca-differs" "echo same > $dev; echo $n > $out" (floating // {{ outputs = [ "out" "dev" ]; }});
  caDependent = d "ca-dependent" "cat $dep > $out; echo $n >> $out" (floating // {{ dep = caSame; }});
  deferred = d "deferred" "cat $dep > $out; echo $n >> $out" {{ dep = caSame; }};
  later = d "later" "echo $((n / 3)) > $out" {{ }};
  fails = d "fails" "echo no; exit 3" {{ }};
"#,
            self.tag,
            self.counts().display()
        );
        for (name, script, _) in PLANTED {
            let script = script.replace('\\', r"\\").replace('"', "\\\"");
            writeln!(code, "  {name} = d \"{name}\" \"{script}\" {{ }};").unwrap();
        }
        code + "}\n"
    }

    /// Runs tk-store beside the daemon: exit status, stdout, stderr.
    pub fn tk(&self, line: &str) -> (i32, String, String) {
        let folder = self.daemon.folder();
        let done = self.daemon.sh(&format!(
            "cd {0}; HOME={0} exec {1} {line}",
            quote(&folder.to_string_lossy()),
            quote(env!("CARGO_BIN_EXE_tk-store")),
        ));
        assert!(!done.stderr.contains("panicked"), "{line}: {done:?}");
        (done.status, done.stdout, done.stderr)
    }

    /// What [`Bench::tk`] prints, as JSON, with the exit status.
    #[track_caller]
    pub fn json(&self, line: &str) -> (i32, Vec<Value>) {
        let (status, out, err) = self.tk(line);
        match serde_json::from_str(&out) {
            Ok(Value::Array(all)) => (status, all),
            _ => panic!("{} {line}: {status}\n{out}\n{err}", self.daemon.version),
        }
    }

    /// The path of the derivation `attr`.
    pub fn drv(&self, attr: &str) -> String {
        let file = self.daemon.folder().join("default.nix");
        let asked = ["-A", attr, &file.to_string_lossy()];
        self.daemon.ask("nix-instantiate", &asked)
    }
}

impl Drop for Bench {
    /// Also what daemons kept of builds that differed, which older ones do in the common temporary
    /// folder.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.counts());
        let kept = format!("nix-build-{}-", self.tag);
        for entry in fs::read_dir(std::env::temp_dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with(&kept) {
                let _ = tk_nar::fs::remove_tree(&entry.path());
            }
        }
    }
}

#[test]
fn planted_differences() {
    let mut table = String::from("| difference | ");
    let mut rows: BTreeMap<usize, String> = BTreeMap::new();
    for version in VERSIONS {
        let Some(bench) = Bench::start(version) else {
            continue;
        };
        write!(table, "{version} | ").unwrap();
        let attrs: Vec<_> = PLANTED
            .iter()
            .map(|(name, ..)| format!("-A {name}"))
            .collect();
        let line = format!("repro check -f default.nix --json {}", attrs.join(" "));
        let (status, verdicts) = bench.json(&line);
        assert_eq!(status, 1, "{version}");
        assert_eq!(verdicts.len(), PLANTED.len(), "{version}: {verdicts:?}");
        for (i, ((name, _, expected), verdict)) in PLANTED.iter().zip(&verdicts).enumerate() {
            let found: Vec<_> = verdict["differences"].as_array().unwrap().iter().collect();
            let place = format!("{version} {name}: {verdict:#}");
            let told: Vec<_> = found.iter().map(|d| told(d)).collect();
            assert_eq!(told, *expected, "{place}");
            assert_eq!(verdict["reproducible"], expected.is_empty(), "{place}");
            assert_eq!(verdict["output"], "out", "{place}");
            let hashes = verdict["narHashes"].as_array().unwrap();
            assert_eq!(hashes.len(), 2, "{place}");
            assert_eq!(hashes[0] == hashes[1], expected.is_empty(), "{place}");
            let path = verdict["path"].as_str().unwrap();
            assert!(
                path.ends_with(name) && path.starts_with("/nix/store/"),
                "{place}"
            );
            assert_eq!(verdict["drvPath"], bench.drv(name), "{place}");
            let cell = match told.first() {
                None => "same".to_owned(),
                Some((path, _, Some(offset))) => format!("/{path} at {offset}"),
                Some((path, kind, None)) => format!("/{path} {kind}"),
            };
            write!(rows.entry(i).or_default(), "{cell} | ").unwrap();
        }
        words(&bench);
    }
    for (i, row) in rows {
        write!(table, "\n| {} | {row}", PLANTED[i].0).unwrap();
    }
    report("Builds done twice", &(table + "\n"));
}

fn told(difference: &Value) -> (&str, &str, Option<u64>) {
    let text = |key: &str| difference[key].as_str().unwrap();
    (text("path"), text("kind"), difference["offset"].as_u64())
}

/// The same for people, and of what is a derivation or a path already: no nix is run.
fn words(bench: &Bench) {
    let version = bench.daemon.version;
    let drv = bench.drv("link");
    let (status, out, err) = bench.tk(&format!("repro check --nix /nowhere/nix {drv}"));
    // It is built a third time, which leads elsewhere again.
    assert_eq!(status, 1, "{version}: {out}{err}");
    let expected = format!("different {drv}^out\n  link: the link leads to /to-0, and to /to-2\n");
    assert_eq!(out, expected, "{version}: {err}");
    let drv = bench.drv("same");
    let path = bench.daemon.ask("nix-store", &["-r", &drv]);
    let (status, out, err) = bench.tk(&format!("repro check --nix /nowhere/nix --rounds 2 {path}"));
    assert_eq!(status, 0, "{version}: {out}{err}");
    assert!(
        out.starts_with(&format!("same {drv}^out sha256-")),
        "{version}: {out}"
    );
    let file = bench.daemon.folder().join("default.nix");
    let added = ["--add", &file.to_string_lossy()];
    let source = bench.daemon.ask("nix-store", &added);
    let (status, _, err) = bench.tk(&format!("repro check {source}"));
    assert_eq!(status, 2, "{version}: {err}");
    assert!(
        err.contains("what made it is not known"),
        "{version}: {err}"
    );
    let (status, out, err) = bench.tk("repro check -f default.nix -A fails --no-log");
    assert_eq!((status, out.as_str()), (2, ""), "{version}: {err}");
    assert!(err.contains("exit status 3"), "{version}: {err}");
}

each_version!(several_outputs_and_rounds);

fn several_outputs_and_rounds(version: &'static str) {
    let Some(bench) = Bench::start(version) else {
        return;
    };
    let (status, several) = bench.json("repro check -f default.nix -A several --json");
    assert_eq!(status, 0, "{version}: {several:?}");
    let outputs: Vec<_> = several
        .iter()
        .map(|v| (&v["output"], &v["reproducible"]))
        .collect();
    assert_eq!(outputs.len(), 2, "{version}: {outputs:?}");
    assert!(
        outputs.iter().all(|(_, same)| **same == true),
        "{version}: {outputs:?}"
    );

    let (status, multi) = bench.json("repro check -f default.nix -A multi --json");
    assert_eq!(status, 1, "{version}");
    let of = |output| multi.iter().find(|v| v["output"] == output).unwrap();
    assert_eq!(of("dev")["reproducible"], false, "{version}: {multi:?}");
    assert_eq!(of("dev")["differenceCount"], 1, "{version}: {multi:?}");
    for output in ["doc", "out"] {
        // Nix compares up to the first output that differs.
        let verdict = of(output);
        assert_eq!(
            verdict["reproducible"],
            Value::Null,
            "{version}: {verdict:#}"
        );
        assert!(
            verdict["note"].as_str().unwrap().contains("another output"),
            "{verdict:#}"
        );
    }

    let (status, fixed) = bench.json("repro check -f default.nix -A fixed --json");
    assert_eq!(
        (status, &fixed[0]["reproducible"]),
        (0, &true.into()),
        "{fixed:?}"
    );

    // Each third build differs from those before: the second of these, where the first does not.
    let (status, twice) = bench.json("repro check -f default.nix -A later --json");
    assert_eq!(
        (status, &twice[0]["reproducible"]),
        (0, &true.into()),
        "{version}: {twice:?}"
    );
    let (status, more) = bench.json("repro check -f default.nix -A later --json --rounds 9");
    let place = format!("{version}: {more:?}");
    assert_eq!(
        (status, &more[0]["reproducible"]),
        (1, &false.into()),
        "{place}"
    );
    assert_eq!(more[0]["differences"][0]["right"], "1\\n", "{place}");
    assert_eq!(more[0]["compared"], serde_json::json!([0, 2]), "{place}");
    assert_eq!(more[0]["narHashes"].as_array().unwrap().len(), 3, "{place}");
}

each_version!(content_addressed);

fn content_addressed(version: &'static str) {
    let Some(bench) = Bench::start(version) else {
        return;
    };
    let attrs = "-A caSame -A caDiffers -A caDependent -A deferred";
    let line = format!("repro check -f default.nix --json {attrs}");
    let (status, verdicts) = bench.json(&line);
    assert_eq!(status, 1, "{version}: {verdicts:?}");
    let told: Vec<_> = verdicts
        .iter()
        .map(|v| {
            let name = v["path"].as_str().unwrap_or("?");
            let name = name
                .split_once(&format!("{}-", bench.tag))
                .map_or(name, |(_, n)| n);
            format!("{name} {} {}", v["reproducible"], v["differenceCount"])
        })
        .collect();
    let expected = [
        "ca-same true 0",
        "ca-differs-dev true 0",
        "ca-differs false 1",
        "ca-dependent false 1",
        "deferred false 1",
    ];
    assert_eq!(told, expected, "{version}: {verdicts:#?}");
    for verdict in &verdicts[3..] {
        assert_eq!(
            verdict["differences"][0]["offset"], 5,
            "{version}: {verdict:#}"
        );
    }
    // Not taken from what was built before.
    let (status, again) = bench.json("repro check -f default.nix --json -A caDiffers");
    assert_eq!(status, 1, "{version}");
    let right = &again.iter().find(|v| v["output"] == "out").unwrap()["differences"][0]["right"];
    assert_eq!(right, "2\\n", "{version}: {again:?}");
}
