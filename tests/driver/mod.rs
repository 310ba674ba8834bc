//! The program drives real Nix: it evaluates with each version, and builds by its daemon or without
//! one.

mod build;
mod evaluate;
mod failures;
mod graph;
mod push;

use crate::support::{RigDaemon, VERSIONS, daemon::Finished, report};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

/// A flake of small packages, each of a kind of its own.
const FLAKE: &str = r#"
{
  inputs = { };
  outputs = { self }: let
    system = "x86_64-linux";
    mk = name: script: mkWith { } name script;
    mkWith = more: name: script: derivation ({
      inherit name system; builder = "/bin/sh"; args = [ "-c" script ]; PATH = "/usr/bin:/bin";
    } // more);
  in {
    packages.${system} = rec {
      default = plain;
      plain = mk "plain" "echo building; echo content > $out";
      refers = mk "refers" "echo ${plain} > $out";
      multi = mkWith { outputs = [ "out" "dev" ]; } "multi" "echo a > $out; echo $out > $dev";
      floating = mkWith {
        __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
      } "floating" "echo floating > $out";
      exit3 = mk "exit3" "echo line one; echo line two >&2; exit 3";
      # What builders print is not what nix says.
      quotes = mk "quotes" "echo Connection refused; echo No such file or directory; echo sandbox; exit 1";
      full = mk "full" "echo 'cc: No space left on device'; exit 1";
      fetches = mkWith {
        outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; outputHashMode = "flat";
        outputHashAlgo = null;
      } "fetches" "echo 'curl: (6) Could not resolve host: x'; exit 6";
      killed = mk "killed" "kill -9 $$";
      noOutput = mk "no-output" "true";
      needs = mk "needs" "cat ${exit3} > $out";
      fixed = mkWith {
        outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; outputHashMode = "flat";
        outputHashAlgo = null;
      } "fixed" "echo hello > $out";
      endless = mk "endless" "while :; do echo y; done";
      sleeps = mk "sleeps" "echo asleep; sleep 1000";
      silent = mk "silent" "sleep 1001";
      # Built for another, which does not refer to it.
      early = mk "early" "echo early > $out";
      late = mk "late" "read a < ${early}; echo $a > $out";
      lateFails = mk "late-fails" "read a < ${early}; exit 3";
      throws = throw "no such luck";
    };
    value = { answer = 42; list = [ 1 "two" null ]; };
  };
}
"#;

/// The same without flakes.
const FILE: &str = r#"
{ suffix ? "" }: rec {
  one = derivation {
    name = "one${suffix}"; system = builtins.currentSystem; builder = "/bin/sh";
    args = [ "-c" "echo one > $out" ];
  };
  two = derivation {
    name = "two${suffix}"; system = builtins.currentSystem; builder = "/bin/sh";
    args = [ "-c" "echo ${one} > $out" ];
  };
}
"#;

/// A daemon of one version, with the files of a project beside it.
struct Project {
    daemon: RigDaemon,
    folder: PathBuf,
}

impl Project {
    fn start(version: &'static str) -> Option<Project> {
        Project::start_with(version, &[])
    }

    fn start_with(version: &'static str, conf: &[&str]) -> Option<Project> {
        let daemon = RigDaemon::start_with(version, true, conf)?;
        let folder = daemon.folder().join("project");
        fs::create_dir(&folder).unwrap();
        let project = Project { daemon, folder };
        project.write("flake.nix", FLAKE);
        project.write("default.nix", FILE);
        Some(project)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let file = self.folder.join(name);
        fs::write(&file, content).unwrap();
        file
    }

    /// Runs `tk-store` in the project's folder, where the daemon is the store.
    fn run(&self, line: &str) -> Finished {
        let program = env!("CARGO_BIN_EXE_tk-store");
        let (folder, home) = (self.folder.display(), self.daemon.folder());
        let home = home.display();
        self.daemon.sh(&format!(
            "cd {folder} && HOME={home}/home XDG_STATE_HOME={home}/s XDG_CACHE_HOME={home}/c \
             {program} {line}"
        ))
    }

    /// The same with JSON as its output, whatever the exit status.
    #[track_caller]
    fn json(&self, line: &str) -> (i32, Value) {
        let done = self.run(line);
        let value = serde_json::from_str(&done.stdout);
        let value = value.unwrap_or_else(|e| panic!("tk-store {line}: {e}: {done:?}"));
        (done.status, value)
    }

    /// Waits until no process beside the daemon has `words` in its command line.
    #[track_caller]
    fn ends(&self, words: &str) {
        let begun = Instant::now();
        while self.is_running(words) {
            assert!(begun.elapsed() < SOON, "{words} is left behind");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_running(&self, words: &str) -> bool {
        // Others may run the same beside daemons of their own: each has a namespace.
        let own = PathBuf::from(self.daemon.ask("readlink", &["/proc/self/ns/mnt"]));
        let is_own = |pid: &String| {
            fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|namespace| namespace == own)
        };
        let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        all.filter_map(|entry| entry.file_name().into_string().ok())
            .filter(is_own)
            .filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok())
            .any(|line| {
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains(words) && !line.contains("tk-store")
            })
    }
}

/// Which operation worked with which version, for the table at the end of the run.
struct Table {
    title: &'static str,
    rows: Mutex<Vec<(String, Vec<&'static str>)>>,
}

impl Table {
    fn new(title: &'static str) -> Self {
        Table {
            title,
            rows: Mutex::default(),
        }
    }

    /// `operation` did what it should with `version`.
    fn ok(&self, operation: &str, version: &'static str) {
        let mut rows = self.rows.lock().unwrap();
        match rows.iter_mut().find(|(name, _)| name == operation) {
            Some((_, versions)) => versions.push(version),
            None => rows.push((operation.to_owned(), vec![version])),
        }
    }

    fn finish(self, ran: &[&str]) {
        let mut text = String::new();
        for (operation, versions) in self.rows.into_inner().unwrap() {
            assert_eq!(
                versions, ran,
                "{operation} was not tried with every version"
            );
            writeln!(text, "  {operation:<58} {}", versions.join(" ")).unwrap();
        }
        report(self.title, &text);
    }
}

/// Runs `test` with each version that there is; those that ran.
fn with_each(test: impl Fn(&'static str, &Project)) -> Vec<&'static str> {
    let projects = VERSIONS
        .into_iter()
        .filter_map(|v| Some((v, Project::start(v)?)));
    projects
        .map(|(version, project)| {
            test(version, &project);
            version
        })
        .collect()
}

/// `value` without what differs from run to run.
fn steady(mut value: Value) -> Value {
    let results = value.as_array_mut().expect("a list of results");
    for result in results {
        assert!(result["buildTime"].is_number() || result["buildTime"].is_null());
        result["buildTime"] = Value::Null;
    }
    value
}

/// Long enough for a machine that is busy.
const SOON: Duration = Duration::from_secs(30);

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
