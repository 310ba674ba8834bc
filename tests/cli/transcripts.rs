//! What people and scripts read, whole: stdout, stderr and the exit status of every command, of its
//! `--json`, and of every class of error. A change of words is seen here, and taken by `cargo insta review`
//! (or `INSTA_UPDATE=always`).

use super::{Done, Machine, examples::DRV};
use insta::{Settings, assert_snapshot};
use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
};

/// What commands said, one after the other, on one machine.
struct Transcript {
    machine: Machine,
    text: String,
}

impl Transcript {
    /// A machine with files to add, a key pair, and caches that are asked once.
    fn new() -> Self {
        let machine = Machine::new();
        machine.write("etc/nix.conf", "download-attempts = 1\nsubstituters =\n");
        machine.write("hello/bin/hello", "#!/bin/sh\necho hello\n");
        machine.write("hello/share/doc/README", "read me\n");
        machine.write("data", "some data\n");
        machine.write("base.drv", DRV);
        machine.write("secret", SECRET);
        machine.write("public", PUBLIC);
        let program = machine.home().join("hello/bin/hello");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        symlink("doc/README", machine.home().join("hello/share/link")).unwrap();
        Transcript {
            machine,
            text: String::new(),
        }
    }

    /// Runs each line, and takes down what it says. Lines are arguments of tk-store, split at blanks.
    fn run(&mut self, lines: &str) -> &mut Self {
        let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
        for line in lines {
            let mut command = self.machine.command(line.split_whitespace());
            // No nix is found, wherever this runs.
            command.env("PATH", self.machine.home().join("bin"));
            let done = self.machine.done(command.output());
            self.note(line, &done);
        }
        self
    }

    fn note(&mut self, line: &str, done: &Done) {
        let Done { status, out, err } = done;
        let text = &mut self.text;
        writeln!(text, "$ tk-store {line}").unwrap();
        out.lines()
            .for_each(|line| writeln!(text, "{line}").unwrap());
        for line in err.lines() {
            writeln!(text, "2> {line}").unwrap();
        }
        if *status != 0 {
            writeln!(text, "[exit status {status}]").unwrap();
        }
        text.push('\n');
    }

    /// Compares all of it with what it was, without what differs from one run to the next.
    fn is_as_before(&self, name: &str) {
        let home = self.machine.home().display().to_string();
        settings().bind(|| assert_snapshot!(name, self.text.replace(&home, "/HOME")));
    }
}

