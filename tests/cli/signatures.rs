//! Nothing that nobody trusted has signed gets into a store, by whatever command; and a cache that
//! is filled without signatures is not filled in silence.

use super::Machine;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};
use tk_narinfo::{Compression, NarInfo, PathInfo};
use tk_path::{NarHash, StoreDir};

/// What each command does to a store that is no binary cache. Whoever adds a command says here what
/// it does; one that fills a store from elsewhere belongs among the [`DOORS`].
const COMMANDS: &[(&str, Kind)] = &[
    ("push", Kind::Door),
    ("pull", Kind::Door),
    ("copy", Kind::Door),
    // Its --push and --prefer-cache; both ask for signatures as copy does.
    ("build", Kind::Door),
    ("add", Kind::Content),
    ("derivation", Kind::Content),
    ("check", Kind::Reads),
    ("path-info", Kind::Reads),
    ("closure", Kind::Reads),
    ("why-depends", Kind::Reads),
    ("du", Kind::Reads),
    ("diff", Kind::Reads),
    ("ls", Kind::Reads),
    ("cat", Kind::Reads),
    ("verify", Kind::Reads),
    // Its --repair puts back only what is registered already.
    ("optimise", Kind::Reads),
    ("log", Kind::Reads),
    ("store", Kind::Reads),
    ("nar", Kind::Reads),
    ("hash", Kind::Reads),
    ("key", Kind::Reads),
    ("completions", Kind::Reads),
    ("man", Kind::Reads),
    ("cache", Kind::Reads),
    ("repro", Kind::Reads),
    // What they fetch goes into files of a project, not into a store.
    ("flake", Kind::Reads),
    ("doctor", Kind::Reads),
    // Signatures of what is there.
    ("sign", Kind::Reads),
    // They only take away.
    ("gc", Kind::Reads),
    ("delete", Kind::Reads),
    ("roots", Kind::Reads),
    ("realisation", Kind::Reads),
    // What nix builds or fetches goes by nix's own rules.
    ("builders", Kind::Nix),
    ("eval", Kind::Nix),
    ("shell", Kind::Nix),
    ("run", Kind::Nix),
    ("env", Kind::Nix),
    ("direnv", Kind::Nix),
    ("ci", Kind::Nix),
    // Who may connect is trusted or not by the rules of Nix's daemon; see the tests of the daemon.
    ("daemon", Kind::Serves),
    // Whoever has the key of the account is trusted, as by nix-store --serve.
    ("serve-ssh", Kind::Serves),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Door,
    Content,
    Reads,
    Nix,
    Serves,
}

/// The ways from the cache `{cache}` into the store `{to}`, without signatures.
const DOORS: &[&str] = &[
    "push {path} --from {cache} --to {to}",
    "push --no-closure {path} --from {cache} --to {to}",
    "copy {path} --from {cache} --to {to}",
    "copy --all --from {cache} --to {to}",
    "copy --no-closure --repair {path} --from {cache} --to {to}",
    "pull {path} --from {cache} --to {to}",
    "pull --repair {path} --from {cache} --to {to}",
];

#[test]
fn every_command_is_known_to_this_test() {
    let machine = Machine::new();
    let help = machine.ok("--help");
    let commands = help.split("Commands:").nth(1).expect("a list of commands");
    let names = commands
        .lines()
        .skip(1)
        .take_while(|line| !line.trim().is_empty());
    // Descriptions that go on in a second line are indented further.
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<_> = names.filter(|name| *name != "help").collect();
    let known: BTreeSet<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, known);
    for (name, kind) in COMMANDS {
        let tested = DOORS
            .iter()
            .any(|line| line.starts_with(&format!("{name} ")));
        assert_eq!(tested, *kind == Kind::Door && *name != "build", "{name}");
    }
}

#[test]
fn no_way_into_a_store_goes_past_the_signatures() {
    let machine = Machine::new();
    let (path, place) = stranger(&machine);
    let cache = machine.cache("cache");
    let daemon = Daemon::start(&machine);
    let far = |scheme: &str| format!("{scheme}://far?remote-program={}", server(&machine, scheme));
    let stores = [
        ("./folder".to_owned(), "folder"),
        (
            format!("local?root={}/root", machine.home().display()),
            "root",
        ),
        (format!("unix://{}", daemon.socket), "daemon"),
        (far("ssh-ng"), "ssh-ng"),
        (far("ssh"), "ssh"),
    ];
    for (to, folder) in &stores {
        // The serve protocol has no word for --repair.
        let doors = DOORS
            .iter()
            .filter(|door| folder != &"ssh" || !door.contains("--repair"));
        for door in doors {
            let line = door
                .replace("{path}", &path)
                .replace("{cache}", &cache)
                .replace("{to}", to);
            let done = machine.done(with_ssh(&machine, &line).output());
            assert_eq!(done.status, 1, "{line}: {done:?}");
            assert!(done.err.contains("is not signed"), "{line}: {done:?}");
            let there = machine.home().join(folder).join(&place);
            assert!(!there.exists(), "{line}");
        }
        // By the front door, when that is said.
        let line = format!("push {path} --from {cache} --to {to} --no-check-sigs");
        let done = machine.done(with_ssh(&machine, &line).output());
        assert_eq!(done.status, 0, "{line}: {done:?}");
        assert!(machine.home().join(folder).join(&place).exists(), "{line}");
    }
    for cache in ["other", "third"] {
        let to = machine.cache(cache);
        machine.ok(&format!(
            "push {path} --from {} --to {to}",
            machine.cache("cache")
        ));
    }
}

