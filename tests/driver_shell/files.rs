//! Plain files of Nix code, and derivations: what the shells of flakes can do, these can.

use super::{Bench, each, program};
use serde_json::Value;
use std::fs;

/// What the file has to say, run with `shell` in its folder.
const ASK: &str = "-f ../plain -A shell -- sh -c 'echo $GREETING, $PART, $DATA, $HERE; exit 7'";

impl Bench {
    /// A project without flakes, which imports a file of another folder.
    fn with_plain(self) -> Bench {
        for folder in ["plain/nix", "elsewhere", "channel", "other-channel"] {
            fs::create_dir_all(self.path(folder)).unwrap();
        }
        for (file, text) in [
            ("plain/default.nix", PLAIN),
            ("plain/nix/data.json", r#"{"text": "data"}"#),
            ("elsewhere/part.nix", "import ./deeper.nix"),
            (
                "elsewhere/deeper.nix",
                "(builtins.fromJSON (builtins.readFile ./part.json)).text",
            ),
            ("elsewhere/part.json", r#"{"text": "part"}"#),
            ("elsewhere/here.sh", "here\n"),
            ("channel/default.nix", "\"stable\""),
            ("other-channel/default.nix", "\"unstable\""),
        ] {
            self.write(file, text);
        }
        self
    }

    pub(super) fn plain(version: &'static str) -> Option<Bench> {
        Some(Bench::start(version)?.with_plain())
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    /// What the shell of the file says, with a nix that may not be run if it is `warm`.
    #[track_caller]
    fn plainly(&self, before: &str, warm: bool) -> String {
        let path = if warm {
            format!("PATH={}:$PATH; ", self.show("bad"))
        } else {
            String::new()
        };
        let asked = self.asked();
        let done = self.sh(&format!("{before}{path}tk shell {ASK}"));
        assert_eq!(done.status, 7, "{} {done:?}", self.daemon.version);
        let ran: Vec<_> = self.asked().split_off(asked.len());
        let expected: &[&str] = if warm {
            &[]
        } else {
            &["eval", "print-dev-env"]
        };
        let asks = ["--version", "config", "show-config"];
        let ran: Vec<_> = ran.iter().filter(|a| !asks.contains(&a.as_str())).collect();
        assert_eq!(ran, expected, "{} after {before}", self.daemon.version);
        done.stdout.trim_end().to_owned()
    }
}

/// Makes the entries say that they are two hours old.
fn age(bench: &Bench) {
    for entry in fs::read_dir(bench.path("cache/tk-store/env/entries")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json["made"] = (json["made"].as_u64().unwrap() - 7200).into();
        fs::write(&path, json.to_string()).unwrap();
    }
}

fn each_plain(name: &str, test: fn(Bench)) {
    let mut ran = String::new();
    for version in crate::support::VERSIONS {
        if let Some(bench) = Bench::plain(version) {
            test(bench);
            ran.push_str(&format!("  {version}"));
        }
    }
    crate::support::report("shells", &format!("  {name:<40}{ran}\n"));
}

#[test]
fn entering() {
    each_plain("shell -f: cold, warm, invalidated", |bench| {
        let all = "good day, part, data, here";
        assert_eq!(bench.plainly("", false), all);
        assert_eq!(bench.plainly("", true), all);
        bench.write("plain/main.c", "no Nix code");
        bench.write("elsewhere/main.c", "no Nix code");
        assert_eq!(bench.plainly("", true), all);

        // The file itself, data in its folder, what it imports from another folder and data beside
        // that, what it copies to the store.
        for (file, from, to) in [
            ("plain/default.nix", "good day", "good night"),
            ("plain/nix/data.json", "data", "dates"),
            (
                "elsewhere/deeper.nix",
                "(builtins.fromJSON (builtins.readFile ./part.json)).text",
                "\"party\"",
            ),
            ("elsewhere/part.json", "part", "parted"),
            ("elsewhere/here.sh", "here", "there"),
        ] {
            let old = fs::read_to_string(bench.path(file)).unwrap();
            assert!(old.contains(from), "{file}");
            let new = old.replace(from, to);
            bench.write(file, &new);
            let said = bench.plainly("", false);
            let other = if to.starts_with('"') { "party" } else { to };
            assert!(said.contains(other), "{file}: {said}");
            assert_eq!(bench.plainly("", true), said, "{file}");
            // What was there before is known.
            bench.write(file, &old);
            assert_eq!(bench.plainly("", true), all, "{file}");
        }

        // Files that come and go.
        bench.write("plain/nix/new.nix", "1");
        bench.plainly("", false);
        fs::remove_file(bench.path("plain/nix/new.nix")).unwrap();
        assert_eq!(bench.plainly("", true), all);
    });
}

#[test]
fn what_the_machine_has() {
    each_plain("shell -f: search path, arguments", |bench| {
        let greeting = "good day, part, data, here";
        assert_eq!(bench.plainly("", false), greeting);
        // Its value, and where its links lead.
        let channel = "ln -sfn channel ../link; export NIX_PATH=channel=$PWD/../link; ";
        assert_eq!(
            bench.plainly(channel, false),
            greeting.replace("day", "day stable")
        );
        bench.plainly(channel, true);
        let flipped = channel.replace(" channel ", " other-channel ");
        assert_eq!(
            bench.plainly(&flipped, false),
            greeting.replace("day", "day unstable")
        );
        bench.plainly(&flipped, true);
        bench.write("other-channel/default.nix", "\"rolling\"");
        assert_eq!(
            bench.plainly(&flipped, false),
            greeting.replace("day", "day rolling")
        );
        bench.plainly(channel, true);
        assert_eq!(bench.plainly("", true), greeting);

        let ask = "tk shell -f ../plain -A shell";
        let say = "-- sh -c 'echo $GREETING'";
        let found = bench.ask(&format!("{ask} -I channel=../channel {say}"));
        assert_eq!(found, "good day stable");
        for (who, word) in [("you", "you"), ("all", "all"), ("you", "you")] {
            let said = bench.ask(&format!("{ask} --argstr who {who} {say}"));
            assert_eq!(said, format!("good day {word}"));
        }
        let before = bench.evaluations();
        bench.ask(&format!("{ask} --argstr who you {say}"));
        assert_eq!(bench.evaluations(), before);
        bench.ask(&format!(
            "NIXPKGS_ALLOW_UNFREE=1 $TK shell -f ../plain -A shell {say}"
        ));
        assert_eq!(bench.evaluations(), before + 1, "a setting of nixpkgs");
        bench.ask(&format!("{ask} --refresh {say}"));
        assert_eq!(bench.evaluations(), before + 2, "asked for");
    });
}

#[test]
fn other_spellings() {
    let Some(bench) = Bench::plain("2.34") else {
        return;
    };
    let say = "-- sh -c 'echo $GREETING'";
    for command in [
        "cd ../plain; tk shell -A shell",
        "cd ../plain; tk shell -f default.nix -A shell",
        "tk shell -f ../plain/one.nix",
        "tk shell -f '<one>' -I one=../plain/one.nix",
        "tk shell --impure -E '(import ../plain { }).shell'",
        "tk shell --impure -E 'import ../plain' -A shell",
    ] {
        bench.write("plain/one.nix", "(import ./. { }).shell");
        assert_eq!(
            bench.ask(&format!("{command} {say}")),
            "good day",
            "{command}"
        );
        let bad = bench.show("bad");
        let warm = format!("PATH={bad}:$PATH; {command} {say}");
        assert_eq!(bench.ask(&warm), "good day", "{command}");
        bench.write("elsewhere/part.nix", "\"1\"");
        bench.ask(&format!("{command} -- sh -c 'test $PART = 1'"));
        bench.write("elsewhere/part.nix", "import ./deeper.nix");
    }
    for (command, words) in [
        ("-f ../plain -A nothing -- true", "nothing"),
        ("-f ../nowhere -- true", "../nowhere"),
        ("-f ../plain -- true", "name the attribute of one"),
        ("-f ../elsewhere/part.nix -- true", "neither a derivation"),
        ("-E 'throw \"no such luck\"' -- true", "no such luck"),
        (
            "--impure -E 'import (import ../plain { }).broken' -- true",
            "it is broken",
        ),
        (". -f ../plain -- true", "cannot be used with"),
    ] {
        let done = bench.sh(&format!("tk shell {command}"));
        assert_eq!(done.status, 2, "{command}: {done:?}");
        assert!(done.stderr.contains(words), "{command}: {done:?}");
        assert!(
            !done.stderr.contains("executing builder"),
            "{command}: {done:?}"
        );
    }
}

#[test]
fn what_is_fetched_counts_for_a_while() {
    each_plain("shell -f: what nothing pins", |bench| {
        bench.ask("cd ..; tar cf plain.tar plain");
        let fetched = bench.show("plain.tar");
        let enter = |bench: &Bench, file: &str| {
            let before = bench.evaluations();
            bench.ask(&format!("tk shell -f ../{file} -A shell -- true"));
            bench.evaluations() - before
        };
        bench.write(
            "elsewhere/default.nix",
            "{ shell = (import ../plain { }).shell; }",
        );
        let text = format!("import (fetchTarball \"file://{fetched}\") {{ }}");
        // What it imports is not in the tarball.
        let text = format!("{{ shell = ({text}).hooked; }}");
        bench.write("fetching.nix", &text);
        for (file, again) in [("elsewhere", 0), ("fetching.nix", 1)] {
            assert_eq!(enter(&bench, file), 1, "{file}");
            assert_eq!(enter(&bench, file), 0, "{file}");
            age(&bench);
            // Fetched lately, it is asked for all the same.
            assert_eq!(enter(&bench, file), again, "{file}");
            age(&bench);
            assert_eq!(enter(&bench, file), again, "{file}");
        }
        // What is pinned is not asked for once it is there.
        let hash = bench.ask(
            "mkdir ../unpacked; tar xf ../plain.tar -C ../unpacked; nix-hash --type sha256 ../unpacked/plain",
        );
        bench.write(
            "fetching.nix",
            &text.replace(
                &format!("\"file://{fetched}\""),
                &format!("{{ url = \"file://{fetched}\"; sha256 = \"{hash}\"; }}"),
            ),
        );
        assert_eq!(enter(&bench, "fetching.nix"), 1);
        age(&bench);
        enter(&bench, "fetching.nix");
        age(&bench);
        assert_eq!(enter(&bench, "fetching.nix"), 0, "it is pinned");
        bench.ask("tk shell --offline --refresh -f ../elsewhere -A shell -- true");
        age(&bench);
        let before = bench.evaluations();
        bench.ask("tk shell --offline -f ../elsewhere -A shell -- true");
        assert_eq!(bench.evaluations(), before + 1, "offline");
    });
}

#[test]
fn what_changes_meanwhile() {
    let Some(bench) = Bench::plain("2.34") else {
        return;
    };
    // A nix that evaluates what there was; a moment later it is something else.
    let part = bench.show("elsewhere/part.nix");
    let script = format!(
        "#!/bin/sh\nnix.real \"$@\"; status=$?\n\
         case $1 in eval) echo e >>../evals; echo '\"changed\"' >{part};; esac\nexit $status\n"
    );
    program(&bench.path("changes/nix"), &script);
    let done = bench.ask(
        "ln -s \"$NIX_RIG_BIN/nix\" ../changes/nix.real\n\
         export PATH=$PWD/../changes:$PATH; tk shell -f ../plain -A shell -- sh -c 'echo $PART'",
    );
    assert_eq!(done, "changed");
}

#[test]
fn twenty_at_once() {
    each_plain("shell -f: twenty at once, evaluated once", |bench| {
        let done = bench.ask(
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do\n\
             tk shell -f ../plain -A shell -- sh -c 'echo $GREETING' & done; wait",
        );
        assert_eq!(done.lines().count(), 20, "{done}");
        assert!(done.lines().all(|line| line == "good day"), "{done}");
        assert_eq!(bench.evaluations(), 1);
    });
}

#[test]
fn hooks_and_leases() {
    each_plain("shell -f: hooks and leases", |bench| {
        let ask = "tk shell -f ../plain -A shell -- sh -c 'echo in $HOOKED'";
        let held = bench.sh(ask);
        assert_eq!((held.status, held.stdout.as_str()), (0, "in\n"), "{held:?}");
        // What it says to do does it.
        let said = held.stderr.split("'tk-store env allow ").nth(1).unwrap();
        let said = said.split('\'').next().unwrap();
        assert_eq!(said, "-f ../plain -A shell", "{held:?}");
        assert!(
            bench
                .ask(&format!("tk env allow {said}"))
                .contains("echo hooked")
        );
        assert_eq!(bench.sh(ask).stdout, "hooked\nin yes\n");
        let other = "tk shell -f ../plain -A hooked -- sh -c 'echo in $HOOKED'";
        assert_eq!(bench.sh(other).stdout, "in\n", "another attribute");
        let text = PLAIN.replace("echo hooked", "echo changed");
        bench.write("plain/default.nix", &text);
        assert_eq!(bench.sh(ask).stdout, "in\n", "another text");

        // Paths of our own, which a lease keeps.
        let text = PLAIN.replace("good day", &bench.show("day"));
        bench.write("plain/default.nix", &text);
        let collect = "nix-store --gc >/dev/null 2>&1";
        bench.ask(&format!("{ask}; {collect}; tk env gc"));
        let before = bench.evaluations();
        bench.ask(ask);
        assert_eq!(bench.evaluations(), before, "the lease kept it");
        bench.ask(&format!(
            "rm -r ../state/tk-store/leases/*; {collect}; {ask}"
        ));
        assert_eq!(bench.evaluations(), before + 1);
        let list: Vec<Value> = serde_json::from_str(&bench.ask("tk env list --json")).unwrap();
        let name = format!("shell of {}", bench.show("plain"));
        assert!(
            list.iter().any(|entry| entry["name"] == name.as_str()),
            "{list:?}"
        );
    });
}

#[test]
fn derivations() {
    each_plain("shell DRV, run -p DRV^OUT", |bench| {
        let drv = |attr: &str| {
            bench.ask(&format!(
                "nix --extra-experimental-features nix-command eval --raw -f ../plain {attr}.drvPath"
            ))
        };
        let (shell, tool) = (drv("shell"), drv("tool"));
        bench.ask("mv ../plain ../moved");
        let begun = bench.asked();
        let ask = |what: &str| format!("tk shell '{what}' -- sh -c 'echo $GREETING'");
        assert_eq!(bench.ask(&ask(&shell)), "good day");
        let ran = bench.asked().split_off(begun.len());
        assert!(!ran.contains(&"eval".to_owned()), "{ran:?}");
        let bad = bench.show("bad");
        let warm = format!("PATH={bad}:$PATH; {}", ask(&shell));
        assert_eq!(bench.ask(&warm), "good day");
        assert_eq!(bench.ask(&ask(&format!("{shell}^*"))), "good day");
        assert_eq!(bench.evaluations(), 1);
        assert!(
            bench
                .ask(&format!("tk env allow {shell}"))
                .contains("echo hooked")
        );
        let hooked = bench.ask(&format!("tk shell {shell} -- sh -c 'echo in $HOOKED'"));
        assert_eq!(hooked, "hooked\nin yes");
        let code = bench.ask(&format!("tk env export {shell} --format fish"));
        assert!(code.contains("set -gx GREETING 'good day'"), "{code}");

        // Their outputs, and paths by themselves.
        let run = |what: &str| format!("tk run -p '{what}' -- tool a b");
        let done = bench.sh(&run(&format!("{tool}^out")));
        assert_eq!(
            (done.status, done.stdout.as_str()),
            (3, "tool a b, helper\n"),
            "{done:?}"
        );
        let path = bench.ask(&format!(
            "tk run -p '{tool}^out' -- sh -c 'command -v tool'"
        ));
        let path = path.strip_suffix("/bin/tool").unwrap().to_owned();
        let asked = bench.asked();
        for what in [format!("{tool}^out"), tool.clone(), path.clone()] {
            let done = bench.sh(&run(&what));
            assert_eq!(
                (done.status, done.stdout.as_str()),
                (3, "tool a b, helper\n"),
                "{what}"
            );
        }
        let warm = bench.sh(&format!("PATH={bad}:$PATH; {}", run(&path)));
        assert_eq!(warm.status, 3, "{warm:?}");
        assert_eq!(bench.asked(), asked, "nix was run");
        let done = bench.sh(&format!("tk shell {path} -- true"));
        assert_eq!(done.status, 2, "{done:?}");
        assert!(done.stderr.contains("is not a derivation"), "{done:?}");
    });
}

#[test]
fn packages() {
    each_plain("run -f -p: packages of a file", |bench| {
        bench.cold_and_warm(
            "tk run -f ../plain -p tool -- tool a b",
            3,
            "tool a b, helper\n",
        );
        let both = bench.sh("tk run -f ../plain -p tool other -- sh -c 'other; tool'");
        assert_eq!(both.stdout, "other\ntool , helper\n", "{both:?}");
        let code = bench.sh("tk run --impure -E 'import ../plain { }' -p other -- other");
        assert_eq!(code.stdout, "other\n", "{code:?}");
        let text = PLAIN.replace("echo other", "echo another");
        bench.write("plain/default.nix", &text);
        let changed = bench.sh("tk run -f ../plain -p other -- other");
        assert_eq!(changed.stdout, "another\n", "{changed:?}");
        let failed = bench.sh("tk run -f ../plain -p nothing -- true");
        assert_eq!(failed.status, 2, "{failed:?}");
    });
}

#[test]
fn what_a_lock_pins() {
    let Some(bench) = Bench::plain("2.34") else {
        return;
    };
    bench.ask("cd ..; mkdir locked; tar cf plain.tar plain");
    let text = LOCKED.replace("TARBALL", &bench.show("plain.tar"));
    bench.write("locked/flake.nix", &text);
    let evaluations = || bench.asked().iter().filter(|a| *a == "eval").count();
    let ask = "cd ../locked; tk run -p .#other -- other";
    assert_eq!(bench.ask(ask), "other");
    age(&bench);
    assert_eq!(bench.ask(ask), "other");
    assert_eq!(evaluations(), 1, "it was fetched, but it is pinned");
}

#[test]
fn in_flakes_too() {
    each("env: which files direnv watches", |bench| {
        let code = bench.ask("tk env export --format direnv");
        let watched = code.lines().last().unwrap();
        let flake = bench.show("flake/flake.nix");
        assert!(
            watched.starts_with("watch_file ") && watched.contains(&flake),
            "{code}"
        );
        assert!(watched.contains(&bench.show("input/data.txt")), "{code}");
    });
}

const LOCKED: &str = r#"{
  inputs.plain = { url = "tarball+file://TARBALL"; flake = false; };
  outputs = { self, plain }: { packages.x86_64-linux = { inherit (import plain { }) other; }; };
}
"#;

const PLAIN: &str = r#"
{ who ? null }:
let
  system = "x86_64-linux";
  channel = builtins.tryEval (import <channel>);
  build = name: script: derivation {
    inherit name system;
    builder = "/bin/sh";
    args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
  };
  program = name: text: build name
    "mkdir -p $out/bin $out/nix-support; printf '#!/bin/sh\n${text}\n' >$out/bin/${name}; chmod +x $out/bin/${name}";
in rec {
  shell = derivation {
    inherit system;
    name = "shell";
    builder = "/bin/bash";
    outputs = [ "out" "dev" ];
    PATH = "/usr/bin:/bin";
    GREETING = "good day" + (if who == null then "" else " " + who)
      + (if channel.success then " " + channel.value else "");
    PART = import ../elsewhere/part.nix;
    DATA = (builtins.fromJSON (builtins.readFile ./nix/data.json)).text;
    HERE = builtins.replaceStrings [ "\n" ] [ "" ] (builtins.readFile "${../elsewhere/here.sh}");
    shellHook = "echo hooked; export HOOKED=yes";
  };
  hooked = derivation {
    inherit system;
    name = "hooked";
    builder = "/bin/bash";
    outputs = [ "out" ];
    PATH = "/usr/bin:/bin";
    shellHook = "echo hooked; export HOOKED=yes";
  };
  broken = build "broken" "echo it is broken >&2; exit 4";
  helper = program "helper" "echo helper";
  other = program "other" "echo other";
  tool = build "tool" "mkdir -p $out/bin $out/nix-support; echo ${helper} >$out/nix-support/propagated-user-env-packages
    printf '#!/bin/sh\necho tool $@, $(helper)\nexit 3\n' >$out/bin/tool; chmod +x $out/bin/tool";
}
"#;
