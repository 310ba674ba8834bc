//! Building on other machines, and caches for nix, beside real Nix. What ssh would run on another
//! machine runs on this one (tests/rig/fake-ssh), each machine with a daemon and a store of its own.

mod builds;
mod caches;
mod hostile;
mod machines;
mod realisations;
mod silence;

use crate::support::{
    RigDaemon,
    daemon::{Finished, quote},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A store that cannot build, and the way to machines that can.
struct Lab {
    source: RigDaemon,
    folder: TempDir,
}

impl Lab {
    /// With a store of Nix 2.34 that builds nothing itself.
    fn new() -> Option<Lab> {
        let source = RigDaemon::start_with("2.34", true, &["max-jobs = 0"])?;
        Some(Lab::with(source))
    }

    fn with(source: RigDaemon) -> Lab {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("hosts")).unwrap();
        let lab = Lab { source, folder };
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/fake-ssh/ssh");
        let script = format!(
            "#!/bin/sh\nfor word in \"$@\"; do [ -f {hosts}/\"$word\" ] && . {hosts}/\"$word\"; done\n\
             exec {fake} \"$@\"\n",
            hosts = lab.path("hosts"),
            fake = fake.display(),
        );
        fs::create_dir(lab.folder.path().join("bin")).unwrap();
        let ssh = lab.folder.path().join("bin/ssh");
        fs::write(&ssh, script).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        lab
    }

    /// Makes `builder` the machine `host`.
    fn host(&self, host: &str, builder: &RigDaemon) {
        let variable = |name| builder.ask("sh", &["-c", &format!("echo ${name}")]);
        // From here its files are not in /nix.
        let (socket, root) = (builder.socket(), builder.state());
        let uri = format!("unix://{}?root={}", socket.display(), root.display());
        let (bin, conf) = (variable("NIX_RIG_BIN"), variable("NIX_CONF_DIR"));
        let text = format!(
            "export FAKE_SSH_REMOTE='{uri}' FAKE_SSH_LOG={} PATH={bin}:$PATH NIX_CONF_DIR={conf}\n\
             echo $$ >>{}\n",
            self.path(&format!("calls-{host}")),
            self.path(&format!("processes-{host}")),
        );
        self.say(host, &text);
    }

    /// What is set before ssh to `host` begins.
    fn say(&self, host: &str, text: &str) {
        fs::write(self.folder.path().join("hosts").join(host), text).unwrap();
    }

    /// How often ssh to `host` was started.
    fn calls(&self, host: &str) -> usize {
        let log = fs::read_to_string(self.path(&format!("calls-{host}"))).unwrap_or_default();
        log.lines().filter(|line| *line == "ssh").count()
    }

    /// Whether a process of ssh to `host` is there.
    fn is_called(&self, host: &str) -> bool {
        let ids = fs::read_to_string(self.path(&format!("processes-{host}"))).unwrap_or_default();
        let stat = |id: &str| fs::read_to_string(format!("/proc/{id}/stat")).ok();
        ids.lines()
            .filter_map(stat)
            .any(|stat| !stat.contains(") Z "))
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    /// The derivation at `attr` of `code`, in the store.
    fn instantiate(&self, code: &str, attr: &str) -> String {
        let file = self.path("code.nix");
        fs::write(
            &file,
            code.replace("@LAB@", self.folder.path().to_str().unwrap()),
        )
        .unwrap();
        self.source.ask("nix-instantiate", &[&file, "-A", attr])
    }

    /// Runs tk-store beside the store.
    fn tk(&self, args: &[&str]) -> Finished {
        let words: Vec<_> = args.iter().map(|arg| quote(arg)).collect();
        let bin = self.path("bin");
        self.source.sh(&format!(
            "PATH={bin}:$PATH XDG_STATE_HOME={bin}/state {} {}",
            quote(env!("CARGO_BIN_EXE_tk-store")),
            words.join(" ")
        ))
    }

    /// Builds, and gives the results.
    fn build(&self, args: &[&str], status: i32) -> (Vec<Value>, String) {
        let args = [&["builders", "build", "--json"], args].concat();
        let done = self.tk(&args);
        assert_eq!(done.status, status, "{args:?}: {done:?}");
        let results = serde_json::from_str(&done.stdout);
        (
            results.unwrap_or_else(|e| panic!("{e}: {done:?}")),
            done.stderr,
        )
    }
}

fn count(file: &str) -> usize {
    fs::read_to_string(Path::new(file))
        .unwrap_or_default()
        .lines()
        .count()
}

/// Waits as long as even a machine that is very busy needs.
fn wait_for(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "it does not happen"
        );
        thread::sleep(Duration::from_millis(20));
    }
}
