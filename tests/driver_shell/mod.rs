//! Environments: evaluated once by real Nix of all versions, entered without it.
//!
//! A script called nix is first in `PATH`; it notes what it is asked and becomes the real one, so that
//! evaluations can be counted.

mod consent;
mod direnv;
mod elsewhere;
mod files;
mod library;
mod noticed;
mod programs;

use crate::support::{RigDaemon, VERSIONS, daemon::quote, report};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

/// A flake beside a daemon, and a home of its own.
struct Bench {
    daemon: RigDaemon,
    home: PathBuf,
}

/// What became of a run.
#[derive(Debug)]
struct Done {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn start(version: &'static str) -> Option<Bench> {
        let daemon = RigDaemon::start(version, true)?;
        let home = daemon.folder();
        let bench = Bench { daemon, home };
        fs::create_dir_all(bench.flake()).unwrap();
        fs::create_dir_all(bench.path("input")).unwrap();
        fs::write(bench.path("input/data.txt"), "data").unwrap();
        bench.write_flake("good day", "echo hooked");
        let real = bench.ask("echo \"$NIX_RIG_BIN/nix\"");
        let script = format!(
            "#!/bin/sh\necho \"$1\" >>{}\nexec {real} \"$@\"\n",
            bench.show("log")
        );
        program(&bench.path("bin/nix"), &script);
        program(
            &bench.path("bad/nix"),
            &format!("#!/bin/sh\necho bad >>{}\nexit 9\n", bench.show("log")),
        );
        Some(bench)
    }