fn settings() -> Settings {
    let mut settings = Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("transcripts");
    for (varies, shown) in [
        (r"in \d+(\.\d+)? m?s\b", "in [TIME]"),
        (r"\b\d+(\.\d+)? ms\b", "[TIME]"),
        (r"\d+(\.\d+)? [kKMG]?i?B/s", "[RATE]"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]"),
        (
            r#""(registrationTime|lastChecked)":\s*\d{9,}"#,
            r#""$1":[TIME]"#,
        ),
        (r#""(latencyMs|seconds)":\s*\d+(\.\d+)?"#, r#""$1":[TIME]"#),
        (r"tk-store \d+\.\d+\.\d+", "tk-store [VERSION]"),
        (r"process \d+", "process [ID]"),
    ] {
        settings.add_filter(varies, shown);
    }
    settings
}

#[test]
fn help_of_every_command() {
    let machine = Machine::new();
    let commands = commands_in(&machine.ok("--help"));
    assert!(commands.len() > 25, "{commands:?}");
    let mut whole = Transcript::new();
    whole.run("--help");
    whole.is_as_before("help");
    for command in commands {
        let mut transcript = Transcript::new();
        transcript.run(&format!("{command} --help"));
        let below = commands_in(&transcript.text);
        for below in below {
            transcript.run(&format!("{command} {below} --help"));
        }
        transcript.is_as_before(&format!("help-{command}"));
    }
}

/// The names in the table of commands of a help text.
fn commands_in(help: &str) -> Vec<String> {
    let table = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = table
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn files_hashes_and_archives() {
    let mut transcript = Transcript::new();
    transcript.run(
        "hash file data
         hash file data --type sha512 --format base16
         hash path hello
         hash convert --to base16 sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=
         nar hash hello",
    );
    let packed = transcript
        .machine
        .command(["nar", "pack", "hello"])
        .output();
    transcript
        .machine
        .write("hello.nar", packed.unwrap().stdout);
    transcript.run(
        "nar ls hello.nar
         nar ls hello.nar --json
         nar cat hello.nar share/doc/README
         nar cat hello.nar share/absent
         nar unpack hello.nar new
         nar unpack hello.nar new
         nar ls data
         hash convert --to base16 nonsense
         hash file absent",
    );
    transcript.is_as_before("files");
}

#[test]
fn stores_and_caches() {
    let mut transcript = Transcript::new();
    let cache = transcript.machine.cache("cache");
    let path = transcript.machine.ok("add hello");
    let (hash, _) = path["/nix/store/".len()..].split_once('-').unwrap();
    transcript.run(&format!(
        "add hello
         add data --json
         path-info {path}
         path-info {path} --json
         path-info --all
         closure {path}
         ls {path}
         ls {path} -lR
         ls {path} --json
         cat {path}/share/doc/README
         verify {path}
         verify --all --progress none
         store info
         store info --json
         cache init {cache}
         push {path} --to {cache} --dry-run
         push {path} --to {cache}
         push {path} --to {cache} --sign-key secret
         push {path} --to {cache} --sign-key secret
         push data --to {cache} --sign-key secret --json
         check {path} --in {cache}
         check {path} --in {cache} --json
         check /nix/store/00000000000000000000000000000000-absent --in {cache}
         path-info {path} --store {cache} --json
         verify {path} --store {cache} --trusted-key public
         verify {path} --store {cache}
         pull {path} --from {cache} --to ./other --trusted-key public --dry-run
         pull {path} --from {cache} --to ./other --trusted-key public
         pull {path} --from {cache} --to ./other --trusted-key public
         copy {path} --from ./other --to ./third --trusted-key public --json
         sign {path} --store ./other --key-file secret
         log {path}
         store info --store {cache}
         store info --store {cache} --json"
    ));
    // Broken in all the ways a cache can be.
    let narinfo = transcript
        .machine
        .home()
        .join(format!("cache/{hash}.narinfo"));
    let text = fs::read_to_string(&narinfo).unwrap();
    fs::write(&narinfo, text.replace("NarSize: ", "NarSize: 1")).unwrap();
    transcript.run(&format!(
        "pull {path} --from {cache} --to ./fourth --no-check-sigs"
    ));
    fs::write(&narinfo, "<html>not here</html>").unwrap();
    transcript.run(&format!(
        "pull {path} --from {cache} --to ./fourth --no-check-sigs
         path-info {path} --store {cache}
         path-info --all --store {cache}
         verify --all --store {cache} --no-trust
         check {path} --in {cache}
         push {path} --to {cache}"
    ));
    transcript.is_as_before("stores");
}

#[test]
fn derivations_and_builders() {
    let mut transcript = Transcript::new();
    let drv = transcript.machine.ok("add --mode text base.drv");
    transcript.run(&format!(
        "derivation show {drv}
         derivation path {drv}
         derivation show data
         path-info {drv}^out
         realisation info {drv}^out
         builders list --builders ssh-ng://one
         builders list --builders ssh-ng://one --json
         builders check --builders @/nothing/there
         env list
         env list --json
         env gc
         log {drv}"
    ));
    transcript.is_as_before("derivations");
}

#[test]
fn questions_about_paths() {
    let mut transcript = Transcript::new();
    let machine = &transcript.machine;
    let base = machine.ok("add --mode text base.drv");
    let needed = &base["/nix/store/".len()..];
    let drvs = ["one", "two"].map(|word| {
        let text = TOP_DRV.replace("BASE", needed).replace("WORD", word);
        machine.write("top.json", text);
        machine.ok("derivation add top.json")
    });
    let [one, two] = drvs;
    transcript.run(&format!(
        "derivation add --dry-run top.json
         derivation add data
         closure --tree {one} {two}
         closure --graph {one}
         closure --graph mermaid {one}
         closure --referrers {base}
         closure --tree --graph {one}
         why-depends {one} {base}
         why-depends --precise {one} {base}
         why-depends --json {one} {base}
         why-depends {base} {one}
         du {one}
         du --tree -h {one} {two}
         du --json {base}
         diff {one} {one}
         diff {one} {two}
         diff {one} {two} --json
         diff {one} {two} --files
         diff {base} {two} --files --json"
    ));
    transcript.is_as_before("questions");
}

#[test]
fn every_class_of_error() {
    let mut transcript = Transcript::new();
    // Nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    let path = transcript.machine.ok("add hello");
    transcript
        .machine
        .write("foreign/nix-cache-info", "StoreDir: /gnu/store\n");
    transcript.machine.write("no-key", "not a key\n");
    transcript.run(&format!(
        "frobnicate
         push
         push {path}
         push {path} --to
         push {path} --to nonsense://there
         push {path} --to http://127.0.0.1:{port}
         push {path} --to {foreign}
         push {path} --to {mine}?compression=frob
         push {path} --to file:///proc/nothing/cache
         push {path} --to ./cache --sign-key no-key
         push {path} --to ./cache --sign-key absent-key
         push {absent} --to file:///tmp
         push absent-file --to ./cache
         pull {absent} --from http://127.0.0.1:{port}
         pull {absent} --from ./absent-cache
         check {absent} --in http://127.0.0.1:{port}
         check {absent} --in http://127.0.0.1:{port} --json
         path-info {absent}
         path-info /nix/store/short
         path-info {path}/bin
         path-info --store ./absent-store {path}
         path-info --store unix:///absent/socket {path}
         ls {path}/absent
         cat {path}/absent
         cat {path}/bin
         cat {absent}/x
         verify {absent}
         sign {path} --key-file absent-key
         copy {path} --from ./absent --to ./other
         build .#x
         shell -- true
         daemon
         key public data
         cache use {mine}/absent",
        port = port.port(),
        foreign = transcript.machine.cache("foreign"),
        mine = transcript.machine.cache("mine"),
    ));
    transcript.is_as_before("errors");
}

/// Made for this, and used nowhere else.
const SECRET: &str = "snapshot-1:GetHSq1XFiNTo2D0D0OzpLjAxjz1IAvMeegvMnDN+fDZSLHnPTSxoLYyMWXOyPuYLk0HVIMbDY5j3UM1E9T7JA==";
const PUBLIC: &str = "snapshot-1:2Uix5z00saC2MjFlzsj7mC5NB1SDGw2OY91DNRPU+yQ=";

/// A derivation that needs another one, as JSON whose outputs are to be filled in.
const TOP_DRV: &str = r#"{"name": "top", "version": 4, "system": "x86_64-linux", "builder": "/bin/sh", "args": ["-e", "WORD"],
"outputs": {"out": {}}, "inputs": {"srcs": [], "drvs": {"BASE": {"outputs": ["out"], "dynamicOutputs": {}}}},
"env": {"out": "", "word": "the WORD\nof both", "base": "/nix/store/0c6988igqizlns512xmknr0qhm5v4i3q-base"}}"#;
