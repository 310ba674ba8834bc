//! A sound machine is sound, and each planted fault is found.

use super::server::FolderServer;
use crate::support::{RigDaemon, daemon::quote, report, skip};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

/// A machine with a daemon and a signed cache.
struct Patient {
    daemon: RigDaemon,
    home: PathBuf,
    public: String,
}

/// What was said.
struct Diagnosis {
    status: i32,
    json: Value,
    words: String,
}

impl Diagnosis {
    /// What `check` came to, with its words.
    fn of(&self, check: &str) -> Vec<(String, String)> {
        let all = self.json["findings"].as_array().expect("findings").iter();
        let all = all.filter(|finding| finding["check"] == check);
        all.map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            (text("outcome"), text("message"))
        })
        .collect()
    }
}

impl Patient {
    fn start(trusted: bool) -> Option<Patient> {
        let daemon = RigDaemon::start("2.34", trusted)?;
        let home = daemon.folder();
        let mut patient = Patient {
            daemon,
            home,
            public: String::new(),
        };
        let cache = patient.path("cache");
        let made = patient.sh(&format!(
            "set -e; tk key generate k-1 --secret key --public pub; echo hi >file
             mkdir {0}; echo 'StoreDir: /nix/store' >{0}/nix-cache-info
             BUILD=$(NIX_CONFIG= nix-build --no-out-link -E '{{DRV}}')
             tk push $BUILD --to file://{0} --sign-key key; cp -a {0} stale; cp -a {0} unsigned
             sed -i /^Sig:/d unsigned/*.narinfo; mkdir empty; cp -a {0} other
             echo 'StoreDir: /other' >other/nix-cache-info; cat pub",
            cache.display()
        )
        .replace("{DRV}", DRV));
        assert_eq!(made.0, 0, "{made:?}");
        patient.public = made.1.lines().last().unwrap().trim().to_owned();
        Some(patient)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }

    /// Runs a script with a nix.conf that has nothing wrong: status, stdout, stderr.
    fn sh(&self, script: &str) -> (i32, String, String) {
        let home = quote(&self.home.display().to_string());
        let program = quote(env!("CARGO_BIN_EXE_tk-store"));
        let conf = format!(
            "sandbox = true\nexperimental-features = nix-command flakes\ndownload-attempts = 1\n\
             substituters = {}\ntrusted-public-keys = {}\n",
            self.url("cache"),
            self.public
        );
        let done = self.daemon.sh(&format!(
            "export HOME={home} XDG_CACHE_HOME={home}/xdg XDG_STATE_HOME={home}/state\n\
             unset TK_NIX TK_STORE XDG_CONFIG_HOME; export NIX_CONFIG={}\n\
             tk() {{ {program} \"$@\"; }}\ncd {home}\n{script}",
            quote(&conf)
        ));
        (done.status, done.stdout, done.stderr)
    }

    /// What the doctor says after `before`.
    fn examined(&self, before: &str, args: &str) -> Diagnosis {
        let (status, out, words) = self.sh(&format!("{before}\ntk doctor --json {args}"));
        let json = serde_json::from_str(&out);
        let json = json.unwrap_or_else(|error| panic!("{error}: {before} {args}: {out} {words}"));
        Diagnosis {
            status,
            json,
            words,
        }
    }

    /// Asserts that the doctor finds what `before` or `args` did to the machine.
    #[track_caller]
    fn finds(&self, before: &str, args: &str, check: &str, outcome: &str, words: &str) {
        let found = self.examined(before, args);
        let said = found.of(check);
        let hit = said
            .iter()
            .any(|(o, message)| o == outcome && message.contains(words));
        assert!(hit, "{before} {args}: {check} {said:?} {}", found.words);
        let expected = i32::from(outcome == "fail");
        assert_eq!(found.status, expected, "{before} {args}: {}", found.json);
    }
}

/// Adds a line to the settings.
fn conf(line: &str) -> String {
    format!("export NIX_CONFIG=\"$NIX_CONFIG\n{line}\"")
}

#[test]
fn a_sound_machine_is_called_sound() {
    let Some(patient) = Patient::start(true) else {
        return;
    };
    let server = FolderServer::start(&patient.path("cache"), "now");
    let files = || fs::read_dir(patient.path("cache")).unwrap().count();
    let before = files();
    let args = format!("--from {} --to {}", server.url, patient.url("cache"));
    // What is remembered of the server holds.
    let known = format!(
        "tk path-info --all --store file://$PWD/cache >paths
        tk path-info $(cat paths) --store {} >/dev/null",
        server.url
    );
    let found = patient.examined(&known, &args);
    assert_eq!(found.status, 0, "{} {}", found.json, found.words);
    assert_eq!(found.json["sound"], true);
    for check in [
        "nix",
        "features",
        "sandbox",
        "store",
        "trust",
        "substituter",
        "keys",
        "memory",
        "clock",
        "write",
        "builders",
        "direnv",
    ] {
        let said = found.of(check);
        let is_fine = !said.is_empty() && said.iter().all(|(outcome, _)| outcome == "pass");
        assert!(is_fine, "{check}: {said:?}");
    }
    assert!(!found.of("space").is_empty());
    assert_eq!(found.of("substituter").len(), 2);
    assert_eq!(files(), before, "what was written is removed");
    let nars = fs::read_dir(patient.path("cache/nar")).unwrap().count();
    assert_eq!(nars, 1);
}

#[test]
fn planted_faults_are_found() {
    let Some(patient) = Patient::start(true) else {
        return;
    };
    let script = |name: &str, text: &str| {
        let file = patient.path(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    };
    script("old/nix", "echo 'nix (Nix) 2.3.16'");
    script("broken/direnv", "exit 7");
    script("stale-direnv/direnv", "echo 2.32.1");
    let late = FolderServer::start(&patient.path("cache"), "2 hours ago");
    let early = FolderServer::start(&patient.path("cache"), "now + 5 minutes");
    let silent = FolderServer::silent();
    let stale = FolderServer::start(&patient.path("stale"), "now");
    let from = |place: &str| format!("--from {place}");
    let faults = [
        (
            "export TK_NIX=/nowhere/nix",
            String::new(),
            "nix",
            "fail",
            "no usable nix",
        ),
        (
            "export TK_NIX=$PWD/old/nix",
            String::new(),
            "nix",
            "fail",
            "2.8 is the oldest",
        ),
        (
            &conf("experimental-features ="),
            String::new(),
            "features",
            "warn",
            "switch on",
        ),
        (
            "export NIX_REMOTE=unix:///nowhere/socket",
            String::new(),
            "store",
            "fail",
            "/nowhere",
        ),
        (
            &conf("sandbox = false"),
            String::new(),
            "sandbox",
            "warn",
            "off",
        ),
        (
            "",
            from("http://127.0.0.1:1"),
            "substituter",
            "fail",
            "127.0.0.1:1",
        ),
        (
            "",
            from(&format!("{} --timeout 1", silent.url)),
            "substituter",
            "fail",
            "within 1 s",
        ),
        (
            "",
            from(&patient.url("empty")),
            "substituter",
            "fail",
            "no nix-cache-info",
        ),
        (
            "",
            from(&patient.url("nowhere")),
            "substituter",
            "fail",
            "nowhere",
        ),
        (
            "",
            from(&patient.url("other")),
            "substituter",
            "fail",
            "/other",
        ),
        (
            &conf("trusted-public-keys ="),
            String::new(),
            "keys",
            "fail",
            "k-1",
        ),
        (
            &conf("extra-trusted-public-keys = k-2:x"),
            String::new(),
            "keys",
            "fail",
            "k-2",
        ),
        (
            "",
            from(&patient.url("unsigned")),
            "keys",
            "fail",
            "does not sign",
        ),
        (
            "",
            from(&format!("'{}?trusted=true'", patient.url("unsigned"))),
            "keys",
            "warn",
            "as its URL says",
        ),
        (
            &conf("require-sigs = false"),
            String::new(),
            "keys",
            "warn",
            "without signatures",
        ),
        ("", from(&late.url), "clock", "fail", "ahead of"),
        ("", from(&early.url), "clock", "warn", "behind"),
        (
            &conf("builders = ssh-ng://h - - x"),
            String::new(),
            "builders",
            "fail",
            "x",
        ),
        (
            &conf("builders = unix:///nowhere/s"),
            String::new(),
            "builders",
            "fail",
            "does not answer",
        ),
        (
            "export PATH=$PWD/broken:$PATH",
            String::new(),
            "direnv",
            "fail",
            "7",
        ),
        (
            "export PATH=$PWD/stale-direnv:$PATH; mkdir -p .config/direnv/lib; echo x >.config/direnv/lib/tk-store.sh",
            String::new(),
            "direnv",
            "warn",
            "another version",
        ),
        ("", format!("--to {}", late.url), "write", "fail", "405"),
        (
            "",
            format!("--to {}", patient.url("empty")),
            "write",
            "fail",
            "no nix-cache-info",
        ),
    ];
    let count = faults.len();
    for (before, args, check, outcome, words) in faults {
        patient.finds(before, &args, check, outcome, words);
    }
    let known = format!(
        "tk path-info --all --store file://$PWD/stale >paths
         tk path-info $(cat paths) --store {} >/dev/null; rm stale/*.narinfo",
        stale.url
    );
    patient.finds(
        &known,
        &from(&stale.url),
        "memory",
        "warn",
        "1 are about paths",
    );
    report("doctor", &format!("  {} planted faults found\n", count + 1));
    // A password stays with whom it is for.
    for server in [&late.url, "http://127.0.0.1:1"] {
        let url = server.replace("//", "//me:hunter2@");
        let set = conf(&format!("substituters = {url}"));
        for json in ["", "--json"] {
            let (_, out, words) = patient.sh(&format!("{set}\ntk doctor {json} --to {url}"));
            assert!(out.contains("//me:…@"), "{out}");
            assert!(!(out + &words).contains("hunter2"), "{json} {server}");
        }
    }
    // A nix.conf that cannot be read is told with its name, and nothing is examined.
    let (status, out, words) = patient.sh("export NIX_CONFIG='cores = x'; tk doctor --json");
    assert_eq!(status, 2, "{out} {words}");
    assert!(words.contains("cores"), "{words}");
}

#[test]
fn an_untrusted_user_is_told() {
    let Some(patient) = Patient::start(false) else {
        return;
    };
    patient.finds("", "", "trust", "warn", "does not trust");
}

#[test]
fn a_full_disk_is_found() {
    let Some(patient) = Patient::start(true) else {
        return;
    };
    let mounted = patient.sh(
        "mkdir small few && mount -t tmpfs -o size=1m x small && mount -t tmpfs -o size=40g,nr_inodes=200 x few",
    );
    if mounted.0 != 0 {
        return skip(
            "the doctor on a full disk",
            "no file system can be mounted here",
        );
    }
    // A store on each, as tk-store makes one.
    let fill = |place: &str| {
        format!(
            "tk copy nothing --from 2>/dev/null; tk add file --store $PWD/{place} >/dev/null; \
             i=0; while touch {place}/f$i 2>/dev/null && [ $i -lt 250 ]; do i=$((i + 1)); done"
        )
    };
    let store = |place: &str| format!("--store {}", patient.path(place).display());
    patient.finds(
        &fill("small"),
        &store("small"),
        "space",
        "fail",
        "MiB are free",
    );
    patient.finds(
        &fill("few"),
        &store("few"),
        "space",
        "fail",
        "inodes are free",
    );
}

/// Something that only a signature proves.
const DRV: &str = "derivation { name = \"built\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
    args = [ \"-c\" \"echo built >$out\" ]; }";