    /// Runs `line` twice with the same outcome: the second time the nix that is found fails, and is not
    /// run.
    #[track_caller]
    fn cold_and_warm(&self, line: &str, status: i32, stdout: &str) {
        let cold = self.sh(line);
        let told = (cold.status, cold.stdout.as_str());
        assert_eq!(told, (status, stdout), "{cold:?}");
        let asked = self.asked();
        let warm = self.sh(&format!("PATH={}:$PATH; {line}", self.show("bad")));
        assert_eq!((warm.status, warm.stdout), (status, cold.stdout));
        assert_eq!(self.asked(), asked, "nix was run");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    fn show(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn flake(&self) -> PathBuf {
        self.path("flake")
    }

    fn write_flake(&self, greeting: &str, hook: &str) {
        let text = FLAKE
            .replace("INPUT_FOLDER", &self.show("input"))
            .replace("GREETING_TEXT", greeting)
            .replace("HOOK_TEXT", hook);
        fs::write(self.flake().join("flake.nix"), text).unwrap();
    }

    /// Runs a script in the flake's folder.
    fn sh(&self, script: &str) -> Done {
        let home = quote(&self.home.display().to_string());
        let program = quote(env!("CARGO_BIN_EXE_tk-store"));
        let done = self.daemon.sh(&format!(
            "export HOME={home} XDG_CACHE_HOME={home}/cache XDG_STATE_HOME={home}/state\n\
             unset TK_NIX; export REAL=$PATH; export PATH={home}/bin:$PATH\n\
             tk() {{ {program} \"$@\"; }}; export TK={program}\n\
             cd {home}/flake\n{script}"
        ));
        Done {
            status: done.status,
            stdout: done.stdout,
            stderr: done.stderr,
        }
    }

    /// What a script prints, which must succeed.
    fn ask(&self, script: &str) -> String {
        let done = self.sh(script);
        assert_eq!(done.status, 0, "{} {script}: {done:?}", self.daemon.version);
        done.stdout.trim_end().to_owned()
    }

    /// How often nix was asked for an environment.
    fn evaluations(&self) -> usize {
        self.asked()
            .iter()
            .filter(|a| *a == "print-dev-env")
            .count()
    }

    /// What nix was asked.
    fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Runs `test` with each version that there is.
fn each(name: &str, test: fn(&Bench)) {
    let mut ran = String::new();
    for version in VERSIONS {
        if let Some(bench) = Bench::start(version) {
            test(&bench);
            ran.push_str(&format!("  {version}"));
        }
    }
    report("shells", &format!("  {name:<40}{ran}\n"));
}

#[test]
fn entering() {
    each("shell: cold, warm, invalidated", |bench| {
        let ask = "tk shell -- sh -c 'echo $GREETING; exit 7'";
        let cold = bench.sh(ask);
        assert_eq!(
            (cold.status, cold.stdout.as_str()),
            (7, "good day\n"),
            "{cold:?}"
        );
        assert_eq!(bench.evaluations(), 1);

        // Warm, with a nix that fails first in PATH.
        let asked = bench.asked();
        let warm = bench.sh(&format!("PATH={}:$PATH; {ask}", bench.show("bad")));
        assert_eq!(
            (warm.status, warm.stdout.as_str()),
            (7, "good day\n"),
            "{warm:?}"
        );
        assert_eq!(bench.asked(), asked, "nix was run");

        // What changed is evaluated; what was there before is not.
        bench.write_flake("good night", "echo hooked");
        assert_eq!(bench.sh(ask).stdout, "good night\n");
        assert_eq!(bench.evaluations(), 2);
        bench.write_flake("good day", "echo hooked");
        assert_eq!(bench.sh(ask).stdout, "good day\n");
        assert_eq!(bench.evaluations(), 2);
        fs::write(bench.flake().join("main.c"), "no Nix code").unwrap();
        bench.sh(ask);
        assert_eq!(bench.evaluations(), 2);

        // A lock, a local input, an option, a file that was named.
        bench.ask("printf '\\n' >>flake.lock");
        bench.sh(ask);
        assert_eq!(bench.evaluations(), 3, "the lock");
        fs::write(bench.path("input/data.txt"), "other").unwrap();
        bench.sh(ask);
        assert!(bench.evaluations() > 3, "the input");
        fs::write(bench.path("input/data.txt"), "data").unwrap();
        let before = bench.evaluations();
        bench.sh("tk shell --impure -- true");
        assert_eq!(bench.evaluations(), before + 1, "an option");
        bench.sh(
            "tk shell --watch main.c -- true; echo x >>main.c; tk shell --watch main.c -- true",
        );
        assert_eq!(bench.evaluations(), before + 3, "a file that is watched");
        bench.sh("tk shell --refresh -- true");
        assert_eq!(bench.evaluations(), before + 4, "asked for");
    });
}

#[test]
fn another_version_of_nix() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    let ask = "tk shell -- sh -c 'echo $GREETING'";
    assert_eq!(bench.ask(ask), "good day");
    // A program that was never seen is asked for its version.
    let other = "PATH=${NIX_RIG_BIN%/*/bin}/2.26/bin:$PATH";
    let list = "tk env list --json";
    assert_eq!(bench.ask(&format!("{other}; {ask}")), "good day");
    let all: Vec<Value> = serde_json::from_str(&bench.ask(list)).unwrap();
    let mut versions: Vec<_> = all.iter().map(|e| e["nix"].as_str().unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions.len(), 2, "{versions:?}");
    assert!(versions[0].starts_with("Nix 2.26"), "{versions:?}");
    assert_eq!(bench.evaluations(), 1, "by the first");
}

#[test]
fn twenty_at_once() {
    each("shell: twenty at once, evaluated once", |bench| {
        let done = bench.ask(
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do\n\
             tk shell -- sh -c 'echo $GREETING' & done; wait",
        );
        assert_eq!(done.lines().count(), 20, "{done}");
        assert!(done.lines().all(|line| line == "good day"), "{done}");
        assert_eq!(bench.evaluations(), 1);
    });
}

#[test]
fn a_holder_that_is_killed_lets_go() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    // A nix that never ends, and outlives who started it: the lock goes with its holder.
    let slow = "#!/bin/sh\ncase $1 in --version) exec nix.real --version;; esac\n\
                echo $$ >../begun\nexec sleep 1000\n";
    program(&bench.path("slow/nix"), slow);
    let done = bench.ask(
        "ln -s \"$NIX_RIG_BIN/nix\" ../slow/nix.real\n\
         PATH=$PWD/../slow:$PATH $TK shell -- true & pid=$!\n\
         while [ ! -s ../begun ]; do sleep 0.05; done\n\
         kill -9 $pid; wait $pid; kill $(cat ../begun); tk shell -- sh -c 'echo $GREETING'",
    );
    assert_eq!(done, "good day");
}

#[test]
fn who_is_ended_takes_along_what_runs() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    // While nix evaluates, and while a command runs whose output is kept.
    let slow = "#!/bin/sh\ncase $1 in --version) exec nix.real --version;; esac\n\
                echo $$ >../begun\nexec sleep 1000\n";
    program(&bench.path("slow/nix"), slow);
    bench.ask("ln -s \"$NIX_RIG_BIN/nix\" ../slow/nix.real");
    for command in [
        "PATH=$PWD/../slow:$PATH $TK shell -- true",
        "$TK shell --json -- sh -c 'echo $$ >../begun; exec sleep 1000'",
    ] {
        let done = bench.sh(&format!(
            "rm -f ../begun; {command} & pid=$!\n\
             while [ ! -s ../begun ]; do sleep 0.05; done; kill -TERM $pid; wait $pid; status=$?\n\
             while grep -q '^State:.[^ZX]' /proc/$(cat ../begun)/status 2>/dev/null; do sleep 0.05; done\n\
             exit $status"
        ));
        assert!([2, 143].contains(&done.status), "{command}: {done:?}");
    }
}

