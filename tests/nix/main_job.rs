//! The main job with closures that real Nix built: out of its store, into a signed cache, into the
//! store of every version; and out of the caches that every version writes, into ours.

use crate::{
    cli::Machine,
    support::{Rig, VERSIONS, each_version, rig},
};
use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// The compressions that all of the three versions write.
const COMPRESSIONS: [&str; 6] = ["none", "xz", "zstd", "bzip2", "gzip", "br"];

each_version!(every_nix_takes_what_we_push);

fn every_nix_takes_what_we_push(version: &'static str) {
    let Some(builder) = rig(version) else { return };
    let machine = Machine::new();
    let closure = build(&builder, &machine);
    let key = machine.ok("key generate main-job-1 --secret s --public p");
    let store = machine.home().join("built").display().to_string();
    for compression in COMPRESSIONS {
        let cache = machine.cache(compression);
        let root = &closure.root;
        let push = format!(
            "push {root} --from {store} --to {cache} --sign-key s --compression {compression} --listing"
        );
        assert_eq!(machine.ok(&push), *root);
        assert_eq!(paths(&machine, &cache), closure.paths);
    }
    for reader in VERSIONS {
        let Some(reader) = rig(reader) else { continue };
        for compression in COMPRESSIONS {
            let place = machine
                .home()
                .join(format!("{}-{compression}", reader.version));
            let cache = machine.cache(compression);
            takes(&reader, &place, &cache, &closure.root, &key);
            let ours = machine.ok(&format!("path-info --all --store {}", place.display()));
            assert_eq!(
                ours.lines().map(String::from).collect::<BTreeSet<_>>(),
                closure.paths
            );
            machine.ok(&format!(
                "verify --all --trusted-key p --store {}",
                place.display()
            ));
        }
        refuses_without_the_key(&reader, &machine, &closure.root);
    }
}

each_version!(we_take_what_every_nix_pushes);

fn we_take_what_every_nix_pushes(version: &'static str) {
    let Some(writer) = rig(version) else { return };
    let machine = Machine::new();
    let closure = build(&writer, &machine);
    machine.ok("key generate main-job-1 --secret s --public p");
    machine.ok("key generate other-1 --secret s2 --public p2");
    let built = machine.home().join("built");
    for compression in COMPRESSIONS {
        let cache = machine.cache(compression);
        let to = format!(
            "{cache}?compression={compression}&secret-key={}&write-nar-listing=true",
            machine.home().join("s").display()
        );
        nix(
            &writer,
            &built,
            &["copy", "--no-check-sigs", "--to", &to, &closure.root],
        );
        assert_eq!(paths(&machine, &cache), closure.paths);
        machine.ok(&format!("verify --all --trusted-key p --store {cache}"));
        machine.fails(1, &format!("verify --all --trusted-key p2 --store {cache}"));

        let pull = format!(
            "pull {} --from {cache} --to ./{compression}-store",
            closure.root
        );
        machine.fails(1, &format!("{pull} --trusted-key p2"));
        assert_eq!(
            machine.ok(&format!(
                "{pull} --trusted-key p --out-link r-{compression}"
            )),
            closure.root
        );
        let place = machine.home().join(format!("{compression}-store"));
        let text =
            fs::read_to_string(machine.home().join(format!("r-{compression}/text"))).unwrap();
        assert_eq!(text, closure.text);
        for reader in VERSIONS {
            let Some(reader) = rig(reader) else { continue };
            opens(&reader, &place, &closure);
        }
        let listed = machine.ok(&format!("ls -R {} --store {cache}", closure.root));
        assert_eq!(listed, "bin\nbin/tool\nempty\nlink\ntext");
        let text = machine.ok(&format!("cat {}/text --store {cache}", closure.root));
        assert_eq!(text, closure.text.trim_end());
    }
}

/// A closure in `built`, a store that can be opened as `--store built`.
struct Closure {
    root: String,
    paths: BTreeSet<String>,
    /// The content of the root's file `text`.
    text: String,
}

