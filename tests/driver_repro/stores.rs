//! The same derivation built in two places with different results, and asked for in both.

use super::Bench;
use crate::{
    cli::Machine,
    support::{RigDaemon, daemon::quote},
};
use std::process;

/// Two daemons that build the same derivations, whose builds count on: what depends on the count differs.
fn pair(a: &'static str, b: &'static str) -> Option<(Bench, Bench)> {
    let tag = format!("rs{}-{}", process::id(), a.replace('.', ""));
    let (first, second) = (RigDaemon::start(a, true)?, RigDaemon::start(b, true)?);
    Some((Bench::of(first, &tag), Bench::of(second, &tag)))
}

#[test]
fn two_caches_and_two_builders() {
    for (a, b) in [("2.34", "2.26"), ("2.8", "2.34")] {
        let Some((first, second)) = pair(a, b) else {
            continue;
        };
        let machine = Machine::new();
        let stamp = first.drv("stamp");
        assert_eq!(stamp, second.drv("stamp"));
        let mut caches = Vec::new();
        for (bench, name) in [(&first, "a"), (&second, "b")] {
            let path = bench.daemon.ask("nix-store", &["-r", &stamp]);
            let same = bench.daemon.ask("nix-store", &["-r", &bench.drv("same")]);
            let cache = machine.cache(name);
            let (status, _, err) = bench.tk(&format!("push {stamp} {path} {same} --to {cache}"));
            assert_eq!(status, 0, "{err}");
            caches.push((cache, path, same));
        }
        let [(in_a, path, same), (in_b, ..)] = &caches[..] else {
            unreachable!()
        };
        let both = format!("--in {in_a} --in {in_b}");

        // A machine without any Nix, by path and by derivation.
        let out = machine.ok(&format!("repro check {same} {both}"));
        assert!(out.starts_with(&format!("same {same} sha256-")), "{out}");
        for what in [path.clone(), format!("{stamp}^out"), stamp.clone()] {
            let done = machine.run(&format!("repro check {what} {both}"));
            assert_eq!(done.status, 1, "{a} {b}: {done:?}");
            let line = "  share/stamp: the contents differ from byte 9 on: \"0\\n\" and \"1\\n\" (11 and 11 bytes)";
            assert!(
                done.out.starts_with("different ") && done.out.contains(line),
                "{done:?}"
            );
            assert!(
                done.err.contains(in_a) && done.err.contains(in_b),
                "{done:?}"
            );
        }

        let empty = machine.cache("empty");
        machine.ok(&format!("cache init {empty}"));
        let done = machine.run(&format!("repro check {path} --in {in_a} --in {empty}"));
        assert_eq!(
            (done.status, done.out.trim()),
            (1, &*format!("missing {path}")),
            "{done:?}"
        );
        let done = machine.run(&format!(
            "repro check {path} --in {in_a} --in http://127.0.0.1:1/ --json"
        ));
        let status = done.status;
        assert_eq!(status, 2, "{done:?}");

        // Both daemons themselves, and one of them over ssh.
        let done = machine.run(&format!(
            "repro check {stamp}^out --in {} --in {}",
            uri(&first),
            uri(&second)
        ));
        assert_eq!(done.status, 1, "{done:?}");
        assert!(done.out.contains("byte 9"), "{done:?}");
        over_ssh(&first, &second, &stamp);
        content_addressed(&machine, &first, &second);
    }
}

/// The daemon of `bench`, for a client that sees another `/nix`.
fn uri(bench: &Bench) -> String {
    let (socket, state) = (bench.daemon.socket(), bench.daemon.state());
    format!("unix://{}?root={}", socket.display(), state.display())
}

fn fake_ssh(far: &Bench) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rig/fake-ssh");
    // With a root, so that the far end reads the files of its own store, not those of ours.
    format!(
        "export PATH={}:$PATH FAKE_SSH_REMOTE={};",
        quote(folder),
        quote(&uri(far))
    )
}

/// A builder whose files cannot be reached: that it differs is known, but not where.
fn over_ssh(first: &Bench, second: &Bench, stamp: &str) {
    let program = quote(env!("CARGO_BIN_EXE_tk-store"));
    let home = first.daemon.folder();
    let sh = |args: &str| {
        let setup = fake_ssh(second);
        let line = format!(
            "{setup} HOME={} {program} {args}",
            quote(&home.to_string_lossy())
        );
        first.daemon.sh(&line)
    };
    let done = sh(&format!("repro check {stamp}^out --in ssh-ng://far"));
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.stdout.contains("byte 9"), "{done:?}");
    let done = sh(&format!("repro check {stamp}^out --store ssh-ng://far"));
    assert_eq!(done.status, 1, "{done:?}");
    assert_eq!(done.stdout, format!("different {stamp}^out\n"), "{done:?}");
    assert!(
        done.stderr.contains("its files are on another machine"),
        "{done:?}"
    );
    let done = sh(&format!(
        "repro check {} --store ssh-ng://far",
        second.drv("same")
    ));
    assert_eq!(done.status, 0, "{done:?}");
}

/// Realisations, in caches that Nix itself wrote and in the daemons.
fn content_addressed(machine: &Machine, first: &Bench, second: &Bench) {
    let mut caches = String::new();
    let mut sockets = String::new();
    for (bench, name) in [(first, "ca-a"), (second, "ca-b")] {
        let cache = machine.cache(name);
        let file = bench.daemon.folder().join("default.nix");
        let file = file.to_string_lossy();
        for attr in ["caSame", "caDependent"] {
            let args = ["copy", "--to", &cache, "-f", &file, attr];
            bench.daemon.ask("nix", &args);
            let (status, _, err) = bench.tk(&format!("push {} --to {cache}", bench.drv(attr)));
            assert_eq!(status, 0, "{err}");
        }
        caches += &format!(" --in {cache}");
        sockets += &format!(" --in unix://{}", bench.daemon.socket().display());
    }
    for places in [&caches, &sockets] {
        let versions = format!("{} {}", first.daemon.version, second.daemon.version);
        let done = machine.run(&format!("repro check {}^out {places}", first.drv("caSame")));
        assert_eq!(done.status, 0, "{versions} {places}: {done:?}");
        let done = machine.run(&format!(
            "repro check {}^out {places} --json",
            first.drv("caDependent")
        ));
        assert_eq!(done.status, 1, "{versions} {places}: {done:?}");
        // The files of a daemon's paths are reached through its protocol.
        let told: serde_json::Value = serde_json::from_str(&done.out).unwrap();
        assert_eq!(
            told[0]["differences"][0]["offset"], 5,
            "{versions} {told:#}"
        );
        assert_ne!(
            told[0]["copies"][0]["path"], told[0]["copies"][1]["path"],
            "{told:#}"
        );
    }
}