#[test]
fn hooks() {
    each("shell: hooks need a consent", |bench| {
        let ask = "tk shell -- sh -c 'echo in $HOOKED'";
        let held = bench.sh(ask);
        assert_eq!((held.status, held.stdout.as_str()), (0, "in\n"), "{held:?}");
        assert!(held.stderr.contains("tk-store env allow ."), "{held:?}");
        assert!(
            bench.ask("tk env allow").contains("echo hooked"),
            "it is shown"
        );
        let allowed = bench.sh(ask);
        assert_eq!(allowed.stdout, "hooked\nin yes\n", "{allowed:?}");
        assert!(!allowed.stderr.contains("warning"), "{allowed:?}");
        bench.write_flake("good day", "echo changed");
        let changed = bench.sh(ask);
        assert_eq!(changed.stdout, "in\n", "{changed:?}");
        assert_eq!(
            bench
                .sh("tk shell --allow -- sh -c 'echo in $HOOKED; exit 5'")
                .status,
            5
        );
        assert_eq!(bench.sh(ask).stdout, "changed\nin yes\n");
        bench.ask("tk env allow --revoke");
        assert_eq!(bench.sh(ask).stdout, "in\n");
        let left = fs::read_dir(bench.path("cache/tk-store/env/run")).unwrap();
        assert_eq!(left.count(), 0, "scripts are left");
    });
}

#[test]
fn leases() {
    each("env: leases keep, and end", |bench| {
        let collect = "nix-store --gc >/dev/null 2>&1";
        let ask = "tk shell -- sh -c 'echo $GREETING'";
        // What another test's process has in its variables is a root for Nix: paths of our own.
        let greeting = format!("good day, {}", bench.home.display());
        bench.write_flake(&greeting, "echo hooked");
        bench.ask(&format!("{ask}; {collect}; tk env gc"));
        bench.ask(ask);
        assert_eq!(bench.evaluations(), 1, "the lease kept it");

        // Nobody's process, long ago; and one that is over at once.
        bench.ask("sh -c 'echo $$ >../pid; sleep 1000' & pid=$!; while [ ! -s ../pid ]; do sleep 0.05; done\n\
                   tk shell --owner pid:$(cat ../pid) -- true; kill $pid $(cat ../pid) $(cat /proc/$pid/task/$pid/children); true");
        bench.ask("tk shell --owner short --ttl 0s -- true");
        let list: Vec<Value> = serde_json::from_str(&bench.ask("tk env list --json")).unwrap();
        assert_eq!(list[0]["leases"].as_array().unwrap().len(), 3, "{list:?}");
        let done: Value = serde_json::from_str(&bench.ask("tk env gc --json")).unwrap();
        assert_eq!(
            (&done["leases"], &done["kept"]),
            (&2.into(), &1.into()),
            "{done}"
        );
        bench.ask("touch -d '8 days ago' ../state/tk-store/leases/*/lease.json");
        let done: Value = serde_json::from_str(&bench.ask("tk env gc --json")).unwrap();
        assert_eq!(
            (&done["leases"], &done["environments"]),
            (&1.into(), &1.into()),
            "{done}"
        );
        bench.ask(&format!("{collect}; {ask}"));
        assert_eq!(bench.evaluations(), 2);

        // What is gone from the store is made again, whatever the cache says.
        bench.ask(&format!("rm -r ../state/tk-store/leases/*; {collect}"));
        assert_eq!(bench.ask(ask), greeting);
        assert_eq!(bench.evaluations(), 3);
    });
}

#[test]
fn packages() {
    each("run -p: packages and what they bring", |bench| {
        bench.cold_and_warm("tk run -p .#tool -- tool a b", 3, "tool a b, helper\n");
        let done = bench.sh("tk run -p .#tool .#helper --json -- tool c");
        let json: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!((done.status, &json["exitCode"]), (3, &3.into()), "{json}");
        assert_eq!(json["stdout"], "tool c, helper\n");
        assert!(json["duration"].is_f64() && json["stderr"] == "", "{json}");
        let failed = bench.sh("tk run -p .#failing -- true");
        assert_eq!(failed.status, 2, "{failed:?}");
        assert!(failed.stderr.contains("it is broken"), "{failed:?}");
    });
}