/// Builds a chain of derivations whose outputs refer to each other and to themselves.
fn build(rig: &Rig, machine: &Machine) -> Closure {
    machine.write("build.nix", DERIVATIONS);
    let built = machine.home().join("built");
    let mut command = rig.with_daemon();
    let expression = machine.home().join("build.nix").display().to_string();
    let state = built.display().to_string();
    let args = [
        "--no-daemon",
        "--state",
        &state,
        rig.version,
        "--",
        "nix-build",
        "--no-out-link",
    ];
    let root = output(command.args(args).arg(expression));
    let mut query = rig.command("nix-store");
    let paths = output(query.arg("--store").arg(&built).args(["-qR", &root]));
    let paths: BTreeSet<_> = paths.lines().map(String::from).collect();
    assert_eq!(paths.len(), 4, "{paths:?}");
    let text = fs::read_to_string(built.join(&root[1..]).join("text")).unwrap();
    assert!(text.contains(&root), "a reference to itself");
    Closure { root, paths, text }
}

/// `rig` copies `root` from the cache with signatures required, and finds it whole.
fn takes(rig: &Rig, place: &Path, cache: &str, root: &str, key: &str) {
    let keys = [
        "--option",
        "trusted-public-keys",
        key,
        "--option",
        "require-sigs",
        "true",
    ];
    nix(
        rig,
        place,
        &[&["copy", "--from", cache, root][..], &keys].concat(),
    );
    let mut verify = rig.command("nix-store");
    output(
        verify
            .arg("--store")
            .arg(place)
            .args(["--verify", "--check-contents"]),
    );
}

fn refuses_without_the_key(rig: &Rig, machine: &Machine, root: &str) {
    let other = machine.home().join("nobody");
    let mut copy = rig.command("nix");
    copy.arg("--store")
        .arg(&other)
        .args(["copy", "--from", &machine.cache("zstd"), root]);
    let done = copy.output().expect("nix starts");
    assert!(!done.status.success(), "the signatures were not looked at");
    assert!(!other.join(&root[1..]).exists());
}

/// `rig` opens the store in `place`, and finds the closure in it.
fn opens(rig: &Rig, place: &Path, closure: &Closure) {
    let json = nix(rig, place, &["path-info", "-r", "--json", &closure.root]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let known: BTreeSet<String> = match &json {
        serde_json::Value::Array(list) => list
            .iter()
            .map(|info| info["path"].as_str().unwrap().to_owned())
            .collect(),
        object => object.as_object().unwrap().keys().cloned().collect(),
    };
    assert_eq!(known, closure.paths);
    let mut verify = rig.command("nix-store");
    output(
        verify
            .arg("--store")
            .arg(place)
            .args(["--verify", "--check-contents"]),
    );
}

fn nix(rig: &Rig, store: &Path, args: &[&str]) -> String {
    output(rig.command("nix").arg("--store").arg(store).args(args))
}

fn paths(machine: &Machine, store: &str) -> BTreeSet<String> {
    let all = machine.ok(&format!("path-info --all --store {store}"));
    all.lines().map(String::from).collect()
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let done = command.output().expect("it starts");
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {}\n{err}", done.status);
    String::from_utf8(done.stdout)
        .expect("UTF-8")
        .trim_end()
        .to_owned()
}

/// The builder has only the shell's own commands, and /bin.
const DERIVATIONS: &str = r#"
let
  make = name: inputs: derivation {
    inherit name inputs;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" ''
      PATH=/bin:/usr/bin
      mkdir -p $out/bin $out/empty
      echo "$name at $out refers to $inputs" > $out/text
      for i in $inputs; do cat $i/text >> $out/text; done
      echo 'echo hello' > $out/bin/tool
      chmod +x $out/bin/tool
      ln -s bin/tool $out/link
    '' ];
  };
  base = make "base" [ ];
  left = make "left" [ base ];
  right = make "right" [ base ];
in
make "top" [ left right ]
"#;
