//! Derivations whose outputs only building tells, built elsewhere: what they turned out to be is known
//! here afterwards, to real Nix too.

use super::Lab;
use crate::support::RigDaemon;

const GRAPH: &str = r#"
let
  d = name: script: attrs: derivation ({
    inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin";
  } // attrs);
  floating = { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
in rec {
  base = d "base" "echo base > $out" { };
  one = d "one" "cat $base > $out; echo $base >> $out" (floating // { inherit base; });
  two = d "two" "mkdir $out; echo $dev > $out/dev; echo $one > $dev"
    (floating // { inherit one; outputs = [ "out" "dev" ]; });
  deferred = d "deferred" "cat $one $two/dev > $out" { inherit one two; };
  own = d "own" "echo $out > $out" floating;
  # Two ways to one content, and what becomes one derivation when that is known.
  x1 = d "x" "echo x > $out" floating;
  x2 = d "x" "echo x > $out; true" floating;
  y1 = d "y" "cat $x > $out" (floating // { x = x1; });
  y2 = d "y" "cat $x > $out" (floating // { x = x2; });
}
"#;

/// The outputs arrive, are what they should be, and real Nix builds nothing afterwards; whatever the
/// versions here and there, and also where the machine does not trust the account.
#[test]
fn content_addressed_derivations() {
    for (here, there, trusted) in [
        ("2.8", "2.34", true),
        ("2.26", "2.26", true),
        ("2.34", "2.8", true),
        ("2.34", "2.34", true),
        ("2.34", "2.26", false),
    ] {
        let place = format!("{here} to {there}, trusted: {trusted}");
        let source = RigDaemon::start_with(here, true, &["max-jobs = 0"]);
        let (Some(source), Some(alpha)) = (source, RigDaemon::start(there, trusted)) else {
            continue;
        };
        let lab = Lab::with(source);
        lab.host("alpha", &alpha);
        let machine = ["--builder", "ssh-ng://alpha - - 2 1 ca-derivations"];
        let attrs = ["deferred", "two", "one"];
        let wanted = attrs.map(|attr| format!("{}^*", lab.instantiate(GRAPH, attr)));
        let args = [&wanted[0], &wanted[1], &wanted[2], machine[0], machine[1]];
        let (results, said) = lab.build(&args, 0);
        let source = &lab.source;
        for (result, attr) in results.iter().zip(attrs) {
            assert_eq!(result["status"], "Built", "{place}: {result} {said}");
            let out = result["outputs"]["out"].as_str().unwrap();
            source.ask("nix-store", &["--verify-path", out]);
            let code = lab.path("code.nix");
            let nix = source.run("nix-build", &[&code, "-A", attr, "--no-out-link"]);
            assert_eq!(nix.status, 0, "{place}: {nix:?}");
            assert_eq!(nix.stdout.lines().next(), Some(out), "{place}");
        }
        let content = source.ask("cat", &[results[0]["outputs"]["out"].as_str().unwrap()]);
        let dev = results[1]["outputs"]["dev"].as_str().unwrap();
        assert!(content.starts_with("base\n"), "{place}: {content}");
        assert!(content.ends_with(dev), "{place}: {content}");

        // What it became is known, too.
        let wanted = ["y1", "x2"].map(|attr| format!("{}^out", lab.instantiate(GRAPH, attr)));
        let (results, _) = lab.build(&[&wanted[0], &wanted[1], machine[0], machine[1]], 0);
        let code = lab.path("code.nix");
        let y = source.ask("nix-build", &[&code, "-A", "y2", "--no-out-link"]);
        assert_eq!(results[0]["outputs"]["out"], y.as_str(), "{place}");
        // 2.8 hashes what refers to itself in another way than later versions.
        if ![here, there].contains(&"2.8") {
            let own = format!("{}^out", lab.instantiate(GRAPH, "own"));
            let (results, said) = lab.build(&[&own, machine[0], machine[1]], 0);
            assert_eq!(results[0]["status"], "Built", "{place}: {said}");
        }
        let checked = source.run("nix-store", &["--verify", "--check-contents"]);
        assert_eq!(checked.status, 0, "{place}: {checked:?}");

        let calls = lab.calls("alpha");
        let (results, said) = lab.build(&args, 0);
        assert_eq!(
            results[0]["status"], "AlreadyValid",
            "{place}: {results:?} {said}"
        );
        assert_eq!(lab.calls("alpha"), calls, "nothing was left to ask");
    }
}

/// A machine that does not say that it can gets none of them: the store here builds them. What depends
/// on them is nothing special any more.
#[test]
fn machines_without_the_feature() {
    let source = RigDaemon::start("2.34", true);
    let (Some(source), Some(alpha)) = (source, RigDaemon::start("2.34", true)) else {
        return;
    };
    let lab = Lab::with(source);
    lab.host("alpha", &alpha);
    let [one, deferred] = ["one", "deferred"].map(|attr| lab.instantiate(GRAPH, attr));
    let wanted = [format!("{one}^out"), format!("{deferred}^out")];
    let args = [&wanted[0], &wanted[1], "--builder", "ssh-ng://alpha"];
    let (results, said) = lab.build(&args, 0);
    assert_eq!(results[0]["status"], "Built", "{said}");
    assert_ne!(results[0]["machine"], "ssh-ng://alpha", "{said}");
    assert_eq!(results[1]["status"], "Built", "{said}");
    assert_eq!(results[1]["machine"], "ssh-ng://alpha", "{said}");
}

/// A store on disk, which builds nothing itself, gets outputs and what they turned out to be; if it keeps
/// no such things, it says so before anything is built.
#[test]
fn stores_on_disk() {
    let (Some(lab), Some(alpha)) = (Lab::new(), RigDaemon::start("2.34", true)) else {
        return;
    };
    lab.host("alpha", &alpha);
    let drv = lab.instantiate(GRAPH, "deferred");
    let wanted = format!("{drv}^out");
    let machine = "ssh-ng://alpha - - 2 1 ca-derivations";

    // Real Nix makes the tables for them when it makes the store.
    let with = lab.path("with");
    lab.source
        .ask("nix", &["copy", "--no-check-sigs", "--to", &with, &drv]);
    let args = ["--store", &with, &wanted, "--builder", machine];
    let (results, said) = lab.build(&args, 0);
    assert_eq!(results[0]["status"], "Built", "{said}");
    let (results, said) = lab.build(&args, 0);
    assert_eq!(results[0]["status"], "AlreadyValid", "{said}");
    let out = results[0]["outputs"]["out"].as_str().unwrap();
    let code = lab.path("code.nix");
    let args = ["--store", &with, &code, "-A", "deferred", "--no-out-link"];
    let nix = lab.source.run("nix-build", &args);
    assert_eq!((nix.status, nix.stdout.trim_end()), (0, out), "{nix:?}");

    let without = lab.path("without");
    let args = [
        "copy",
        &drv,
        "--from",
        "daemon",
        "--to",
        &without,
        "--no-check-sigs",
    ];
    let copied = lab.tk(&args);
    assert_eq!(copied.status, 0, "{copied:?}");
    let args = ["--store", &without, &wanted, "--builder", machine];
    let (results, said) = lab.build(&args, 1);
    assert!(said.contains("keeps no realisations"), "{results:?} {said}");
}
