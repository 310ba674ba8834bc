use super::{Lab, count, wait_for};
use crate::support::{RigDaemon, each_version};
use std::{env::consts, fs, sync::Arc, thread};

const GRAPH: &str = r#"
let
  d = name: script: attrs: derivation ({
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin";
  } // attrs);
in rec {
  base = d "base" "echo said by base; echo base $(cat $src) > $out" { src = builtins.toFile "src" "of a file"; };
  lib = d "lib" "mkdir $out; echo $dev > $out/lib; cat $base > $dev" { inherit base; outputs = [ "out" "dev" ]; };
  fixed = d "fixed" "printf fixed > $out" {
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "fixed";
  };
  top = d "top" "cat $lib/lib $fixed > $out; echo $base >> $out" { inherit base lib fixed; };
  failing = d "failing" "echo failing >> @LAB@/tries; echo last words >&2; exit 3" { };
  above = d "above" "echo $failing > $out" { inherit failing; };
}
"#;

each_version!(builds_on_other_versions);

/// A graph of derivations, whatever the machine's version: outputs arrive, are what real Nix takes for
/// right, and are not built again.
fn builds_on_other_versions(version: &'static str) {
    let (Some(lab), Some(builder)) = (Lab::new(), RigDaemon::start(version, true)) else {
        return;
    };
    lab.host("alpha", &builder);
    let top = lab.instantiate(GRAPH, "top");
    let lib = lab.instantiate(GRAPH, "lib");
    let wanted = [format!("{top}^out"), format!("{lib}^*")];
    let machine = ["--builder", "ssh-ng://alpha - - 4"];
    let args = [&wanted[0], &wanted[1], machine[0], machine[1]];
    let (results, said) = lab.build(&args, 0);
    assert_eq!(results.len(), 2, "{version}: {results:?}");
    for result in &results {
        assert_eq!(result["status"], "Built", "{version}: {result}");
        assert_eq!(result["machine"], "ssh-ng://alpha", "{version}: {result}");
    }
    assert!(said.contains("base> said by base"), "{version}: {said}");
    let out = results[0]["outputs"]["out"].as_str().unwrap();
    let dev = results[1]["outputs"]["dev"].as_str().unwrap();
    assert_eq!(results[0]["drvPath"], top.as_str());

    let (source, place) = (&lab.source, format!("{version}: {said}"));
    source.ask("nix-store", &["--verify-path", out, dev]);
    let content = source.ask("cat", &[out]);
    assert!(content.starts_with(&format!("{dev}\nfixed")), "{place}");
    let deriver = source.ask("nix-store", &["-q", "--deriver", out]);
    assert_eq!(deriver, top, "{place}");
    let closure = |at: &RigDaemon| at.ask("nix-store", &["-qR", out]);
    assert_eq!(closure(source), closure(&builder), "{place}");
    // What nobody wanted stayed there.
    let checked = source.run("nix-store", &["--verify", "--check-contents"]);
    assert_eq!(checked.status, 0, "{checked:?}");

    // The logs are here, as after a build of Nix's own.
    let base = lab.instantiate(GRAPH, "base");
    assert_eq!(
        source.ask("nix", &["log", &base]),
        "said by base",
        "{place}"
    );
    let ours = lab.tk(&["log", &base]);
    assert_eq!(ours.stdout, "said by base\n", "{ours:?}");

    let calls = lab.calls("alpha");
    let (results, _) = lab.build(&args, 0);
    assert_eq!(results[0]["status"], "AlreadyValid", "{results:?}");
    assert_eq!(results[1]["outputs"]["dev"], dev);
    assert_eq!(lab.calls("alpha"), calls, "nothing was left to ask");

    // Gone here and there at the machine: fetched, not built.
    source.ask("nix-store", &["--delete", out]);
    let (results, said) = lab.build(&args, 0);
    assert_eq!(results[0]["status"], "AlreadyValid", "{said}");
    source.ask("nix-store", &["--verify-path", out]);
}

each_version!(untrusted_accounts);

/// An account that is not trusted still builds what proves itself; where that does not do, it is told what
/// to change, and a machine that trusts it takes over.
fn untrusted_accounts(version: &'static str) {
    let source = RigDaemon::start("2.34", true);
    let (Some(source), Some(wary)) = (source, RigDaemon::start(version, false)) else {
        return;
    };
    let lab = Lab::with(source);
    lab.host("wary", &wary);
    let top = format!("{}^out", lab.instantiate(GRAPH, "top"));
    let (results, said) = lab.build(&[&top, "--builder", "ssh-ng://wary"], 0);
    assert_eq!(results[0]["machine"], "ssh-ng://wary", "{version}: {said}");
    let advice = "add it to trusted-users in the nix.conf of that machine";
    assert!(
        said.contains("the account at ssh-ng://wary is not trusted there"),
        "{said}"
    );
    assert!(said.contains(advice), "{version}: {said}");
    let out = results[0]["outputs"]["out"].as_str().unwrap();
    lab.source.ask("nix-store", &["--verify-path", out]);

    // An input that nobody signed, and that cannot be built there.
    let input = lab.instantiate(LONELY, "input");
    let input = lab.source.ask("nix-store", &["-r", &input]);
    let code = LONELY.replace("@INPUT@", &input);
    let drv = format!("{}^out", lab.instantiate(&code, "needs"));
    let (results, said) = lab.build(&[&drv, "--builder", "ssh-ng://wary"], 2);
    assert_eq!(results[0]["success"], false, "{version}: {results:?}");
    assert!(said.contains(advice), "{version}: {said}");
    assert!(
        results[0]["errorMsg"].as_str().unwrap().contains(advice),
        "{version}: {results:?}"
    );
    if version != "2.26" {
        return;
    }
    let Some(kind) = RigDaemon::start(version, true) else {
        return;
    };
    lab.host("kind", &kind);
    let machines = "ssh-ng://wary - - 1 100\nssh-ng://kind";
    let (results, said) = lab.build(&[&drv, "--builders", machines], 0);
    assert_eq!(results[0]["machine"], "ssh-ng://kind", "{said}");
}

const LONELY: &str = r#"
let
  d = name: script: attrs: derivation ({
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin";
  } // attrs);
in {
  input = d "input" "echo lonely > $out" { };
  needs = d "needs" "cat $input > $out" { input = builtins.storePath "@INPUT@"; };
}
"#;

const MEETING: &str = r#"
let
  d = name: script: attrs: derivation ({
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" ("until_there() { n=0; while [ ! -e $1 ]; do sleep 0.05; n=$((n+1)); [ $n -lt 2400 ] || exit 7; done; }; " + script) ];
    PATH = "/usr/bin:/bin";
  } // attrs);
in {
  slow = d "slow" "echo here >> @LAB@/begun; until_there @LAB@/go; echo slow > $out" { };
  one = d "one" "echo > @LAB@/one; until_there @LAB@/two; echo one > $out" { };
  two = d "two" "echo > @LAB@/two; until_there @LAB@/one; echo two > $out" { };
}
"#;

/// The machine that was picked is killed while it builds: another one that fits does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_dies() {
    let (Some(lab), Some(alpha), Some(beta)) = (
        Lab::new(),
        RigDaemon::start("2.26", true),
        RigDaemon::start("2.34", true),
    ) else {
        return;
    };
    lab.host("alpha", &alpha);
    lab.host("beta", &beta);
    let drv = format!("{}^out", lab.instantiate(MEETING, "slow"));
    let lab = Arc::new(lab);
    let building = thread::spawn({
        let lab = lab.clone();
        move || {
            lab.build(
                &[&drv, "--builders", "ssh-ng://alpha - - 1 10; ssh-ng://beta"],
                0,
            )
        }
    });
    let begun = lab.path("begun");
    wait_for(|| count(&begun) == 1);
    assert_eq!((lab.calls("alpha") > 0, lab.calls("beta")), (true, 0));
    alpha.kill().await;
    wait_for(|| count(&begun) == 2);
    fs::write(lab.path("go"), "").unwrap();
    let (results, said) = building.join().unwrap();
    assert_eq!(results[0]["machine"], "ssh-ng://beta", "{said}");
    assert!(
        said.contains("slow.drv is not built on ssh-ng://alpha: "),
        "{said}"
    );
    let out = results[0]["outputs"]["out"].as_str().unwrap();
    lab.source.ask("nix-store", &["--verify-path", out]);
}

/// A build that fails has failed: it is not tried elsewhere, and what needs it is told of.
#[test]
fn a_build_that_fails_is_not_tried_elsewhere() {
    let (Some(lab), Some(alpha), Some(beta)) = (
        Lab::new(),
        RigDaemon::start("2.26", true),
        RigDaemon::start("2.34", true),
    ) else {
        return;
    };
    lab.host("alpha", &alpha);
    lab.host("beta", &beta);
    let machines = ["--builders", "ssh-ng://alpha; ssh-ng://beta"];
    let failing = format!("{}^out", lab.instantiate(GRAPH, "failing"));
    let (results, said) = lab.build(&[&failing, machines[0], machines[1]], 1);
    assert_eq!(results[0]["status"], "PermanentFailure", "{said}");
    assert!(said.contains("ended with exit status 3"), "{said}");
    assert!(said.contains("  > last words"), "{said}");
    assert_eq!(count(&lab.path("tries")), 1, "{said}");

    let above = format!("{}^out", lab.instantiate(GRAPH, "above"));
    let base = format!("{}^out", lab.instantiate(GRAPH, "base"));
    let args = [&above, &base, "-k", machines[0], machines[1]];
    let (results, said) = lab.build(&args, 1);
    assert_eq!(results[0]["status"], "DependencyFailed", "{said}");
    assert_eq!(results[1]["status"], "Built", "{said}");
    assert!(said.contains("failed with exit code 3"), "{said}");
    assert_eq!(count(&lab.path("tries")), 2, "{said}");
}

const CHOICE: &str = r#"
let
  d = name: attrs: derivation ({
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
  } // attrs);
in {
  plain = d "plain" { };
  big = d "big" { requiredSystemFeatures = [ "big-parallel" ]; };
  bench = d "bench" { requiredSystemFeatures = [ "benchmark" ]; };
  old = d "old" { system = "i686-linux"; };
  odd = d "odd" { requiredSystemFeatures = [ "moon" ]; };
  far = d "far" { system = "m68k-amiga"; };
}
"#;

/// Systems, features and mandatory features decide; what fits nobody is told with what there is.
#[test]
fn the_right_machine() {
    let (Some(lab), Some(alpha), Some(beta)) = (
        Lab::new(),
        RigDaemon::start("2.26", true),
        RigDaemon::start("2.34", true),
    ) else {
        return;
    };
    lab.host("alpha", &alpha);
    lab.host("beta", &beta);
    let file = lab.path("machines");
    let text = "# two of them\nssh-ng://alpha - - 2 1 big-parallel\n\
                ssh-ng://beta i686-linux,x86_64-linux,aarch64-linux - 2 50 - benchmark\n\
                ssh-ng://beta i686-linux - 1\n";
    fs::write(&file, text).unwrap();
    let mut expected = vec![
        ("plain", Some("ssh-ng://alpha")),
        ("big", Some("ssh-ng://alpha")),
        ("bench", Some("ssh-ng://beta")),
        ("odd", None),
        ("far", None),
    ];
    if consts::ARCH == "x86_64" {
        expected.push(("old", Some("ssh-ng://beta")));
    }
    let builders = format!("@{file}");
    let build = |attr: &str, status: i32| {
        let drv = format!("{}^out", lab.instantiate(CHOICE, attr));
        let (mut results, said) = lab.build(&[&drv, "--builders", &builders], status);
        (results.remove(0), said)
    };
    // One by one: a machine that is busy would be left out for that.
    for (attr, machine) in expected {
        let (result, said) = build(attr, if machine.is_some() { 0 } else { 2 });
        assert_eq!(result["machine"].as_str(), machine, "{attr}: {said}");
        assert_eq!(result["success"], machine.is_some(), "{attr}: {said}");
    }
    let none = |attr: &str| build(attr, 2).0["errorMsg"].as_str().unwrap().to_owned();
    let told = none("odd");
    assert!(told.contains("with the features {moon}"), "{told}");
    assert!(told.contains("ssh-ng://alpha"), "{told}");
    assert!(
        told.contains("only for what asks for {benchmark}"),
        "{told}"
    );
    assert!(none("far").contains("'m68k-amiga'"));
}

/// Two builds that wait for each other are under way at once, on two machines with a slot each.
#[test]
fn several_at_once() {
    let (Some(lab), Some(alpha), Some(beta)) = (
        Lab::new(),
        RigDaemon::start("2.34", true),
        RigDaemon::start("2.34", true),
    ) else {
        return;
    };
    lab.host("alpha", &alpha);
    lab.host("beta", &beta);
    let [one, two] = ["one", "two"].map(|attr| format!("{}^out", lab.instantiate(MEETING, attr)));
    let args = [
        &one,
        &two,
        "--builder",
        "ssh-ng://alpha",
        "--builder",
        "ssh-ng://beta",
    ];
    let (results, said) = lab.build(&args, 0);
    let mut machines: Vec<_> = results
        .iter()
        .map(|r| r["machine"].as_str().unwrap())
        .collect();
    machines.sort_unstable();
    assert_eq!(machines, ["ssh-ng://alpha", "ssh-ng://beta"], "{said}");
}

/// A store here that does not trust the user takes no outputs, and says what to change; signed
/// ones it takes.
#[test]
fn an_untrusted_user_here() {
    let folder = tempfile::tempdir().unwrap();
    let key = tk_narinfo::SecretKey::generate("out-1").unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, key.to_text().as_str()).unwrap();
    let conf = format!("trusted-public-keys = {}", key.public());
    let source = RigDaemon::start_with("2.34", false, &[&conf, "max-jobs = 0"]);
    let (Some(source), Some(alpha)) = (source, RigDaemon::start("2.34", true)) else {
        return;
    };
    let lab = Lab::with(source);
    lab.host("alpha", &alpha);
    let base = format!("{}^out", lab.instantiate(GRAPH, "base"));
    let (results, said) = lab.build(&[&base, "--builder", "ssh-ng://alpha"], 2);
    let told = results[0]["errorMsg"].as_str().unwrap();
    assert!(
        told.contains("add it to trusted-users in the nix.conf here"),
        "{told} {said}"
    );
    let sign = ["--builders-sign-key", file.to_str().unwrap()];
    let args = [&base, "--builder", "ssh-ng://alpha", sign[0], sign[1]];
    let (results, _) = lab.build(&args, 0);
    let out = results[0]["outputs"]["out"].as_str().unwrap();
    lab.source.ask("nix-store", &["--verify-path", out]);
}