/// An unsigned path in the cache `cache`, and where it would lie in a store.
fn stranger(machine: &Machine) -> (String, String) {
    let dir = StoreDir::default();
    let path = format!("{dir}/{}-hello-2.12", "a".repeat(32));
    let nar = machine.write("stranger", "not what you built");
    let nar = machine.done(
        machine
            .command(["nar", "pack", nar.to_str().unwrap()])
            .output(),
    );
    let mut info = PathInfo::new(
        dir.parse(&path).unwrap(),
        NarHash::digest(nar.out.as_bytes()),
        nar.out.len() as u64,
    );
    info.deriver = None;
    machine.write("cache/nix-cache-info", "StoreDir: /nix/store\n");
    machine.write("cache/nar/x.nar", &nar.out);
    let narinfo = NarInfo::new(info, "nar/x.nar".to_owned(), Compression::None);
    let name = format!("cache/{}.narinfo", "a".repeat(32));
    machine.write(&name, narinfo.print(&dir));
    let place = path.trim_start_matches('/').to_owned();
    (path, place)
}

/// A daemon over the store in the folder `daemon`, in which everybody is trusted.
struct Daemon {
    socket: String,
    child: Child,
}

impl Daemon {
    fn start(machine: &Machine) -> Self {
        let socket = machine.home().join("s").display().to_string();
        let store = machine.home().join("daemon").display().to_string();
        let args = [
            "daemon",
            "--force-trusted",
            "--socket",
            &socket,
            "--store",
            &store,
        ];
        let mut command = machine.command(args);
        let child = command.stderr(Stdio::null()).spawn().expect("it starts");
        let start = Instant::now();
        while !Path::new(&socket).exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        Daemon { socket, child }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program at the far end of ssh, over the store in the folder called as the scheme.
fn server(machine: &Machine, scheme: &str) -> String {
    let command = match scheme {
        "ssh" => "serve-ssh",
        _ => "daemon --force-trusted",
    };
    let (program, store) = (env!("CARGO_BIN_EXE_tk-store"), machine.home().join(scheme));
    let text = format!(
        "#!/bin/sh\nexec {program} {command} --store {} \"$@\"\n",
        store.display()
    );
    let file = machine.write(&format!("serve-{scheme}"), text);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("ours");
    file.display().to_string()
}

/// The program, for which a stand-in for ssh comes first.
fn with_ssh(machine: &Machine, line: &str) -> std::process::Command {
    let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/fake-ssh");
    let usual = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([fake].into_iter().chain(env::split_paths(&usual)));
    let mut command = machine.command(line.split_whitespace());
    command.env("PATH", path.expect("folders"));
    command
}

#[test]
fn a_push_without_a_key_says_so_and_one_with_a_key_signs_what_is_there() {
    let machine = Machine::new();
    let (path, _) = stranger(&machine);
    let key = machine.ok("key generate k-1 --secret s --public p");
    let (from, to) = (machine.cache("cache"), machine.cache("mine"));
    machine.ok(&format!("cache init {to}"));
    let push = format!("push {path} --from {from} --to {to}");
    for line in [format!("{push} --dry-run"), push.clone(), push.clone()] {
        let done = machine.run(&line);
        assert_eq!(done.status, 0, "{line}: {done:?}");
        assert!(done.err.contains("1 path in"), "{line}: {done:?}");
        assert!(done.err.contains("--sign-key"), "{line}: {done:?}");
    }
    let planned = machine.run(&format!("{push} --dry-run --sign-key s"));
    assert!(planned.err.contains("would sign 1 path"), "{planned:?}");
    machine.fails(
        1,
        &format!("pull {path} --from {to} --to ./st --trusted-key {key}"),
    );
    let signed: Value =
        serde_json::from_str(&machine.ok(&format!("{push} --sign-key s --json"))).unwrap();
    assert_eq!(signed["signed"], serde_json::json!([path]), "{signed}");
    assert_eq!(signed["copied"], serde_json::json!([]));
    machine.ok(&format!(
        "pull {path} --from {to} --to ./st --trusted-key {key}"
    ));
    let again = machine.run(&format!("{push} --sign-key s"));
    assert!(
        !again.err.contains("sign"),
        "nothing is left to say: {again:?}"
    );
    // As by the cache's own key.
    machine.ok("key generate uri-1 --secret s2 --public p2");
    let own = machine.home().join("s2").display().to_string();
    machine.ok(&format!("{push}?secret-key={own}"));
    assert!(
        machine
            .ok(&format!("path-info --sigs {path} --store {to}"))
            .contains("uri-1:")
    );
}

/// What is under the same path another build is not signed as ours.
#[test]
fn only_what_is_ours_is_signed() {
    let machine = Machine::new();
    let (path, _) = stranger(&machine);
    machine.ok("key generate k-1 --secret s --public p");
    let (from, to) = (machine.cache("cache"), machine.cache("mine"));
    machine.ok(&format!("push {path} --from {from} --to {to}"));
    let narinfo = machine
        .home()
        .join(format!("mine/{}.narinfo", "a".repeat(32)));
    let text = fs::read_to_string(&narinfo).unwrap();
    let evil = NarHash::digest(b"evil").to_string();
    let line = text
        .lines()
        .find(|line| line.starts_with("NarHash:"))
        .unwrap();
    fs::write(&narinfo, text.replace(line, &format!("NarHash: {evil}"))).unwrap();
    let done = machine.run(&format!("push {path} --from {from} --to {to} --sign-key s"));
    assert!(done.err.contains("is another build"), "{done:?}");
    assert!(!fs::read_to_string(&narinfo).unwrap().contains("Sig:"));
}