#[test]
fn pure_and_printed() {
    let mut all = BTreeMap::new();
    for version in VERSIONS {
        let Some(bench) = Bench::start(version) else {
            continue;
        };
        let ask = "MINE=1 KEPT=2 $TK shell --pure --keep KEPT -- /usr/bin/env";
        let pure = bench.ask(ask);
        assert!(!pure.contains("MINE=") && pure.contains("KEPT=2"), "{pure}");
        assert!(pure.contains("PATH=/usr/bin:/bin\n"), "{pure}");
        assert!(pure.contains("NIX_GCROOT=/nix/store/"), "{pure}");
        assert!(
            pure.contains(&format!("out={}/outputs/out\n", bench.show("flake"))),
            "{pure}"
        );
        let with_mine = bench.ask("$TK shell -- sh -c 'echo $PATH $MINE'");
        assert!(with_mine.starts_with("/usr/bin:/bin:/"), "{with_mine}");
        let sourced = "set -u; eval \"$($TK env export)\"; echo $GREETING; echo ${list:-none}";
        assert_eq!(bench.ask(&format!("bash -c '{sourced}'")), "good day\nnone");
        for format in ["zsh", "fish", "direnv"] {
            let code = bench.ask(&format!("tk env export --format {format}"));
            assert!(
                code.contains("GREETING") && !code.contains("eval"),
                "{code}"
            );
        }
        let json = bench.ask("tk env export --format json");
        let mut json: Value = serde_json::from_str(&json.replace(&bench.show(""), "/")).unwrap();
        assert_eq!(json["name"], "shell");
        // 2.8 has the name of the derivation here, later ones that of their own.
        json["envVars"].as_object_mut().unwrap().remove("name");
        all.insert(version, json);
    }
    let mut forms = all.values();
    if let Some(first) = forms.next() {
        forms.for_each(|other| assert_eq!(other, first, "{all:#?}"));
    }
}

#[test]
fn what_goes_wrong() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    for (command, status, words) in [
        ("tk shell -- no-such-command", 127, "no-such-command"),
        ("tk shell -- ./flake.nix", 126, "flake.nix"),
        ("tk shell .#nothing -- true", 2, "nothing"),
        ("tk shell ./nowhere -- true", 2, "nowhere"),
        ("tk shell </dev/null", 2, "after --"),
        ("tk shell --ttl 1x -- true", 2, "12h"),
        ("tk shell --owner pid:x -- true", 2, "pid:x"),
        ("tk shell -- sh -c 'kill -9 $$'", 137, ""),
        (
            "TK_NIX=/nowhere/nix $TK shell .#x -- true",
            2,
            "no usable nix found",
        ),
    ] {
        let done = bench.sh(command);
        assert_eq!(done.status, status, "{command}: {done:?}");
        assert!(done.stderr.contains(words), "{command}: {done:?}");
    }
}

#[test]
fn on_a_terminal() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    if bench.sh("command -v script").status != 0 {
        return crate::support::skip("shells on a terminal", "there is no program script");
    }
    bench.ask("tk env allow");
    let done = bench.ask(
        "printf 'echo \"<$GREETING $HOOKED>\"\nexit\n' | script -qec \"$TK develop\" /dev/null",
    );
    assert!(done.contains("<good day yes>"), "{done}");
}

/// No assertion: a machine may be busy. The ratio is for people to read.
#[test]
fn how_fast() {
    let Some(bench) = Bench::start("2.34") else {
        return;
    };
    bench.ask("tk shell -- true; sleep 2.1; tk shell -- true");
    let median = |script: &str| {
        let mut times: Vec<_> = (0..9)
            .map(|_| {
                let begun = Instant::now();
                bench.ask(script);
                begun.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[4]
    };
    let nothing = median("true");
    let (ours, nix) = (
        median("$TK shell -- true") - nothing,
        median("$NIX_RIG_BIN/nix develop -c true") - nothing,
    );
    let ratio = ours / nix;
    report(
        "shells",
        &format!("  warm {ours:.4} s, nix develop {nix:.4} s: {ratio:.3}\n"),
    );
}

const FLAKE: &str = r#"{
  inputs.input = { url = "path:INPUT_FOLDER"; flake = false; };
  outputs = { self, input }:
    let
      system = "x86_64-linux";
      build = name: script: derivation {
        inherit name system;
        builder = "/bin/sh";
        args = [ "-c" script ];
        PATH = "/usr/bin:/bin";
      };
    in rec {
      devShells.${system}.default = derivation {
        inherit system;
        name = "shell";
        builder = "/bin/bash";
        outputs = [ "out" "dev" ];
        PATH = "/usr/bin:/bin";
        GREETING = "GREETING_TEXT";
        INPUT = builtins.readFile (input + "/data.txt");
        shellHook = "HOOK_TEXT; export HOOKED=yes";
      };
      packages.${system} = rec {
        helper = build "helper" "mkdir -p $out/bin; printf '#!/bin/sh\necho helper\n' >$out/bin/helper; chmod +x $out/bin/helper";
        tool = build "tool" "mkdir -p $out/bin $out/nix-support; echo ${helper} >$out/nix-support/propagated-user-env-packages
          printf '#!/bin/sh\necho tool $@, $(helper)\nexit 3\n' >$out/bin/tool; chmod +x $out/bin/tool";
        failing = build "failing" "echo it is broken >&2; exit 4";
      };
    };
}
"#;
